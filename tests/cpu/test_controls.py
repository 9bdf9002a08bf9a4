"""VM exits at instructions: which, with what state, and going past them."""

from __future__ import annotations

import pytest

from shadowvm.cpu import layout as lay
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.cpu.segments import FS, Segment
from tests.cpu.machine import CODE, HANDLERS, RAX, RBX, RCX, RDX, TO_USER, USER_CODE, FlatMachine, Machine

TF = 1 << 8


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    machine = Machine(counting=request.param)
    controls = machine.engine.controls
    controls.cr = controls.msr = controls.cpuid = True
    return machine


def length(machine: Machine) -> int:
    return machine.engine.box[mb.EXIT_INSN_LEN]


@pytest.mark.parametrize(
    ("source", "cr", "gpr", "size"),
    [
        ("mov cr0,rbx", 0, 3, 3),
        ("mov cr4,r12", 4, 12, 4),
        ("mov cr8,rdi", 8, 7, 4),
        ("db 0x66,0x2e\n mov cr0,rdx", 0, 2, 5),
    ],
)
def test_a_control_register_write_is_an_exit_before_it_happens(
    machine: Machine, source: str, cr: int, gpr: int, size: int
) -> None:
    assert machine.run(f"mov esi,7\n cmp esi,7\n {source}\n mov esi,8\n hlt") == CpuExit.CR_WRITE
    e, box = machine.engine, machine.engine.box
    before = e.instructions
    assert (box[mb.EXIT_CR], box[mb.EXIT_GPR], length(machine), e.rip) == (cr, gpr, size, CODE + 8)
    assert machine.reg(6) == 7
    assert e.rflags & 0x40
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert machine.reg(6) == 8
    assert not e.counting or (before, e.instructions) == (2, 5)


def test_what_the_hypervisor_loads_is_what_the_guest_reads(machine: Machine) -> None:
    assert machine.run("mov eax,5\n mov cr8,rax\n mov rbx,cr8\n mov rcx,cr0\n hlt") == CpuExit.CR_WRITE
    e = machine.engine
    e.cr8 = machine.reg(e.box[mb.EXIT_GPR])
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), e.cr8) == (5, e.cr0, 5)


@pytest.mark.parametrize(
    "source", ["lmsw bx", "mov [0x6000],ebx\n lmsw [0x6000]", "mov ebp,0x5ff0\n db 0x67\n lmsw [ebp+0x10]"]
)
def test_lmsw_and_clts_are_no_exits(machine: Machine, source: str) -> None:
    machine.write(0x6000, b"\x0e\0")
    assert machine.run(f"mov ebx,0xe\n {source}\n mov rcx,cr0\n clts\n mov rdx,cr0\n hlt") == CpuExit.HLT
    assert machine.reg(RCX) & 0xF == 0xF
    assert machine.reg(RDX) & 0xF == 7
    assert machine.engine.box[mb.INTERCEPTS] == 2


def test_lmsw_from_an_absent_page_is_a_walk_fault_at_it(machine: Machine) -> None:
    assert machine.run("nop\n lmsw [0x200000]") == CpuExit.WALK_FAULT
    assert (machine.engine.rip, machine.exit[0]) == (CODE + 1, 0x200000)


def test_clts_makes_the_fpu_usable(machine: Machine) -> None:
    machine.gate(7, HANDLERS)
    machine.code(HANDLERS, "mov edi,7\n clts\n iretq")
    machine.code(CODE, "fninit\n hlt")
    machine.reset()
    machine.engine.cr0 |= 8
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(7), machine.engine.cr0 & 8) == (7, 0)


def test_cpuid_exits_and_goes_on(machine: Machine) -> None:
    code = machine.run("mov eax,1\n mov ecx,2\n cpuid\n mov esi,ebx\n hlt")
    e = machine.engine
    assert (code, machine.reg(RAX), machine.reg(RCX), length(machine)) == (CpuExit.CPUID, 1, 2, 2)
    e.set_reg(RBX, 0x1234)
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert machine.reg(6) == 0x1234


@pytest.mark.parametrize("index", [0x10, 0x1B, 0x277, 0xC0000080, 0xC0010117, 0x4B564D00])
def test_msr_accesses_exit(machine: Machine, index: int) -> None:
    source = f"mov ecx,{index}\n mov eax,3\n mov edx,4\n wrmsr\n xor eax,eax\n rdmsr\n hlt"
    assert machine.run(source) == CpuExit.MSR_WRITE
    e = machine.engine
    assert (machine.reg(RCX), machine.reg(RAX), machine.reg(RDX), length(machine)) == (index, 3, 4, 2)
    e.skip_instruction()
    assert e.enter() == CpuExit.MSR_READ
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT


