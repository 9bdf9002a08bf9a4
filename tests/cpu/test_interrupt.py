"""Delivery through the guest's IDT: what the CPU raises, what is queued, and faults on the way."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import WRITE, CpuExit, Event, EventKind
from shadowvm.cpu.interrupt import escalate
from shadowvm.errors import ModelBug
from tests.cpu.machine import CODE, HANDLERS, IDT, TO_USER, USER_CODE, USER_STACK, Machine, P, U, W

SAVE = "mov r8,cr2\n mov r9,[rsp]\n mov r10,[rsp+8]\n mov r12,[rsp+16]\n mov r13,[rsp+32]\n mov r14,rsp\n mov r15w,cs\n"
SAVE_NO_ERROR = "mov r9,-1\n mov r10,[rsp]\n mov r12,[rsp+8]\n mov r13,[rsp+24]\n mov r14,rsp\n mov r15w,cs\n"
NO_ERROR = (1 << 64) - 1
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)


def skip(n: int) -> str:
    return f"{SAVE} add qword [rsp+8],{n}\n add rsp,8\n iretq"


def at_user(machine: Machine, source: str, handlers: dict[int, str], **gate: int) -> int:
    """Run `source` at CPL 3 to its end, an INT 0xf0 whose gate leads to HLT."""
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, f"{source}\n int 0xf0")
    machine.code(0x1F000, "hlt")
    machine.gate(0xF0, 0x1F000, dpl=3)
    for i, (vector, handler) in enumerate(handlers.items()):
        machine.code(HANDLERS + 0x400 * i, handler)
        machine.gate(vector, HANDLERS + 0x400 * i, **gate)
    machine.reset()
    return machine.engine.enter()


def fault_handler(machine: Machine, code: int) -> int:
    """Turn walk faults outside of the low map into #PF until another exit comes."""
    engine, box = machine.engine, machine.engine.box
    while code == CpuExit.WALK_FAULT:
        va, access, _level = machine.exit
        present = box[mb.EXIT_WHY] != 0
        error = box[mb.EXIT_USER] << 2 | (access == 1) << 1 | (access == 2) << 4 | present
        page_fault = Event(EventKind.EXCEPTION, 14, error, va)
        first = engine.vectoring()
        event = escalate(first, page_fault) if first else page_fault
        if event is None:
            return CpuExit.SHUTDOWN
        engine.queue_event(event)
        code = engine.enter()
    return code


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


@pytest.mark.parametrize(
    ("source", "length", "error", "cr2"),
    [
        ("mov rax,[rdi]", 3, 4, 0x7FFF123),
        ("mov [rdi],rax", 3, 6, 0x7FFF0F9),
        ("lock xadd [rdi],rax", 5, 6, 0x7FFF008),
    ],
)
def test_a_queued_page_fault_reaches_the_guest_at_cpl_3(
    machine: Machine, source: str, length: int, error: int, cr2: int
) -> None:
    code = at_user(machine, f"mov edi,{cr2}\n mov rsi,0x77\n {source}", {14: skip(length)})
    assert fault_handler(machine, code) == CpuExit.HLT
    assert [machine.reg(r) for r in (R8, R9, R10, R13)] == [cr2, error, USER_CODE + 10, USER_STACK]
    assert machine.reg(R12) & 3 == 3
    assert machine.reg(R14) == 0x9000 - 48
    assert machine.reg(6) == 0x77
    assert machine.engine.box[mb.VECTOR_COUNTS + 14] == 1


def test_a_page_fault_from_cpl_0_stays_on_its_stack(machine: Machine) -> None:
    machine.gate(14, HANDLERS)
    machine.code(HANDLERS, skip(3))
    code = machine.run("mov rdi,0x7fff000\n mov rsp,0x7ff5\n mov rax,[rdi]\n hlt")
    assert fault_handler(machine, code) == CpuExit.HLT
    assert (machine.reg(R9), machine.reg(R14), machine.reg(4)) == (0, 0x7FF0 - 48, 0x7FF5)


def test_ist_gives_another_stack(machine: Machine) -> None:
    code = at_user(machine, "mov edi,0x7fff000\n mov rax,[rdi]", {14: skip(3)}, ist=3)
    assert fault_handler(machine, code) == CpuExit.HLT
    assert machine.reg(R14) == 0xB000 + 2 * 0x1000 - 48


