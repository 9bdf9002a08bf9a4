"""Events in real mode, 16- and 32-bit protected mode, virtual-8086 and compatibility mode."""

from __future__ import annotations

import struct

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.cpu.segments import CS, SS, Segment, TableRegister
from tests.cpu.machine import (
    CODE,
    GDT,
    HANDLERS,
    IDT,
    RAX,
    RBX,
    RCX,
    RDX,
    RSI,
    STACK,
    TO_USER,
    TO_USER32,
    TSS,
    USER_CODE,
    USER_STACK,
    FlatMachine,
    Machine,
    P,
    U,
    W,
)

SAVE32 = "mov eax,[esp]\n mov ebx,[esp+4]\n mov ecx,[esp+8]\n mov edx,[esp+12]\n mov esi,esp\n mov edi,cs\n hlt"
SAVE16 = "mov bp,sp\n mov ax,[bp]\n mov bx,[bp+2]\n mov cx,[bp+4]\n mov si,sp\n hlt"


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> FlatMachine:
    return FlatMachine(counting=request.param)


@pytest.mark.parametrize(
    ("source", "vector", "back"),
    [
        ("int 0x21", 0x21, 2),
        ("int3", 3, 1),
        ("db 0xcd,3", 3, 2),
        ("ud2", 6, 0),
        ("db 0xf1", 1, 1),
        ("mov al,127\n inc al\n into", 4, 5),
        ("mov ax,5\n bound ax,[limits]\n limits: dw 0,4", 5, 3),
        ("xor cl,cl\n div cl", 0, 2),
    ],
)
def test_real_mode_goes_through_the_vector_table(machine: FlatMachine, source: str, vector: int, back: int) -> None:
    machine.vector(vector, 0x5000)
    machine.code(0x5000, SAVE16, 16)
    assert machine.real(source) == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX)) == (CODE + back, 0)
    assert machine.reg(RSI) == CODE - 6
    assert machine.engine.box[mb.VECTOR_COUNTS + vector] == 1


def test_a_real_mode_handler_returns(machine: FlatMachine) -> None:
    machine.vector(0x21, 0x5000)
    machine.code(0x5000, "inc bx\n iret", 16)
    assert machine.real("xor bx,bx\n int 0x21\n int 0x21\n int 0x21\n hlt") == CpuExit.HLT
    assert (machine.reg(RBX), machine.engine.segment(CS).selector) == (3, 0)
    if machine.engine.counting:
        assert machine.engine.instructions == 1 + 3 * 3 + 1


def test_a_real_mode_interrupt_comes_when_if_is_set(machine: FlatMachine) -> None:
    machine.vector(8, 0x5000)
    machine.code(0x5000, "mov dx,bx\n iret", 16)
    machine.code(CODE, "mov bx,1\n sti\n mov bx,2\n mov bx,3\n hlt", 16)
    machine.engine.init_reset()
    machine.engine.set_segment(CS, Segment(0, 0, 0xFFFF, 0x9B00))
    machine.engine.rip, machine.engine.env[4] = CODE, CODE
    machine.load()
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 8))
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RDX) & 0xFFFF == 2


def test_a_real_mode_exception_beyond_the_idt_shuts_down(machine: FlatMachine) -> None:
    machine.code(0x2040, "dw 0\n dw 7\n dd 0", 16)
    assert machine.real("lidt [0x2042]\n int 0x21") == CpuExit.SHUTDOWN


@pytest.mark.parametrize(
    ("source", "vector", "error", "back", "dpl"),
    [
        ("int 0x80", 0x80, None, 2, 3),
        ("int3", 3, None, 1, 3),
        ("ud2", 6, None, 0, 0),
        ("db 0xf1", 1, None, 1, 0),
        ("mov al,127\n inc al\n into", 4, None, 5, 3),
        ("int 0x81", 13, 0x81 * 8 + 2, 0, 0),
        ("mov eax,0x4440\n mov fs,ax", 13, 0x4440, 5, 0),
        ("cli", 13, 0, 0, 0),
        ("mov eax,0x43\n mov ss,ax", 12, 0x40, 5, 0),
    ],
)
def test_events_of_32_bit_user_code(
    machine: FlatMachine, source: str, vector: int, error: int | None, back: int, dpl: int
) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(vector, HANDLERS, dpl=dpl)
    machine.gate(0x81, HANDLERS, dpl=0)
    machine.code(USER_CODE, source, 32)
    machine.code(CODE, TO_USER32, 32)
    machine.reset()
    absent = 0x0000730000000000 | 0xFFFF
    machine.write(GDT + 0x40, struct.pack("<Q", absent))
    assert machine.engine.enter() == CpuExit.HLT
    frame = [machine.reg(r) for r in (RAX, RBX, RCX)]
    if error is None:
        assert (frame[0], frame[1]) == (USER_CODE + back, 0x23)
    else:
        assert frame == [error, USER_CODE + back, 0x23]
    assert machine.reg(RSI) == 0x9000 - 20 - (4 if error is not None else 0)
    assert machine.engine.segment(SS).selector == 0x10


