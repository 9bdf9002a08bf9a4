"""Single step, hardware breakpoints, NMIs, the shadows of STI and MOV SS, and interrupts taken back."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, RBX, RCX, RDX, Machine, P, U, W

IRQ, NMI = Event(EventKind.INTERRUPT, 0x40), Event(EventKind.NMI, 2)
LOG = "mov r8,[rsp]\n mov [r9],r8\n add r9,8\n mov r10,dr6\n iretq"
TF = "pushfq\n or dword [rsp],0x100\n popfq"


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


def logged(machine: Machine, source: str, vector: int = 1, handler: str = LOG) -> list[int]:
    """Run with a handler that writes its return addresses down; those, from CODE on."""
    machine.code(CODE, source)
    machine.code(HANDLERS, handler)
    machine.gate(vector, HANDLERS)
    machine.reset()
    machine.engine.set_reg(9, 0x6000)
    assert machine.engine.enter() == CpuExit.HLT
    return [machine.ram.q[i] - CODE for i in range(0x6000 >> 3, machine.reg(9) >> 3)]


def test_single_step_traps_after_each_instruction(machine: Machine) -> None:
    start = 1 + 7 + 1
    source = f"{TF}\n nop\n xor ecx,ecx\n pushfq\n and dword [rsp],~0x100\n popfq\n hlt"
    assert logged(machine, source) == [start + n for n in (1, 3, 4, 11, 12)]
    assert machine.reg(10) & 0x4000


def test_a_single_step_waits_out_mov_ss(machine: Machine) -> None:
    source = f"mov eax,0x10\n {TF}\n nop\n mov ss,eax\n nop\n nop\n pushfq\n and dword [rsp],~0x100\n popfq\n hlt"
    assert logged(machine, source)[:3] == [5 + 9 + n for n in (1, 4, 5)]


def test_a_step_of_ours_inside_a_single_stepped_guest_traps(machine: Machine) -> None:
    machine.code(HANDLERS, LOG)
    machine.gate(1, HANDLERS)
    machine.code(CODE, f"{TF}\n nop\n nop\n hlt")
    machine.reset()
    machine.engine.set_reg(9, 0x6000)
    for _ in range(3):
        assert machine.engine.step() == CpuExit.QUANTUM
    assert machine.engine.rip == CODE + 9


def test_an_instruction_breakpoint_stops_before_it(machine: Machine) -> None:
    target = CODE + 21
    source = f"mov eax,{target}\n mov dr1,rax\n mov eax,0x40c\n mov dr7,rax\n mov ebx,1\n l: inc ebx\n mov edx,7\n hlt"
    handler = "mov r8,[rsp]\n mov [r9],r8\n add r9,8\n mov r10,dr6\n mov r11,rbx\n or dword [rsp+16],0x10000\n iretq"
    assert logged(machine, source, handler=handler) == [21]
    assert machine.reg(10) & 0xF == 2
    assert (machine.reg(11), machine.reg(RBX), machine.reg(RDX)) == (2 - 1, 2, 7)


def test_breakpoints_set_from_outside_are_kept_out_of_saved_states(machine: Machine) -> None:
    e = machine.engine
    machine.code(CODE, "nop\n inc ebx\n hlt")
    machine.code(HANDLERS, "mov edx,9\n hlt")
    machine.gate(1, HANDLERS)
    machine.reset()
    e.set_dr(0, CODE + 1)
    e.set_dr(7, 0x402)
    state = e.save()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RDX), machine.reg(RBX)) == (9, 0)
    other = Machine(counting=e.counting)
    other.ram.b[: 1 << 17] = machine.ram.b[: 1 << 17]
    other.engine.restore(state)
    other.load()
    assert other.engine.enter() == CpuExit.HLT
    assert other.reg(RDX) == 9
    e.restore(state)
    e.set_dr(7, 0x400)
    machine.load()
    assert e.enter() == CpuExit.HLT
    assert machine.reg(RBX) == 1


def test_an_nmi_needs_no_if_and_blocks_the_next_until_iret(machine: Machine) -> None:
    e = machine.engine
    machine.code(CODE, "xor ebx,ebx\n l: inc ebx\n cmp ebx,50\n jne l\n hlt")
    machine.code(HANDLERS, "inc ecx\n out 0x80,al\n mov rdx,rcx\n iretq")
    machine.gate(2, HANDLERS)
    e.on_out(lambda port, size, value: e.queue_event(NMI) if machine.reg(RCX) < 3 else None)
    machine.reset()
    e.set_reg(RCX, 0)
    e.queue_event(NMI)
    assert e.nmi_pending
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RCX), machine.reg(RDX), machine.reg(RBX)) == (3, 3, 50)
    assert e.box[mb.VECTOR_COUNTS + 2] == 3
    assert not e.nmi_pending


def test_two_nmis_at_once_are_one(machine: Machine) -> None:
    machine.code(CODE, "nop\n hlt")
    machine.code(HANDLERS, "inc ecx\n iretq")
    machine.gate(2, HANDLERS)
    machine.reset()
    machine.engine.set_reg(RCX, 0)
    machine.engine.queue_event(NMI)
    machine.engine.queue_event(NMI)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RCX) == 1


def test_a_faulting_nmi_delivery_goes_again_and_blocks_then(machine: Machine) -> None:
    e = machine.engine
    at = machine.map(0x3000, 0x3000, 0)
    machine.code(CODE, "nop\n hlt")
    machine.code(HANDLERS, "inc ecx\n hlt\n iretq")
    machine.ram.q[at] = 0x3000 | P | W | U
    machine.gate(2, HANDLERS)
    machine.reset()
    machine.ram.q[at] = 0
    e.flush_tlb()
    e.set_reg(RCX, 0)
    e.queue_event(NMI)
    assert e.enter() == CpuExit.WALK_FAULT
    event = e.vectoring()
    assert event == NMI
    machine.ram.q[at] = 0x3000 | P | W | U
    e.requeue(event)
    assert e.enter() == CpuExit.HLT
    e.queue_event(NMI)
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RCX), e.nmi_pending) == (2, False), "the IRETQ let it in"


@pytest.mark.parametrize("event", [IRQ, NMI])
def test_an_interrupt_waits_for_the_mov_ss_shadow(event: Event) -> None:
    machine = Machine()
    e = machine.engine
    machine.code(HANDLERS, "mov rdx,[rsp]\n iretq")
    machine.gate(event.vector, HANDLERS)
    machine.code(CODE, "mov eax,0x10\n sti\n nop\n mov ss,eax\n mov ecx,1\n mov ecx,2\n hlt")
    machine.reset()
    for _ in range(4):
        e.step()
    assert e.rip == CODE + 9
    e.queue_event(event)
    assert not e.irq_window_open
    assert e.enter() == CpuExit.HLT
    assert machine.reg(RDX) == CODE + 9 + 5


def test_an_interrupt_can_be_taken_back(machine: Machine) -> None:
    e = machine.engine
    machine.code(CODE, "nop\n hlt\n sti\n nop\n hlt")
    machine.reset()
    e.queue_event(IRQ)
    assert e.enter() == CpuExit.HLT
    assert e.irq_pending
    e.cancel_irq()
    assert not e.irq_pending
    assert e.enter() == CpuExit.HLT
    assert e.box[mb.VECTOR_COUNTS + 0x40] == 0


def test_the_interrupt_window_is_if_without_a_shadow() -> None:
    machine = Machine()
    e = machine.engine
    machine.code(CODE, "sti\n nop\n nop\n cli\n nop\n hlt")
    machine.reset()
    seen = []
    for _ in range(5):
        e.step()
        seen.append(e.irq_window_open)
    assert seen == [False, True, True, False, False]


def test_a_delivery_costs_one_of_the_budget_but_is_no_instruction() -> None:
    machine = Machine()
    e = machine.engine
    machine.code(HANDLERS, "iretq")
    machine.gate(0x40, HANDLERS)
    machine.code(CODE, "sti\n nop\n l: jmp l")
    machine.reset()
    e.queue_event(IRQ)
    e.set_budget(10)
    assert e.enter() == CpuExit.QUANTUM
    assert e.instructions == 9
    e.queue_event(IRQ)
    e.set_budget(0)
    assert e.enter() == CpuExit.QUANTUM
    assert (e.irq_pending, e.instructions) == (True, 9)


WATCH = "mov eax,{at}\n mov dr2,rax\n mov eax,{dr7}\n mov dr7,rax\n"


def dr7(kind: int, length: int) -> int:
    return 0x400 | 3 << 4 | kind << 24 | {1: 0, 2: 1, 4: 3, 8: 2}[length] << 26


@pytest.mark.parametrize(
    ("kind", "length", "access", "hit"),
    [
        (1, 4, "mov [0x5010],ecx", True),
        (1, 4, "mov [0x5013],cl", True),
        (1, 4, "mov [0x500d],ecx", True),
        (1, 4, "mov [0x500c],ecx", False),
        (1, 4, "mov ecx,[0x5010]", False),
        (3, 4, "mov ecx,[0x5010]", True),
        (3, 8, "mov cl,[0x5017]", True),
        (3, 1, "mov cl,[0x5011]", False),
        (1, 4, "lock xadd [0x5010],ecx", True),
        (3, 2, "push qword [0x500a]", True),
        (1, 4, "call [0x5020]", False),
    ],
)
def test_a_data_breakpoint_traps_after_the_access(
    machine: Machine, kind: int, length: int, access: str, hit: bool
) -> None:
    machine.ram.q[0x5020 >> 3] = 0x12000
    machine.code(0x12000, "ret")
    start = machine.code(CODE, WATCH.format(at=0x5010, dr7=dr7(kind, length)))
    size = machine.code(CODE + start, access)
    source = f"{WATCH.format(at=0x5010, dr7=dr7(kind, length))} {access}\n mov ebx,3\n mov ecx,[0x5800]\n hlt"
    handler = f"{LOG.replace('iretq', '')} xor eax,eax\n mov dr6,rax\n iretq"
    assert logged(machine, source, handler=handler) == ([start + size] if hit else [])
    assert not hit or machine.reg(10) & 0xF == 4
    assert machine.reg(RBX) == 3
    if machine.engine.counting:
        call = 1 if "call" in access else 0
        assert machine.engine.instructions == 4 + 1 + 3 + call + hit * 7


def test_a_data_breakpoint_set_from_outside_sees_every_hit_and_goes_away(machine: Machine) -> None:
    e = machine.engine
    machine.code(HANDLERS, "inc edx\n iretq")
    machine.gate(1, HANDLERS)
    machine.code(CODE, "mov ecx,5\n mov edi,0x5010\n rep stosb\n l: inc dword [0x5010]\n dec ebx\n jnz l\n hlt")
    for enabled, count in ((True, 4 + 6), (False, 0)):
        machine.reset()
        e.set_reg(RDX, 0)
        e.set_reg(RBX, 6)
        e.set_dr(2, 0x5010)
        e.set_dr(7, dr7(1, 4) if enabled else 0x400)
        assert e.enter() == CpuExit.HLT
        assert machine.reg(RDX) == count
    assert e.box[mb.WATCHED] == 0


def test_a_hit_of_an_instruction_that_faults_is_forgotten(machine: Machine) -> None:
    e = machine.engine
    machine.code(HANDLERS, "inc edx\n iretq")
    machine.gate(1, HANDLERS)
    machine.code(CODE, "mov esi,0x5010\n mov edi,0x200000\n movsd\n hlt")
    machine.reset()
    e.set_reg(RDX, 0)
    e.set_dr(2, 0x5010)
    e.set_dr(7, dr7(3, 4))
    assert e.enter() == CpuExit.WALK_FAULT
    assert e.box[mb.WATCH_HITS] == 0
    machine.map(0x200000, 0x20000, P | W | U)
    assert e.enter() == CpuExit.HLT
    assert machine.reg(RDX) == 1


DETECTED = "inc edx\n mov r8,[rsp]\n mov r9,dr6\n mov r10,dr7\n iretq"


@pytest.mark.parametrize("access", ["mov dr0,rax", "mov dr6,rax", "mov rax,dr3", "mov rax,dr7"])
def test_general_detect_traps_before_a_mov_of_a_debug_register_once(machine: Machine, access: str) -> None:
    machine.code(HANDLERS, DETECTED)
    machine.gate(1, HANDLERS)
    arm = "xor edx,edx\n xor eax,eax\n mov dr6,rax\n mov ecx,0x2400\n mov dr7,rcx\n"
    machine.code(CODE, f"{arm} here: {access}\n mov r11,here\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RDX), machine.reg(8), machine.reg(10)) == (1, machine.reg(11), 0x400)
    assert machine.reg(9) == 0xFFFF2FF0


@pytest.mark.parametrize("register", ["dr6", "dr7"])
def test_dr6_and_dr7_have_32_bits(machine: Machine, register: str) -> None:
    machine.code(HANDLERS, "inc edx\n add rsp,8\n add qword [rsp],3\n iretq")
    machine.gate(13, HANDLERS)
    machine.code(CODE, f"xor edx,edx\n mov rax,0x100000400\n mov {register},rax\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RDX) == 1