@pytest.mark.parametrize(
    ("source", "vector", "handler", "error", "rip", "dpl"),
    [
        ("ud2", 6, SAVE_NO_ERROR + "add qword [rsp],2\n iretq", NO_ERROR, 0, 0),
        ("xor ecx,ecx\n div ecx", 0, SAVE_NO_ERROR + "add qword [rsp],2\n iretq", NO_ERROR, 2, 0),
        ("int3", 3, SAVE_NO_ERROR + "iretq", NO_ERROR, 1, 3),
        ("int 0x80", 0x80, SAVE_NO_ERROR + "iretq", NO_ERROR, 2, 3),
        ("int 0x81", 13, skip(2), 0x81 * 8 + 2, 0, 0),
        ("mov eax,0x4440\n mov fs,ax", 13, skip(2), 0x4440, 5, 0),
        ("cli", 13, skip(1), 0, 0, 0),
        ("hlt", 13, skip(1), 0, 0, 0),
        ("nop\n sysenter", 13, skip(2), 0, 1, 0),
        ("rdpmc", 6, SAVE_NO_ERROR + "add qword [rsp],2\n iretq", NO_ERROR, 0, 0),
        ("vmrun", 6, SAVE_NO_ERROR + "add qword [rsp],3\n iretq", NO_ERROR, 0, 0),
        ("rdrand eax", 6, SAVE_NO_ERROR + "add qword [rsp],3\n iretq", NO_ERROR, 0, 0),
        ("rdseed rax", 6, SAVE_NO_ERROR + "add qword [rsp],4\n iretq", NO_ERROR, 0, 0),
    ],
)
def test_the_cpu_s_own_exceptions_are_delivered_inside_the_run(
    machine: Machine, source: str, vector: int, handler: str, error: int, rip: int, dpl: int
) -> None:
    machine.gate(0x81, HANDLERS, dpl=0)
    assert at_user(machine, source, {vector: handler}, dpl=dpl) == CpuExit.HLT
    assert (machine.reg(R9), machine.reg(R10) - USER_CODE) == (error, rip)
    assert machine.engine.box[mb.VECTOR_COUNTS + vector] == 1


RF = 1 << 16


@pytest.mark.parametrize(
    ("source", "vector", "flags", "expected"),
    [
        ("ud2", 6, 16, RF),
        ("cli", 13, 24, RF),
        ("int3", 3, 16, 0),
        ("int 0x80", 0x80, 16, 0),
        ("db 0xf1", 1, 16, 0),
    ],
)
def test_the_frame_of_a_fault_has_rf_set(machine: Machine, source: str, vector: int, flags: int, expected: int) -> None:
    handler = f"mov r12,[rsp+{flags}]\n pushfq\n pop r13\n hlt"
    assert at_user(machine, source, {vector: handler}, dpl=3) == CpuExit.HLT
    assert machine.reg(R12) & RF == expected
    assert not machine.engine.rflags & RF


def test_a_queued_fault_sets_rf_too(machine: Machine) -> None:
    machine.code(CODE, "nop")
    machine.code(HANDLERS, "mov r12,[rsp+24]\n hlt")
    machine.gate(14, HANDLERS)
    machine.reset()
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x1234))
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(R12) & RF


def test_an_interrupt_leaves_rf_alone(machine: Machine) -> None:
    machine.code(CODE, "sti\n nop\n nop")
    machine.code(HANDLERS, "mov r12,[rsp+16]\n hlt")
    machine.gate(0x31, HANDLERS)
    machine.reset()
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x31))
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(R12) & (RF | 1 << 9) == 1 << 9


def test_general_protection_in_a_row_does_not_become_a_double_fault(machine: Machine) -> None:
    source = "\n".join(f"mov eax,{sel}\n mov fs,ax" for sel in (0x4440, 0x4448, 0x4450, 0x4458))
    assert at_user(machine, source, {13: skip(2)}) == CpuExit.HLT
    assert machine.reg(R9) == 0x4458
    assert machine.engine.box[mb.VECTOR_COUNTS + 8] == 0


def test_an_interrupt_waits_for_if(machine: Machine) -> None:
    machine.code(USER_CODE, "hlt")
    machine.code(HANDLERS, SAVE_NO_ERROR + "mov rbx,rcx\n iretq")
    machine.gate(0x31, HANDLERS)
    machine.code(CODE, "cli\n nop\n nop\n " + TO_USER)
    machine.reset()
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x31))
    machine.gate(13, 0x1F000)
    machine.code(0x1F000, "hlt")
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(R10), machine.reg(R12) & 3) == (USER_CODE, 3)
    assert not machine.engine.irq_pending


def test_an_interrupt_waits_for_the_sti_shadow(machine: Machine) -> None:
    machine.code(HANDLERS, "mov rbx,rdx\n iretq")
    machine.gate(0x31, HANDLERS)
    machine.code(CODE, "mov edx,1\n sti\n mov edx,2\n mov edx,3\n mov edx,4\n hlt")
    machine.reset()
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x31))
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(3), machine.reg(2)) == (2, 4)