def test_a_16_bit_gate_pushes_words(machine: FlatMachine) -> None:
    machine.gate(0x30, 0x5000, kind=6)
    machine.code(0x5000, SAVE16, 16)
    assert machine.protected("nop\n int 0x30") == CpuExit.HLT
    assert machine.reg(RSI) == STACK - 6
    assert (machine.reg(RAX) & 0xFFFF, machine.reg(RBX) & 0xFFFF) == (CODE + 3, 8)


def test_a_fault_while_a_32_bit_event_is_delivered_is_an_exit_and_it_can_go_again(machine: FlatMachine) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(0x80, HANDLERS, dpl=3)
    machine.code(USER_CODE, "int 0x80", 32)
    machine.code(CODE, TO_USER32, 32)
    machine.reset()
    table = machine.ram.q[machine.ram.q[machine.root >> 3] >> 12 << 9] >> 12 << 9
    for page in (IDT, TSS, 0x8000):
        machine.ram.q[table + (page >> 12)] &= ~P
    machine.ram.q[table + (0x8000 >> 12)] |= P
    for page in (IDT, TSS):
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        assert machine.exit[0] >> 12 == page >> 12
        event = machine.engine.vectoring()
        assert event == Event(EventKind.SOFTWARE, 0x80, None, None, USER_CODE + 2)
        assert machine.engine.rip == USER_CODE
        machine.ram.q[table + (page >> 12)] |= P | W | U
        machine.engine.requeue(event)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RAX) == USER_CODE + 2
    assert machine.engine.box[mb.VECTOR_COUNTS + 0x80] == 1


def test_a_queued_page_fault_has_its_error_code_in_32_bit_code(machine: FlatMachine) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(14, HANDLERS)
    assert machine.protected("mov eax,[0x12345678]") == CpuExit.WALK_FAULT
    assert machine.exit[0] == 0x12345678
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 2, 0x12345678))
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.engine.cr2) == (2, CODE, 0x12345678)


def test_double_and_triple_faults_of_32_bit_code(machine: FlatMachine) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(8, HANDLERS)
    machine.gate(13, HANDLERS, kind=2)
    assert machine.protected("mov eax,0x4440\n mov fs,ax") == CpuExit.HLT
    assert machine.reg(RAX) == 0
    machine.gate(8, HANDLERS, kind=2)
    assert machine.protected("mov eax,0x4440\n mov fs,ax") == CpuExit.SHUTDOWN


@pytest.mark.parametrize(("source", "error"), [("ud2", 6 * 8 + 3), ("int 6", 6 * 8 + 2)])
def test_ext_in_the_error_code_tells_events_that_the_program_did_not_ask_for(
    machine: FlatMachine, source: str, error: int
) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(13, HANDLERS)
    machine.gate(6, HANDLERS, kind=2)
    assert machine.protected(source) == CpuExit.HLT
    assert machine.reg(RAX) == error


def test_a_user_stack_switch_without_a_task_register_is_no_abort(machine: FlatMachine) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(6, HANDLERS)
    machine.code(USER_CODE, "ud2", 32)
    machine.code(CODE, TO_USER32, 32)
    machine.reset()
    machine.engine.tr = Segment(0, 0, 0, 0)
    assert machine.engine.enter() == CpuExit.SHUTDOWN


def test_ltr_refuses_a_null_selector_and_loads_others(machine: FlatMachine) -> None:
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(13, HANDLERS)
    assert machine.protected("mov eax,3\n ltr ax") == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX)) == (0, CODE + 5)
    machine.code(CODE, "mov word [0x6000],0x28\n ltr [0x6000]\n str eax\n hlt", 32)
    machine.reset()
    machine.engine.tr = Segment(0, 0, 0, 0)
    machine.ram.b[GDT + 0x28 + 5] = 0x89
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.tr == Segment(0x28, TSS, 0x67, 0x8B00)._replace(flags=machine.engine.tr.flags)
    assert machine.engine.tr.flags & 0x8F00 == 0x8B00
    assert machine.ram.b[GDT + 0x28 + 5] == 0x8B


def test_a_task_gate_switches_tasks(machine: FlatMachine) -> None:
    other = 0x6000
    state = [0] * 26
    state[8], state[9], state[14], state[10] = HANDLERS, 2, 0x7800, 0x55  # eip, eflags, esp, eax
    state[18], state[19], state[20], state[21], state[22], state[23] = 0x10, 8, 0x10, 0x10, 0x10, 0x10
    machine.code(HANDLERS, "inc eax\n iret", 32)
    machine.code(CODE, "mov ebx,7\n int 0x20\n mov ecx,8\n hlt", 32)
    machine.reset()
    machine.write(other, struct.pack("<26I", *state))
    machine.write(GDT + 0x40, struct.pack("<Q", 0x67 | other << 16 | 0x89 << 40))
    machine.write(IDT + 8 * 0x20, struct.pack("<HHBBH", 0, 0x40, 0, 0x85, 0))
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX)) == (7, 8)
    assert struct.unpack_from("<I", machine.ram.b, other + 40)[0] == 0x56