def test_passed_msrs_do_not_exit(machine: Machine) -> None:
    controls = machine.engine.controls
    for index in (0x176, 0xC0000102):
        controls.pass_msr(index)
    controls.pass_msr(0xC0000100, write=False)
    source = "".join(
        f"mov ecx,{index}\n mov eax,{n}\n cdq\n wrmsr\n rdmsr\n" for n, index in ((5, 0x176), (6, 0xC0000102))
    )
    assert machine.run(f"{source} mov ecx,0xC0000100\n rdmsr\n wrmsr") == CpuExit.MSR_WRITE
    assert (machine.engine.get_msr(0x176), machine.engine.get_msr(0xC0000102)) == (5, 6)


@pytest.mark.parametrize(
    "instruction", ["rdmsr", "wrmsr", "mov cr0,rax", "mov cr8,rax", "clts", "lmsw ax", "invlpg [0]"]
)
def test_a_user_gets_a_general_protection_fault_and_no_exit(machine: Machine, instruction: str) -> None:
    machine.engine.controls.invlpg = True
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, instruction)
    machine.code(HANDLERS, "hlt")
    machine.gate(13, HANDLERS)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.box[mb.VECTOR_COUNTS + 13] == 1


@pytest.mark.parametrize(
    ("operand", "address"),
    [
        ("[0x12345678]", 0x12345678),
        ("[rbx]", 0x1122334455667000),
        ("[rel $+0x100]", CODE + 26 + 0x100),
        ("[rbp-8]", 0x7FF8),
        ("[r13+r12*8+0x7fff0000]", 0x13000 + 0x50 * 8 + 0x7FFF0000),
        ("[rsp]", 0x8000),
        ("[r12]", 0x50),
        ("[r13]", 0x13000),
        ("[rsi*4]", 0xFFFFFFFFFFFFFFFC),
        ("[ebx+1]", 0x55667001),
        ("[fs:rbp]", 0x7000 + 0x8000),
        ("[rsp+rsi]", 0x7FFF),
    ],
)
def test_invlpg_gives_its_address(machine: Machine, operand: str, address: int) -> None:
    e = machine.engine
    e.controls.invlpg = True
    start = machine.code(CODE, "mov rbx,0x1122334455667000\n mov ebp,0x8000\n mov rsi,-1\n nop\n nop\n nop\n nop")
    size = machine.code(CODE + start, f"invlpg {operand}")
    assert start == 26
    machine.code(CODE + start + size, "hlt")
    machine.reset()
    e.set_segment(FS, Segment(0, 0x7000, 0xFFFF, 0xF300))
    e.set_reg(12, 0x50)
    e.set_reg(13, 0x13000)
    assert e.enter() == CpuExit.INVLPG
    assert (e.box[mb.EXIT_VA], length(machine), e.rip) == (address, size, CODE + start)
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT


@pytest.mark.parametrize(
    ("operand", "address"),
    [
        ("[bx+si+2]", 0x4302),
        ("[bp]", 0x8200),
        ("[di+0x7000]", 0x4400 + 0x7000),
        ("[0x1234]", 0x5234),
        ("[es:bp+di]", 0x6600),
        ("[eax+ebx*2]", 0x4600),
    ],
)
def test_invlpg_of_16_bit_code(operand: str, address: int) -> None:
    machine = FlatMachine()
    machine.engine.controls.invlpg = True
    source = (
        "mov ax,0x400\n mov ds,ax\n mov ax,0x600\n mov es,ax\n mov ax,0x800\n mov ss,ax\n mov eax,0x200\n"
        f" mov ebx,0x200\n mov si,0x100\n mov di,0x400\n mov bp,0x200\n invlpg {operand}\n hlt"
    )
    assert machine.real(source) == CpuExit.INVLPG
    assert machine.engine.box[mb.EXIT_VA] == address
    machine.engine.skip_instruction()
    assert machine.engine.enter() == CpuExit.HLT


@pytest.mark.parametrize(("register", "number", "size"), [("rdx", 2, 3), ("r9", 9, 4), ("rcx", 1, 3)])
def test_reserved_bits_in_cr3_are_an_exit_at_the_move(machine: Machine, register: str, number: int, size: int) -> None:
    e = machine.engine
    source = f"mov {register},0x1000000000001000\n nop\n mov cr3,{register}\n mov ebx,1\n hlt"
    assert machine.run(source) == CpuExit.CR_WRITE
    assert (e.box[mb.EXIT_CR], e.box[mb.EXIT_GPR], length(machine)) == (3, number, size)
    assert (e.rip, e.cr3, machine.reg(RBX)) == (CODE + 11, machine.root, 0)
    assert not e.counting or e.instructions == 2
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert not e.counting or e.instructions == 5