def test_without_an_idt_an_exception_is_a_shutdown(machine: Machine) -> None:
    machine.code(CODE, "ud2")
    machine.reset()
    machine.engine.env[0x190 // 8 + 2] = 0  # IDT limit
    assert machine.engine.enter() == CpuExit.SHUTDOWN
    machine.code(CODE, "mov eax,3\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT


def test_a_bad_gate_makes_a_double_fault_and_a_bad_double_fault_gate_a_shutdown(machine: Machine) -> None:
    handlers = {8: SAVE + "hlt"}
    machine.gate(13, 0, kind=5)
    assert at_user(machine, "cli", handlers, ist=2) == CpuExit.HLT
    assert (machine.reg(R9), machine.reg(R14)) == (0, 0xC000 - 48)
    machine.gate(8, 0, kind=5)
    machine.code(CODE, TO_USER)
    machine.reset()
    assert machine.engine.enter() == CpuExit.SHUTDOWN


def test_a_queued_fault_with_a_bad_gate_is_a_double_fault(machine: Machine) -> None:
    machine.code(HANDLERS, SAVE + "hlt")
    machine.gate(8, HANDLERS, ist=1)
    machine.gate(13, HANDLERS)
    machine.gate(14, 0, kind=5)
    machine.code(CODE, "hlt")
    machine.reset()
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x1234))
    assert machine.engine.enter() == CpuExit.HLT
    counts = machine.engine.box[mb.VECTOR_COUNTS : mb.VECTOR_COUNTS + 16].tolist()
    assert (counts[8], sum(counts)) == (1, 1)
    assert machine.reg(R10) == CODE


def test_a_handler_that_faults_at_once_uses_up_the_budget() -> None:
    """With an IST the stack never overflows: a real CPU would be lost too, but a quantum must end."""
    machine = Machine()
    machine.gate(6, HANDLERS, ist=1)
    machine.code(HANDLERS, "ud2")
    for _ in range(2):
        machine.engine.set_budget(1000)
        assert machine.run("nop\n ud2") == CpuExit.QUANTUM
        assert machine.engine.box[mb.VECTOR_COUNTS + 6] == 999
        machine.engine.box[mb.VECTOR_COUNTS + 6] = 0
    assert machine.engine.instructions == 2


def test_a_handler_that_cannot_be_fetched_uses_up_the_budget() -> None:
    """Each fault is injected from outside, and the delivery gets through every time."""
    machine = Machine()
    machine.gate(14, 0x200000, ist=1)
    machine.code(CODE, "hlt")
    machine.reset()
    machine.engine.set_budget(10)
    for _ in range(10):
        machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x200000))
        assert machine.engine.enter() == CpuExit.WALK_FAULT
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x200000))
    assert machine.engine.enter() == CpuExit.QUANTUM
    machine.engine.set_budget(1)
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.engine.instructions == 0


def test_a_null_task_register_does_not_abort_the_process(machine: Machine) -> None:
    machine.code(CODE, "xor eax,eax\n ltr ax\n " + TO_USER)
    machine.code(USER_CODE, "int3")
    machine.gate(3, HANDLERS, dpl=3)
    machine.reset()
    assert machine.engine.enter() == CpuExit.SHUTDOWN


@pytest.mark.parametrize("page", [IDT, 0x2000, 0x4000, 0x8000])
def test_a_fault_during_delivery_is_an_exit_and_the_event_can_go_again(machine: Machine, page: int) -> None:
    at = machine.map(page, page, 0)
    machine.code(USER_CODE, "mov rbx,5\n int 0x44\n hlt")
    machine.code(HANDLERS, SAVE_NO_ERROR + "hlt")
    machine.ram.q[at] = page | P | W | U
    machine.gate(0x44, HANDLERS, dpl=3)
    machine.code(CODE, TO_USER)
    machine.reset()
    before = machine.engine.instructions
    machine.code(CODE + 0x100, "hlt")
    # From the IRETQ on, the page is gone.
    if machine.engine.counting:
        machine.engine.set_budget(6)
        assert machine.engine.enter() == CpuExit.QUANTUM
        machine.engine.set_budget(1 << 40)
    else:
        machine.code(CODE + 0x40, "hlt")
        machine.gate(0x45, CODE + 0x40)
        machine.engine.rip = CODE
        machine.code(USER_CODE, "mov rdx,[0x7fff000]\n mov rbx,5\n int 0x44\n hlt")
        machine.reset()
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        machine.engine.rip += 8
    start = machine.engine.rip
    machine.ram.q[at] = 0
    machine.engine.flush_tlb()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.exit[0] >> 12 == (page if page != 0x8000 else 0x8FFF) >> 12
    assert machine.engine.rip == start + 5
    event = machine.engine.vectoring()
    assert event == Event(EventKind.SOFTWARE, 0x44, None, None, start + 7)
    assert machine.engine.box[mb.VECTOR_COUNTS + 0x44] == 0
    machine.ram.q[at] = page | P | W | U
    machine.engine.requeue(event)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(R10) == start + 7
    assert machine.engine.box[mb.VECTOR_COUNTS + 0x44] == 1
    assert machine.engine.vectoring() is None
    if machine.engine.counting:
        assert machine.engine.instructions - before == 6 + 2 + 7


