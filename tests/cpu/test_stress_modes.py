"""Outside of long mode too, a guest disturbed at every turn ends as the undisturbed one.

The program raises exceptions and software interrupts, executes instructions that exit, does string port I/O and runs
code that it changes; pages of code, data, stack, IDT and TSS come and go, interrupts and NMIs arrive at any time.
"""

from __future__ import annotations

import random

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.cpu.segments import CODE16_FLAGS, CS, Segment
from tests.cpu.machine import CODE, GDT, HANDLERS, IDT, RAX, RCX, TSS, FlatMachine, P, U, W

ROUNDS, DATA = 400, 0x40000
IRQ, NMI, SOFT = 0x40, 2, 0x50
BODY = """l: imul ebx,ebx,0x41c64e6d
add ebx,12345
mov eax,ebx
shr eax,18
and eax,0x1ff8
mov {di},{ax}
add [es:{di}],ebx
lock xadd [es:{di}+16],ebx
ud2
int 0x50
mov ecx,7
cpuid
mov ecx,0x277
{msr}
mov cx,5
mov dx,0x60
{string}
mov al,bl
mov [{patch}],al
jmp n
n: db 0x80,0xf3
p: db 0x11
pushf{size}
pop{size} {ax}
and eax,0x8d5
add esi,eax
dec {bp}
jnz l
int 0x51"""


class Disturbed(FlatMachine):
    """`bits` of code: 32 in protected mode at CPL 3 and IOPL 3, 16 in real mode."""

    def __init__(self, bits: int, seed: int) -> None:
        super().__init__()
        self.bits, self.rng = bits, random.Random(seed)
        self.table = self.ram.q[self.ram.q[self.root >> 3] >> 12 << 9] >> 12 << 9
        self.ports = 0
        self.events = self.faults_seen = self.exits = 0
        e = self.engine
        e.on_in(self.port_in)
        e.controls.cr = e.controls.msr = e.controls.cpuid = True

    def port_in(self, port: int, size: int) -> int:
        self.ports = self.ports * 69069 + 1 & 0xFFFFFFFF
        return self.ports >> 24

    def start(self) -> None:
        if self.bits == 32:
            names = {"di": "edi", "ax": "eax", "bp": "ebp", "size": "d", "msr": "nop"}
        else:
            names = {"di": "di", "ax": "ax", "bp": "bp", "size": "w", "msr": "rdmsr"}
        entry = CODE + 0x100
        source = BODY.format(patch="p", string="rep insb", **names).replace("popd ", "pop ").replace("popw ", "pop ")
        self.code(entry, source, self.bits)
        self.handlers()
        if self.bits == 32:
            self.code(CODE, f"push 0x1b\n push 0x7f00\n push 0x3202\n push 0x23\n push {entry}\n iret", 32)
            self.reset()
            self.engine.set_segment(3, Segment(0x1B, 0, 0xFFFFFFFF, 0xCFF300))
            self.engine.set_segment(0, Segment(0x1B, DATA, 0xFFFFFFFF, 0xCFF300))
        else:
            self.engine.init_reset()
            self.engine.set_segment(CS, Segment(0, 0, 0xFFFF, CODE16_FLAGS))
            self.engine.set_segment(0, Segment(DATA >> 4, DATA, 0xFFFF, 0x9300))
            self.engine.set_segment(3, Segment(0, 0, 0xFFFF, 0x9300))
            self.engine.rip, self.engine.env[4] = entry, 0x7F00
            self.engine.rflags = 0x202
            self.load()
        self.engine.set_reg(5, ROUNDS)

    def handlers(self) -> None:
        at = HANDLERS if self.bits == 32 else 0x5000
        back = (
            "add dword [esp],2\n iret" if self.bits == 32 else "push bp\n mov bp,sp\n add word [bp+2],2\n pop bp\n iret"
        )
        for n, (vector, source) in enumerate(
            ((6, back), (SOFT, "inc esi\n iret"), (0x51, "hlt"), (IRQ, "iret"), (NMI, "iret"))
        ):
            self.code(at + 0x40 * n, source, self.bits)
            if self.bits == 32:
                self.gate(vector, at + 0x40 * n, dpl=3)
            else:
                self.vector(vector, at + 0x40 * n)

    def disturb(self) -> None:
        e, roll = self.engine, self.rng.random()
        if roll < 0.4:
            pages = [CODE, 0x5000, 0x7000, 0x8000, HANDLERS, IDT, GDT, TSS, 0, *range(DATA, DATA + 0x4000, 4096)]
            for page in pages:
                if self.rng.random() < 0.3:
                    self.ram.q[self.table + (page >> 12)] = 0 if self.rng.random() < 0.5 else page | P | U
            e.flush_tlb()
        if self.rng.random() < 0.2 and not e.irq_pending:
            e.queue_event(Event(EventKind.INTERRUPT, IRQ))
            self.events += 1
        if self.rng.random() < 0.2 and not e.nmi_pending:
            e.queue_event(Event(EventKind.NMI, NMI))

    def handle(self, code: int) -> None:
        e = self.engine
        if code == CpuExit.WALK_FAULT:
            self.faults_seen += 1
            event, va = e.vectoring(), self.exit[0]
            self.ram.q[self.table + (va >> 12)] = va & ~0xFFF | P | W | U
            if event is not None:
                e.requeue(event)
        elif code == CpuExit.CPUID:
            e.set_reg(RAX, e.get_reg(RCX) * 3)
            e.skip_instruction()
            self.exits += 1
        elif code == CpuExit.MSR_READ:
            e.set_reg(RAX, 0x12345)
            e.skip_instruction()
            self.exits += 1
        else:
            assert code == CpuExit.QUANTUM, CpuExit(code)

    def finish(self, *, calm: bool) -> tuple[object, ...]:
        e = self.engine
        for _ in range(200_000):
            if not calm:
                e.set_budget(self.rng.randint(1, 60))
            code = e.enter()
            if code == CpuExit.HLT:
                break
            if not calm:
                self.disturb()
            self.handle(code)
        return (*(e.get_reg(i) for i in range(8)), e.rip, e.rflags, self.ports, bytes(self.ram.b[DATA : DATA + 0x4000]))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("seed", range(2))
def test_a_disturbed_run_of_other_modes_ends_like_an_undisturbed_one(bits: int, seed: int) -> None:
    calm = Disturbed(bits, seed)
    calm.start()
    end = calm.finish(calm=True)
    wild = Disturbed(bits, seed)
    wild.start()
    assert wild.finish(calm=False) == end
    counts = wild.engine.box[mb.VECTOR_COUNTS : mb.VECTOR_COUNTS + 256].tolist()
    assert (counts[6], counts[SOFT], counts[IRQ]) == (ROUNDS, ROUNDS, wild.events - wild.engine.irq_pending)
    assert counts[NMI] > 50
    assert min(wild.events, wild.faults_seen) > 100
    assert wild.engine.box[mb.MISCOUNTS] == 0
    assert wild.engine.instructions == calm.engine.instructions + counts[IRQ] + counts[NMI]