def to_vm86(eflags: int = 0x20202) -> str:
    segments = "".join("push 0x200\n" for _ in range(4))
    return f"{segments} push 0x100\n push 0x800\n push {eflags:#x}\n push 0x1000\n push 0\n iret"


def test_virtual_8086_mode_has_real_mode_addresses_and_protected_mode_events(machine: FlatMachine) -> None:
    machine.code(0x10000, "mov ax,ds\n mov bx,0x1234\n mov [0x10],bx\n push bx\n ud2", 16, 0)
    save = "mov eax,[esp]\n mov ecx,[esp+4]\n mov edx,[esp+8]\n mov esi,esp\n mov edi,ds\n mov ebp,[esp+16]\n hlt"
    machine.code(HANDLERS, save, 32)
    machine.gate(6, HANDLERS)
    machine.code(CODE, to_vm86(), 32)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert struct.unpack_from("<H", machine.ram.b, 0x2010)[0] == 0x1234
    assert struct.unpack_from("<H", machine.ram.b, 0x17FE)[0] == 0x1234
    assert (machine.reg(RAX), machine.reg(RCX), machine.reg(RDX) & 0x20000) == (10, 0x1000, 0x20000)
    assert (machine.reg(RSI), machine.reg(5)) == (0x9000 - 36, 0x100)


@pytest.mark.parametrize("source", ["int 0x21", "cli", "pushf", "hlt", "iret"])
def test_virtual_8086_mode_without_iopl_gets_faults(machine: FlatMachine, source: str) -> None:
    machine.code(0x10000, f"nop\n {source}", 16, 0)
    machine.code(HANDLERS, SAVE32, 32)
    machine.gate(13, HANDLERS)
    machine.code(CODE, to_vm86(), 32)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.reg(RCX)) == (0, 1, 0x1000)


def compatibility(machine: Machine, source: str) -> int:
    """Run `source` as 32-bit user code under a 64-bit kernel."""
    machine.code(CODE, TO_USER.replace("push 0x23", "push 0x3b"))
    machine.code(USER_CODE, source, 32)
    machine.reset()
    machine.write(GDT + 0x38, struct.pack("<Q", 0x00CFFB000000FFFF))
    machine.engine.gdtr = TableRegister(GDT, 0x3F)
    return machine.engine.enter()


@pytest.mark.parametrize(
    ("source", "vector", "back"), [("int 0x80", 0x80, 2), ("ud2", 6, 0), ("int3", 3, 1), ("syscall", 6, 0)]
)
def test_events_of_compatibility_mode_reach_the_64_bit_kernel(source: str, vector: int, back: int) -> None:
    machine = Machine()
    machine.gate(vector, HANDLERS, dpl=3)
    machine.code(HANDLERS, "mov rax,[rsp]\n mov rbx,[rsp+8]\n mov rcx,[rsp+24]\n hlt")
    assert compatibility(machine, f"nop\n {source}") == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.reg(RCX)) == (USER_CODE + 1 + back, 0x3B, USER_STACK)


def test_sysenter_leads_from_32_to_64_bits_and_sysexit_back() -> None:
    machine = Machine()
    e = machine.engine
    for index, value in ((0x174, 0x08), (0x175, 0x9000), (0x176, HANDLERS)):
        e.set_msr(index, value)
    machine.code(HANDLERS, "mov r8w,cs\n mov r9w,ss\n mov r10,rsp\n pushfq\n pop r11\n mov edx,0x10100\n sysexit")
    machine.code(0x10100, "mov ebx,cs\n mov esi,esp\n int3", 32)
    machine.gate(3, 0x1F000, dpl=3)
    machine.code(0x1F000, "hlt")
    machine.code(CODE, TO_USER.replace("push 0x23", "push 0x3b"))
    machine.code(USER_CODE, "mov ecx,0x6f00\n sysenter", 32)
    machine.reset()
    gdt = {3: 0x00CFFB000000FFFF, 4: 0x00CFF3000000FFFF, 7: 0x00CFFB000000FFFF}
    for i, entry in gdt.items():
        machine.write(GDT + 8 * i, struct.pack("<Q", entry))
    e.gdtr = TableRegister(GDT, 0x3F)
    machine.code(CODE, TO_USER.replace("push 0x23", "push 0x3b").replace("push 0x1b", "push 0x23"))
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(8) & 0xFFFF, machine.reg(9) & 0xFFFF, machine.reg(10)) == (8, 0x10, 0x9000)
    assert machine.reg(11) & 0x200 == 0
    assert (machine.reg(RBX), machine.reg(RSI)) == (0x1B, 0x6F00)


def test_sysenter_of_32_bit_code(machine: FlatMachine) -> None:
    e = machine.engine
    for index, value in ((0x174, 0x08), (0x175, 0x9000), (0x176, HANDLERS)):
        e.set_msr(index, value)
    machine.code(HANDLERS, "mov eax,cs\n mov ebx,esp\n hlt", 32)
    machine.code(USER_CODE, "sysenter", 32)
    machine.code(CODE, TO_USER32, 32)
    machine.reset()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), e.cpl) == (8, 0x9000, 0)
