"""A guest disturbed at every turn ends as the undisturbed one: same registers, memory, instruction count."""

from __future__ import annotations

import random

import pytest

from shadowvm.addr import Gva, Pfn
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, IDT, LOW, Machine, P, U, W

DATA, PAGES = 0x400000, 24
BACKING = 0x200
PROGRAM = f"""mov r8,1
mov ebp,{DATA}
l: imul r8,r8,0x5851f42d
add r8,12345
mov rax,r8
shr rax,20
mov ecx,{PAGES * 4096 - 4200}
xor edx,edx
div rcx
lea rdi,[rbp+rdx]
mov r9,[rdi]
add r9,r8
mov [rdi],r9
lock xadd [rdi+3000],r9
xor r10,r9
lea rsi,[rdi+1500]
mov ecx,70
rep movsb
cmpxchg [rdi+17],r8
movups xmm0,[rdi+33]
paddq xmm0,xmm0
movups [rdi+33],xmm0
lea rsp,[rdi+400]
and rsp,-8
push r10
pushfq
pop r11
and r11,0x8d5
call f
pop r12
mov rsp,0x8000
fild qword [rdi]
fistp qword [rdi+8]
mov eax,r8d
mov [patch+3],al
patch: xor r13d,0x11
test r8d,0x30
jz l2
dec r14
l2: dec r15
jnz l
hlt
f: xor r10,r12
ret"""


class Disturbed(Machine):
    """Data pages come and go; faults are handled by mapping, sometimes by a step through a window."""

    def __init__(self, seed: int, *, counting: bool) -> None:
        super().__init__(frames=2048, counting=counting)
        self.rng = random.Random(seed)
        self.entries = [self.map(DATA + n * 4096, (BACKING + n) << 12, P | W | U) for n in range(PAGES)]
        self.low = [self.map(page, page, P | W | U) for page in range(0, LOW, 4096)]
        self.steps = self.faults_seen = self.irqs = 0

    def start(self) -> None:
        self.code(CODE, PROGRAM)
        self.code(HANDLERS, "iretq")
        self.gate(0x40, HANDLERS, ist=1)
        self.reset()
        for register, value in ((15, 2500), (14, 0), (13, 0), (12, 0), (10, 0)):
            self.engine.set_reg(register, value)
        self.engine.rflags = 0x202

    def absent(self, chance: float) -> None:
        for n, at in enumerate(self.entries):
            roll = self.rng.random()
            if roll < chance:
                self.ram.q[at] = 0
            elif roll < 2 * chance:
                self.ram.q[at] = (BACKING + n) << 12 | P | U
        for page in (CODE, CODE + 0x1000, IDT, 0x2000, HANDLERS, 0x7000):
            if self.rng.random() < chance / 2:
                self.ram.q[self.low[page >> 12]] = 0

    def resolve(self) -> None:
        """One walk fault: map the page, or carry the store out through a window."""
        engine, (va, access, _level) = self.engine, self.exit
        self.faults_seen += 1
        event = engine.vectoring()
        if va < LOW:
            self.ram.q[self.low[va >> 12]] = va & ~0xFFF | P | W | U
        else:
            n = (va - DATA) >> 12
            frame = BACKING + n
            if access == 1 and event is None and self.rng.random() < 0.3:
                self.ram.q[self.entries[n]] = frame << 12 | P | U
                engine.set_window(0, Gva(va), Pfn(frame))
                self.steps += engine.step() == CpuExit.QUANTUM
                engine.clear_windows()
                return
            self.ram.q[self.entries[n]] = frame << 12 | P | (W if access == 1 or self.rng.random() < 0.5 else 0) | U
        if event is not None:
            engine.requeue(event)

    def disturb(self) -> None:
        engine, roll = self.engine, self.rng.random()
        if roll < 0.3:
            self.absent(0.1)
            engine.flush_tlb()
        elif roll < 0.5:
            engine.flush_page(Gva(DATA + self.rng.randrange(PAGES) * 4096))
        if self.rng.random() < 0.1 and not engine.irq_pending and not engine.box[mb.EVENT_KIND]:
            engine.queue_event(Event(EventKind.INTERRUPT, 0x40))
            self.irqs += 1

    def finish(self) -> None:
        engine = self.engine
        while True:
            if engine.counting:
                engine.set_budget(self.rng.randint(1, 400))
            code = engine.enter()
            if code == CpuExit.HLT:
                return
            assert code in (CpuExit.QUANTUM, CpuExit.WALK_FAULT), CpuExit(code)
            self.disturb()
            if code == CpuExit.WALK_FAULT:
                self.resolve()

    def state(self) -> tuple[object, ...]:
        e = self.engine
        data = bytes(self.ram.b[BACKING << 12 : (BACKING + PAGES) << 12])
        return (*(e.get_reg(i) for i in range(16)), e.rip, e.rflags, data, bytes(self.ram.b[CODE : CODE + 4096]))


def undisturbed(counting: bool) -> tuple[tuple[object, ...], int]:
    machine = Disturbed(0, counting=counting)
    machine.start()
    assert machine.engine.enter() == CpuExit.HLT
    return machine.state(), machine.engine.instructions


@pytest.mark.parametrize("counting", [True, False], ids=["counting", "plain"])
@pytest.mark.parametrize("seed", range(3))
def test_a_disturbed_run_ends_like_an_undisturbed_one(seed: int, counting: bool) -> None:
    end, instructions = undisturbed(counting)
    machine = Disturbed(seed, counting=counting)
    machine.start()
    machine.absent(0.5)
    machine.engine.flush_tlb()
    machine.finish()
    assert machine.state() == end
    assert machine.faults_seen > 200
    assert machine.steps > 20
    assert machine.engine.box[mb.MISCOUNTS] == 0
    if counting:
        assert machine.engine.instructions == instructions + machine.irqs
        assert machine.engine.box[mb.VECTOR_COUNTS + 0x40] == machine.irqs > 100