def test_an_interrupt_does_not_hide_reserved_bits_in_cr3(machine: Machine) -> None:
    e = machine.engine
    machine.code(CODE, "mov rdx,1<<60\n sti\n mov cr3,rdx\n hlt")
    machine.code(HANDLERS, "hlt")
    machine.gate(0x40, HANDLERS)
    machine.reset()
    e.queue_event(Event(EventKind.INTERRUPT, 0x40))
    assert e.enter() == CpuExit.CR_WRITE
    assert (e.rip, e.irq_pending, e.cr3) == (CODE + 11, True, machine.root)


def test_every_cr3_write_exits_if_asked_for(machine: Machine) -> None:
    e = machine.engine
    e.controls.cr3 = True
    assert machine.run("mov rax,cr3\n mov cr3,rax\n hlt") == CpuExit.CR_WRITE
    assert (e.box[mb.EXIT_CR], e.rip) == (3, CODE + 3)
    e.skip_instruction()
    e.controls.cr3 = False
    machine.code(CODE, "mov rax,cr3\n mov cr3,rax\n hlt")
    machine.reset()
    assert e.enter() == CpuExit.HLT


def test_a_skipped_instruction_ends_the_sti_shadow_and_traps_if_single_stepped(machine: Machine) -> None:
    e = machine.engine
    machine.code(HANDLERS, "mov r8,[rsp]\n mov r9,dr6\n hlt")
    machine.gate(1, HANDLERS)
    machine.gate(0x40, HANDLERS)
    machine.code(CODE, "sti\n cpuid\n nop\n hlt")
    machine.reset()
    e.queue_event(Event(EventKind.INTERRUPT, 0x40))
    assert e.enter() == CpuExit.CPUID
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert machine.reg(8) == CODE + 3
    machine.code(CODE, "pushfq\n or dword [rsp],0x100\n popfq\n cpuid\n nop")
    machine.reset()
    assert e.enter() == CpuExit.CPUID
    e.skip_instruction()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(8) - CODE, machine.reg(9) & 0x4000) == (11, 0x4000)


def test_clts_traps_if_single_stepped(machine: Machine) -> None:
    machine.code(HANDLERS, "mov r8,[rsp]\n hlt")
    machine.gate(1, HANDLERS)
    assert machine.run("pushfq\n or dword [rsp],0x100\n popfq\n clts\n nop") == CpuExit.HLT
    assert machine.reg(8) == CODE + 11


def test_exits_still_come_after_events_were_delivered(machine: Machine) -> None:
    machine.code(HANDLERS, "add qword [rsp],2\n iretq")
    machine.gate(6, HANDLERS)
    machine.gate(0x40, HANDLERS + 5)
    machine.code(CODE, "ud2\n sti\n nop\n nop\n ud2\n cpuid")
    machine.reset()
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x40))
    assert machine.engine.enter() == CpuExit.CPUID
    assert machine.engine.box[mb.VECTOR_COUNTS + 6] == 2
    assert machine.engine.box[mb.VECTOR_COUNTS + 0x40] == 1


def test_the_hidden_pages_take_no_event_and_no_address_is_saved(machine: Machine) -> None:
    machine.code(HANDLERS, "hlt")
    machine.gate(6, HANDLERS)
    machine.code(CODE, "ud2")
    machine.reset()
    hidden = bytes(machine.engine.controls._hidden.b)
    assert machine.engine.enter() == CpuExit.HLT
    assert bytes(machine.engine.controls._hidden.b) == hidden
    other = Machine(frames=2048, counting=machine.engine.counting)
    other.engine.restore(machine.engine.save())
    assert other.engine.env[lay.ENV_VM_VMCB // 8] == other.ram.size
    other.code(CODE, "cpuid")
    other.reset()
    assert other.engine.enter() == CpuExit.CPUID, "what exits is part of the saved state"


def test_a_triple_fault_is_a_shutdown_with_controls_on(machine: Machine) -> None:
    machine.code(CODE, "ud2")
    machine.reset()
    machine.engine.idtr = machine.engine.idtr._replace(limit=0)
    assert machine.engine.enter() == CpuExit.SHUTDOWN
