"""Where events of the CPU are as the manual has them and Unicorn does otherwise: flags, errors, debug registers."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, RBX, RCX, RDX, TO_USER, USER_CODE, Machine

RF, IOPL3 = 1 << 16, 3 << 12
FAR = "mov rdi,0x800000000100\n"


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


def handled(machine: Machine, source: str, vector: int, handler: str) -> int:
    """Run at CPL 0 with a handler for one vector."""
    machine.code(CODE, source)
    machine.code(HANDLERS, handler)
    machine.gate(vector, HANDLERS)
    machine.reset()
    return machine.engine.enter()


@pytest.mark.parametrize(
    ("source", "vector", "wanted"),
    [("ud2", 6, RF), ("xor ecx,ecx\n div ecx", 0, RF), ("int3", 3, 0), ("int 0x40", 0x40, 0), ("db 0xf1", 1, 0)],
)
def test_a_fault_pushes_rf_and_a_trap_does_not(machine: Machine, source: str, vector: int, wanted: int) -> None:
    assert handled(machine, source, vector, f"mov rbx,[rsp+{16 if vector != 13 else 24}]\n hlt") == CpuExit.HLT
    assert machine.reg(RBX) & RF == wanted


def test_a_queued_fault_pushes_rf(machine: Machine) -> None:
    machine.code(CODE, "nop")
    machine.code(HANDLERS, "mov rbx,[rsp+24]\n hlt")
    machine.gate(14, HANDLERS)
    machine.reset()
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 14, 0, 0x1234))
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RBX) & RF


@pytest.mark.parametrize("first", ["nop", "jmp $+2"], ids=["falls through", "jumps"])
def test_rf_is_for_one_instruction(first: str) -> None:
    machine = Machine()
    second = CODE + (1 if first == "nop" else 2)
    handler = "mov r8,[rsp]\n mov [r9],r8\n add r9,8\n or dword [rsp+16],0x10000\n iretq"
    machine.code(CODE, f"{first}\n inc ebx\n hlt")
    machine.code(HANDLERS, handler)
    machine.gate(1, HANDLERS)
    machine.reset()
    machine.engine.set_dr(0, CODE)
    machine.engine.set_dr(1, second)
    machine.engine.set_dr(7, 0x40A)
    machine.engine.set_reg(9, 0x6000)
    machine.engine.set_reg(RBX, 0)
    before = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.HLT
    assert [machine.ram.q[0x6000 >> 3], machine.ram.q[0x6008 >> 3]] == [CODE, second]
    assert (machine.reg(9), machine.reg(RBX)) == (0x6010, 1)
    assert machine.engine.instructions - before == 3 + 2 * 5


@pytest.mark.parametrize("access", ["mov rax,dr3", "mov dr3,rax", "mov rax,dr7"])
def test_general_detect_traps_before_a_debug_register_is_used(machine: Machine, access: str) -> None:
    machine.code(CODE, f"nop\n {access}\n hlt")
    machine.code(HANDLERS, "mov rbx,[rsp]\n mov rcx,dr6\n mov rdx,dr7\n hlt")
    machine.gate(1, HANDLERS)
    machine.reset()
    machine.engine.set_dr(7, 0x2400)
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX) & 0x2000, machine.reg(RDX)) == (CODE + 1, 0x2000, 0x400)


@pytest.mark.parametrize("register", [6, 7])
def test_debug_registers_have_32_bits(machine: Machine, register: int) -> None:
    source = f"mov rax,0x100000400\n mov dr{register},rax\n hlt"
    assert handled(machine, source, 13, "mov ebx,7\n hlt") == CpuExit.HLT
    assert machine.reg(RBX) == 7


def test_reserved_bits_of_debug_registers_are_fixed(machine: Machine) -> None:
    assert machine.run("mov eax,-1\n mov dr6,rax\n mov eax,0xd000\n mov dr7,rax\n hlt") == CpuExit.HLT
    assert (machine.engine.dr(6), machine.engine.dr(7)) == (0xFFFF_EFFF, 0x400)


@pytest.mark.parametrize("offset", [1, 3, 5, 7])
def test_a_store_beside_a_breakpoint_does_not_hit(machine: Machine, offset: int) -> None:
    """One that is not aligned: Unicorn first looks at the page from its start on."""
    machine.code(CODE, f"mov [0x6000+{offset}],rax\n hlt")
    machine.code(HANDLERS, "mov ebx,7\n hlt")
    machine.gate(1, HANDLERS)
    machine.reset()
    machine.engine.set_dr(0, 0x6000)
    machine.engine.set_dr(7, 0x10402)
    machine.engine.set_reg(RBX, 0)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RBX) == 0


def test_iopl_of_a_caller_of_syscall_does_not_stay(machine: Machine) -> None:
    e = machine.engine
    machine.code(CODE, TO_USER.replace("0x202", "0x3202"))
    machine.code(USER_CODE, "syscall")
    machine.code(0x12000, f"{TO_USER.replace(str(hex(USER_CODE)), '0x12800')}")
    machine.code(0x12800, "cli")
    machine.code(HANDLERS, "hlt")
    machine.gate(13, HANDLERS)
    machine.reset()
    e.efer |= 1
    e.set_msr(0xC000_0081, 0x10 << 48 | 8 << 32)
    e.set_msr(0xC000_0082, 0x12000)
    e.set_msr(0xC000_0084, IOPL3)
    assert e.enter() == CpuExit.HLT
    assert e.box[mb.VECTOR_COUNTS + 13] == 1


READ_MODIFY_WRITE = (
    *("inc dword [rdi]", "add [rdi],eax", "and dword [rdi],1", "xchg [rdi],eax", "lock cmpxchg [rdi],ecx"),
    *("not byte [rdi]", "neg qword [rdi]", "shl dword [rdi],cl", "rol word [rdi],1", "xadd [rdi],al", "bts [rdi],eax"),
    *("btr dword [rdi],3", "cmpxchg8b [rdi]", "shld [rdi],eax,cl", "dec byte [rdi+r8]", "sbb byte [rdi],3"),
    "xor [rdi],al",
)
READ_ONLY = (
    *("cmp [rdi],eax", "cmp dword [rdi],1", "test [rdi],eax", "mul dword [rdi]", "push qword [rdi]", "bt [rdi],eax"),
    *("add eax,[rdi]", "call [rdi]", "movzx eax,byte [rdi]", "imul eax,[rdi],3", "lodsb"),
)


@pytest.mark.parametrize(("sources", "access"), [(READ_MODIFY_WRITE, 1), (READ_ONLY, 0)], ids=["both", "read"])
def test_an_instruction_that_reads_to_write_misses_by_a_write(sources: tuple[str, ...], access: int) -> None:
    machine = Machine()
    for source in sources:
        code = machine.run(f"mov edi,0x200000\n mov rsi,rdi\n xor r8d,r8d\n {source}")
        assert (source, code, *machine.exit[:2]) == (source, CpuExit.WALK_FAULT, 0x200000, access)


THROUGH_STACK = (
    *("push rax", "pop rax", "ret", "call rax", "mov eax,[rsp]", "mov eax,[rbp]", "mov [rbp+8],eax", "leave", "pushfq"),
    *("add eax,[rsp+rcx]", "push qword [rsp]", "enter 8,0", "iretq", "movaps xmm0,[rbp]"),
)
BY_ANOTHER = (
    *("mov eax,[rdi]", "mov [rdi],eax", "movsb", "mov eax,[r12]", "mov eax,[r13]", "fs mov eax,[rbp]"),
    *("movaps xmm0,[rdi]", "add eax,[rdi+rbp]", "push qword [rdi]"),
)


@pytest.mark.parametrize(("sources", "stack"), [(THROUGH_STACK, 1), (BY_ANOTHER, 0)], ids=["stack", "other"])
def test_an_access_through_the_stack_segment_is_told(sources: tuple[str, ...], stack: int) -> None:
    machine = Machine()
    for source in sources:
        setup = "mov rsi,rdi\n mov r12,rdi\n mov r13,rdi\n xor ecx,ecx\n"
        setup += "mov rsp,rdi\n mov rbp,rdi\n" if stack else "xor ebp,ebp\n"
        setup += "mov rbp,rdi\n" if "rbp]" in source and "rdi+" not in source else ""
        code = machine.run(f"{FAR}{setup}{source}")
        assert (source, code) == (source, CpuExit.NON_CANONICAL)
        assert (source, machine.engine.box[mb.EXIT_STACK]) == (source, stack)


@pytest.mark.parametrize(
    ("source", "length", "moved"),
    [
        ("jmp rdi", 2, 0),
        ("jmp [0x6000]", 7, 0),
        ("call rdi", 2, 0),
        ("push rdi\n ret", 1, -8),
        ("push rdi\n ret 16", 3, -8),
    ],
)
def test_a_transfer_to_an_address_that_is_not_canonical_has_not_been_done(source: str, length: int, moved: int) -> None:
    machine = Machine()
    size = machine.code(CODE, f"{FAR} mov [0x6000],rdi\n {source}")
    machine.reset()
    before = machine.engine.instructions
    rsp = machine.reg(4)
    assert machine.engine.enter() == CpuExit.NON_CANONICAL
    assert (machine.engine.rip, machine.reg(4)) == (CODE + size - length, rsp + moved)
    assert machine.engine.instructions - before == 2 + source.count("push")


MSRS = (0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102)


@pytest.mark.parametrize("index", MSRS)
def test_a_checked_msr_takes_canonical_addresses_only(machine: Machine, index: int) -> None:
    controls = machine.engine.controls
    controls.msr = controls.check_msrs = True
    controls.pass_msr(index, write=False)
    good = f"mov ecx,{index}\n mov eax,0x5678\n mov edx,0xff000000\n wrmsr\n rdmsr\n mov rsi,rdx\n"
    assert handled(machine, f"{good} mov edx,0x01000000\n wrmsr\n hlt", 13, "mov rbx,[rsp+8]\n hlt") == CpuExit.HLT
    assert machine.engine.get_msr(index) == 0xFF00_0000_0000_5678
    assert machine.reg(RBX) > CODE
    assert machine.reg(6) == 0xFF00_0000


def test_other_msrs_are_exits_still(machine: Machine) -> None:
    machine.engine.controls.msr = machine.engine.controls.check_msrs = True
    assert machine.run("mov ecx,0x277\n wrmsr") == CpuExit.MSR_WRITE


def test_refused_cr3_is_at_its_move_whatever_the_byte_before() -> None:
    machine = Machine()
    machine.engine.controls.cr = True
    size = machine.code(CODE, "mov rax,0x4100000000001000\n mov cr3,rax\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.CR_WRITE
    assert machine.engine.rip == CODE + size - 4


def test_a_step_of_a_transfer_that_faults_is_no_step() -> None:
    machine = Machine()
    machine.code(CODE, f"{FAR} call rdi")
    machine.reset()
    assert machine.engine.step() == CpuExit.QUANTUM
    before, rsp = machine.engine.instructions, machine.reg(4)
    assert machine.engine.step() == CpuExit.NON_CANONICAL
    assert (machine.engine.rip, machine.reg(4), machine.engine.instructions) == (CODE + 10, rsp, before)