def test_a_page_fault_whose_stack_is_absent_escalates_to_a_double_fault(machine: Machine) -> None:
    machine.map(0x8000, 0x8000, 0)
    machine.code(CODE, "mov rsp,0x6000\n " + TO_USER)
    machine.code(USER_CODE, "mov edi,0x7fff000\n mov rax,[rdi]")
    machine.gate(14, HANDLERS)
    machine.code(HANDLERS + 0x400, SAVE + "hlt")
    machine.gate(8, HANDLERS + 0x400, ist=2)
    machine.reset()
    assert fault_handler(machine, machine.engine.enter()) == CpuExit.HLT
    assert (machine.reg(R9), machine.reg(R14), machine.reg(R10)) == (0, 0xC000 - 48, USER_CODE + 5)
    machine.gate(8, HANDLERS + 0x400)
    machine.reset()
    assert fault_handler(machine, machine.engine.enter()) == CpuExit.SHUTDOWN


def test_a_fault_on_the_handler_s_stack_reports_the_store(machine: Machine) -> None:
    machine.map(0x8000, 0x8000, P | U)
    assert at_user(machine, "ud2", {6: "hlt"}) == CpuExit.WALK_FAULT
    assert machine.exit[1] == WRITE
    assert machine.engine.vectoring() == Event(EventKind.EXCEPTION, 6)


@pytest.mark.parametrize("prefix", ["", "db 0x48\n "])
def test_syscall_and_sysret_change_privilege(machine: Machine, prefix: str) -> None:
    msrs = "".join(
        f"mov ecx,{msr}\n mov eax,{value & 0xFFFFFFFF}\n mov edx,{value >> 32}\n wrmsr\n "
        for msr, value in ((0xC0000081, 0x10000800000000), (0xC0000082, 0x12000), (0xC0000084, 0x200))
    )
    machine.code(CODE, msrs + TO_USER)
    machine.code(USER_CODE, prefix + "syscall\n mov r12w,cs\n hlt")
    machine.code(0x12000, "mov r8w,cs\n mov r9w,ss\n pushfq\n pop r10\n mov rbx,r11\n mov rdx,rcx\n o64 sysret")
    machine.code(0x1F000, "hlt")
    machine.gate(13, 0x1F000)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(R8) & 0xFFFF, machine.reg(R9) & 0xFFFF, machine.reg(R12) & 0xFFFF) == (8, 0x10, 0x23)
    assert (machine.reg(R10) & 0x200, machine.reg(3) & 0x200) == (0, 0x200)
    assert machine.reg(2) == USER_CODE + 2 + bool(prefix)


def test_syscall_without_sce_is_undefined(machine: Machine) -> None:
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, "syscall")
    machine.code(HANDLERS, SAVE_NO_ERROR + "hlt")
    machine.gate(6, HANDLERS)
    machine.reset()
    machine.engine.efer &= ~1
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(R10) == USER_CODE


def test_one_slot_for_events_and_error_codes_that_fit() -> None:
    machine = Machine()
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x1000))
    with pytest.raises(ModelBug):
        machine.engine.queue_event(Event(EventKind.EXCEPTION, 13, 0))
    with pytest.raises(ModelBug):
        Machine().engine.queue_event(Event(EventKind.EXCEPTION, 6, 0))


def test_double_fault_rules_are_those_of_the_manual() -> None:
    def exception(vector: int) -> Event:
        return Event(EventKind.EXCEPTION, vector, 0 if vector in (8, 10, 11, 12, 13, 14) else None)

    double = Event(EventKind.EXCEPTION, 8, 0)
    for first, second, result in (
        (6, 14, exception(14)),
        (0, 13, double),
        (0, 14, exception(14)),
        (14, 14, double),
        (14, 13, double),
        (14, 6, exception(6)),
        (13, 11, double),
        (8, 14, None),
        (8, 13, None),
    ):
        assert escalate(exception(first), exception(second)) == result
    assert escalate(Event(EventKind.INTERRUPT, 0x30), exception(14)) == exception(14)
