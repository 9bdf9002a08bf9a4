"""Two-dimensional paging: what is an exit and what the guest's own fault, with the state that each leaves."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import FETCH, READ, WRITE, CpuExit, EventKind, WalkFault
from shadowvm.x86 import CR0_WP, CR4_PKE, CR4_SMAP, CR4_SMEP, EFER_NX
from tests.cpu.machine import CODE, HANDLERS, LOW, NX, RAX, RBX, RCX, RDX, STACK, TO_USER, USER_CODE, A, D, P, U, W
from tests.cpu.nested_machine import FULL, NestedMachine

DATA, PAGE = 0x200000, 0x40000
"""Where most tests put a page of the guest, and its gpa."""
PF, DF = 14, 8
SAVE = "mov rbx,cr2\n mov rcx,[rsp]\n mov rdx,[rsp+8]\n mov rsi,[rsp+24]\n hlt"
"""CR2, error code, RIP and flags that the handler finds."""


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> NestedMachine:
    machine = NestedMachine(counting=request.param)
    machine.map(DATA, PAGE, FULL | A)
    machine.gate(PF, HANDLERS)
    machine.code(HANDLERS, SAVE)
    return machine


def start(machine: NestedMachine, source: str, entry: int = CODE) -> int:
    """Run `source` at CPL 0."""
    machine.code(entry, source)
    machine.reset(entry)
    return machine.engine.enter()


# Exits.


@pytest.mark.parametrize(
    ("source", "access"),
    [
        ("mov rax,[0x200123]", READ),
        ("mov [0x200123],rax", WRITE),
        ("lock xadd [0x200123],rax", WRITE),
        ("mov eax,0x200123\n jmp rax", FETCH),
    ],
)
def test_an_absent_page_is_an_exit_with_both_addresses(machine: NestedMachine, source: str, access: int) -> None:
    machine.ram.q[machine.nested_at(PAGE)] = 0
    assert start(machine, f"mov esi,7\n {source}\n hlt") == CpuExit.EPT_VIOLATION
    assert machine.ept == (PAGE + 0x123, DATA + 0x123, access, 1)
    box = machine.engine.box
    assert (box[mb.EXIT_WHY], box[mb.EXIT_LEVEL], box[mb.EXIT_FETCH]) == (WalkFault.NOT_PRESENT, 1, access == FETCH)
    assert box[mb.EXIT_TABLE] == machine.nested_at(PAGE) >> 9
    assert machine.engine.rip == (DATA + 0x123 if access == FETCH else CODE + 5)
    assert machine.reg(6) == 7
    machine.ram.q[machine.nested_at(PAGE)] = PAGE | FULL
    machine.code(PAGE + 0x123, "hlt", org=DATA + 0x123)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.nested.guest_faults == 0


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("access", [READ, WRITE, FETCH])
def test_an_absent_table_is_an_exit_of_a_read(machine: NestedMachine, level: int, access: int) -> None:
    machine.map(1 << 46, PAGE, FULL)
    table = machine.guest_at(1 << 46, level) << 3 & ~0xFFF
    if level == 4:
        table = machine.new_table()
        machine.ram.q[table >> 3 : (table >> 3) + 512] = machine.ram.q[machine.root >> 3 : (machine.root >> 3) + 512]
    source = ("mov rax,[rbp]", "mov [rbp],rax", "jmp rbp")[access]
    machine.code(CODE, f"mov rbp,1<<46\n {source}\n hlt")
    machine.reset()
    if level == 4:
        machine.code(CODE, f"mov rbp,1<<46\n mov rax,{table}\n mov cr3,rax\n {source}\n hlt")
    machine.ram.q[machine.nested_at(table)] = 0
    assert machine.engine.enter() == CpuExit.EPT_VIOLATION
    gpa, va, how, final = machine.ept
    assert (gpa >> 12, how, final) == (table >> 12, READ, 0)
    if level < 4:
        assert (gpa, va) == (machine.guest_at(1 << 46, level) << 3, 1 << 46)
    assert machine.engine.box[mb.EXIT_FETCH] == (access == FETCH or level == 4)


def test_accessed_and_dirty_are_set_in_both_tables(machine: NestedMachine) -> None:
    q = machine.ram.q
    machine.map(DATA + 0x1000, PAGE + 0x1000, FULL)
    assert start(machine, "mov rax,[0x200000]\n mov [0x201000],rax\n hlt") == CpuExit.HLT
    assert q[machine.guest_at(DATA)] & (A | D) == A
    assert q[machine.guest_at(DATA + 0x1000)] & (A | D) == A | D
    assert q[machine.nested_at(PAGE)] & (A | D) == A
    assert q[machine.nested_at(PAGE + 0x1000)] & (A | D) == A | D
    assert q[machine.nested_at(machine.guest_at(DATA) << 3)] & (A | D) == A | D, "the guest's table was written"
    assert q[machine.nested_at(PAGE, 2)] & A


def test_without_nested_ad_nothing_is_marked_there_and_entries_are_writable_at_once(machine: NestedMachine) -> None:
    machine.engine.nested.has_ad = False
    machine.ram.q[machine.guest_at(DATA)] |= D
    assert start(machine, "mov rax,[0x200000]\n mov [0x200000],rax\n hlt") == CpuExit.HLT
    assert not machine.ram.q[machine.nested_at(PAGE)] & (A | D)
    assert machine.engine.may_cache_writable(PAGE >> 12)
    fills = machine.engine.box[mb.FILLS]
    assert start(machine, "mov rax,[0x200000]\n mov [0x200008],rax\n hlt") == CpuExit.HLT
    assert machine.engine.box[mb.FILLS] - fills == 2, "one for the code, one for the data"


def test_a_clean_nested_entry_comes_back_to_be_written(machine: NestedMachine) -> None:
    machine.ram.q[machine.guest_at(DATA)] |= D
    assert start(machine, "mov rax,[0x200000]\n hlt") == CpuExit.HLT
    assert not machine.engine.may_cache_writable(PAGE >> 12)
    assert start(machine, "mov rax,[0x200000]\n mov [0x200000],rax\n hlt") == CpuExit.HLT
    assert machine.ram.q[machine.nested_at(PAGE)] & D


@pytest.mark.parametrize(("source", "bits"), [("mov rax,[0x200000]", A), ("mov [0x200000],rax", A | D)])
def test_setting_accessed_or_dirty_is_a_nested_write(machine: NestedMachine, source: str, bits: int) -> None:
    at = machine.guest_at(DATA)
    machine.ram.q[at] = PAGE | FULL | (0 if bits == A else A)
    table = machine.nested_at(at << 3)
    machine.ram.q[table] &= ~W
    assert start(machine, f"{source}\n hlt") == CpuExit.EPT_VIOLATION
    assert machine.ept == (at << 3, DATA, WRITE, 0)
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.WRITE
    assert machine.ram.q[at] & bits != bits
    machine.ram.q[table] |= W
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.ram.q[at] & bits == bits


@pytest.mark.parametrize(("first", "last", "ends"), [(0, 8, True), (0, 0, False), (8, 16, False)])
def test_in_rom_nothing_is_marked_and_no_nested_write_made(
    machine: NestedMachine, first: int, last: int, ends: bool
) -> None:
    at = machine.guest_at(DATA)
    machine.ram.q[at] = PAGE | FULL
    machine.ram.q[machine.nested_at(at << 3)] &= ~W
    machine.engine.nested.rom = (at << 3) + first, (at << 3) + last
    assert start(machine, "mov [0x200000],rax\n hlt") == (CpuExit.HLT if ends else CpuExit.EPT_VIOLATION)
    assert machine.ram.q[at] & (A | D) == 0


def test_entries_that_are_marked_already_need_no_nested_write(machine: NestedMachine) -> None:
    at = machine.guest_at(DATA)
    machine.ram.q[at] |= A | D
    start(machine, "mov [0x200000],rax\n hlt")
    for level in range(1, 5):
        machine.ram.q[machine.nested_at(machine.guest_at(DATA, level) << 3)] &= ~W
    assert start(machine, "mov [0x200000],rax\n hlt") == CpuExit.HLT


def test_rights_of_the_nested_entry_hold(machine: NestedMachine) -> None:
    machine.ram.q[machine.nested_at(PAGE)] = PAGE | P | U | NX
    assert start(machine, "mov rax,[0x200000]\n mov [0x200008],rax") == CpuExit.EPT_VIOLATION
    assert machine.ept == (PAGE + 8, DATA + 8, WRITE, 1)
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.WRITE
    assert start(machine, "mov eax,0x200000\n jmp rax") == CpuExit.EPT_VIOLATION
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.NX
    machine.ram.q[machine.nested_at(PAGE)] = PAGE | P | W
    assert start(machine, "mov rax,[0x200000]") == CpuExit.EPT_VIOLATION
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.USER


def test_a_nested_entry_with_a_bad_frame_is_a_misconfiguration_whatever_its_rights(machine: NestedMachine) -> None:
    machine.ram.q[machine.nested_at(PAGE)] = P | 1 << 51
    assert start(machine, "mov [0x200010],rax") == CpuExit.EPT_MISCONFIG
    assert machine.ept == (PAGE + 0x10, DATA + 0x10, WRITE, 1)
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.BAD_FRAME


def test_a_block_that_reaches_into_a_page_the_nested_table_lacks_runs_up_to_it(machine: NestedMachine) -> None:
    machine.map(DATA + 0x1000, PAGE + 0x1000, FULL)
    begin = DATA + 0xFF0
    machine.code(PAGE + 0xFF0, "mov eax,1\n mov ebx,2\n inc eax\n mov rcx,0x1122334455667788\n hlt", org=begin)
    machine.reset(begin)
    machine.ram.q[machine.nested_at(PAGE + 0x1000)] = 0
    before = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.EPT_VIOLATION
    assert machine.ept == (PAGE + 0x1000, DATA + 0x1000, FETCH, 1)
    assert (machine.engine.rip, machine.reg(RAX)) == (begin + 12, 2)
    assert not machine.engine.counting or machine.engine.instructions - before == 3
    machine.ram.q[machine.nested_at(PAGE + 0x1000)] = PAGE + 0x1000 | FULL
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RCX) == 0x1122334455667788


def test_a_delivery_that_lacks_its_stack_is_an_exit_and_goes_again(machine: NestedMachine) -> None:
    machine.ram.q[machine.nested_at(STACK - 8)] = 0
    assert start(machine, "mov rax,[0x300000]") == CpuExit.EPT_VIOLATION
    assert machine.ept[2:] == (WRITE, 1)
    event = machine.engine.vectoring()
    assert event is not None
    assert (event.kind, event.vector, event.error_code) == (EventKind.EXCEPTION, PF, 0)
    machine.ram.q[machine.nested_at(STACK - 8)] = (STACK - 8 & ~0xFFF) | FULL
    machine.engine.requeue(event)
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (0x300000, 0, CODE)


# The guest's own faults.


@pytest.mark.parametrize(
    ("flags", "source", "at_cpl3", "error"),
    [
        (0, "mov rax,[0x200123]", False, 0),
        (0, "mov [0x200123],rax", False, W),
        (0, "lock xadd [0x200123],rax", False, W),
        (0, "mov rax,[0x200123]", True, U),
        (0, "add [0x200123],al", True, U | W),
        (0, "mov eax,0x200123\n jmp rax", True, U | 0x10),
        (P | W, "mov rax,[0x200123]", True, U | P),
        (P | U, "mov [0x200123],rax", True, U | W | P),
        (P | U, "mov [0x200123],rax", False, W | P),
        (P | W | U | NX, "mov eax,0x200123\n jmp rax", False, 0x10 | P),
        (P | W | U | 1 << 45, "mov rax,[0x200123]", False, P | 8),
        (P | W | U | 1 << 45, "mov [0x200123],rax", True, P | 8 | W | U),
    ],
)
def test_the_guest_gets_its_own_fault_without_an_exit(
    machine: NestedMachine, flags: int, source: str, at_cpl3: bool, error: int
) -> None:
    machine.ram.q[machine.guest_at(DATA)] = PAGE | flags
    machine.code(USER_CODE, f"nop\n {source}\n hlt")
    machine.code(CODE, TO_USER)
    machine.reset(CODE if at_cpl3 else USER_CODE)
    assert machine.engine.enter() == CpuExit.HLT
    is_jump = "jmp" in source
    rip = DATA + 0x123 if is_jump else USER_CODE + 1
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (DATA + 0x123, error, rip)
    assert machine.reg(6) & 1 << 16, "RF is set in what a fault pushes"
    assert machine.engine.nested.guest_faults == 1
    assert machine.engine.box[mb.VECTOR_COUNTS + PF] == 1


@pytest.mark.parametrize(
    ("cr4", "flags", "source", "error"),
    [
        (CR4_SMAP, FULL, "mov rax,[0x200123]", P),
        (CR4_SMAP, FULL, "stac\n mov rax,[0x200123]", None),
        (CR4_SMEP, FULL, "mov eax,0x200123\n jmp rax", P | 0x10),
        (CR4_PKE, FULL | 5 << 59, "mov rax,[0x200123]", P | 0x20),
        (CR4_PKE, FULL | 4 << 59, "mov rax,[0x200123]", None),
        (CR4_PKE | CR4_SMAP, FULL | 6 << 59, "mov rax,[0x200123]", P),
        (CR4_PKE | CR4_SMAP, FULL | 6 << 59, "lock xadd [0x200123],rax", P | W | 0x20),
    ],
)
def test_smep_smap_and_keys_are_the_guest_s(
    machine: NestedMachine, cr4: int, flags: int, source: str, error: int | None
) -> None:
    for page in range(0, LOW, 4096):
        machine.map(page, page, P | W)
    machine.ram.q[machine.guest_at(DATA)] = PAGE | flags
    machine.code(CODE, f"{source}\n hlt")
    machine.reset()
    machine.engine.cr0 |= CR0_WP
    machine.engine.cr4 |= cr4
    machine.engine.pkru = 1 << 10 | 2 << 12
    machine.engine.set_reg(RBX, 0)
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX)) == (
        (DATA + 0x123, error) if error is not None else (0, machine.reg(RCX))
    )


@pytest.mark.parametrize("wp", [True, False])
def test_cr0_wp_is_the_guest_s_and_its_change_no_exit(machine: NestedMachine, wp: bool) -> None:
    machine.ram.q[machine.guest_at(DATA)] = PAGE | P | A
    change = "bts rax,16" if wp else "btr rax,16"
    assert (
        start(machine, f"mov rax,cr0\n {change}\n mov cr0,rax\n xor ebx,ebx\n mov [0x200008],rax\n hlt") == CpuExit.HLT
    )
    assert (machine.reg(RBX), machine.ram.q[PAGE + 8 >> 3] != 0) == ((DATA + 8, False) if wp else (0, True))
    assert bool(machine.ram.q[machine.guest_at(DATA)] & D) != wp
    assert bool(machine.engine.cr0 & CR0_WP) == wp


def test_nx_is_reserved_without_efer_nx_and_the_error_code_has_no_fetch_then(machine: NestedMachine) -> None:
    machine.ram.q[machine.guest_at(DATA)] = PAGE | FULL | NX
    machine.code(CODE, "mov eax,0x200123\n jmp rax")
    machine.reset()
    machine.engine.efer &= ~EFER_NX
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RCX) == P | 8


def test_a_fault_counts_what_ran_before_it(machine: NestedMachine) -> None:
    machine.code(HANDLERS, "add rsp,8\n mov qword [rsp],0x1200\n iretq")
    machine.code(0x1200, "hlt")
    machine.code(CODE, "inc eax\n inc eax\n mov rbx,[0x300000]\n inc eax\n hlt")
    machine.reset()
    before = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.HLT
    assert not machine.engine.counting or machine.engine.instructions - before == 2 + 3 + 1


def test_a_block_that_reaches_into_a_page_the_guest_lacks_faults_at_the_instruction(machine: NestedMachine) -> None:
    begin = DATA + 0xFF0
    machine.code(PAGE + 0xFF0, "mov eax,1\n mov ebx,2\n inc eax\n mov rcx,0x1122334455667788\n hlt", org=begin)
    machine.reset(begin)
    before = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (DATA + 0x1000, 0x10, begin + 12)
    assert machine.reg(RAX) == 2
    assert not machine.engine.counting or machine.engine.instructions - before == 3 + 5


def test_a_fault_while_a_fault_is_delivered_is_a_double_fault_and_a_third_the_end(machine: NestedMachine) -> None:
    machine.gate(DF, HANDLERS + 0x100, ist=1)
    machine.code(HANDLERS + 0x100, "mov rbx,cr2\n mov rcx,[rsp]\n mov rdx,[rsp+8]\n hlt")
    source = "mov rsp,0x300800\n mov rax,[0x310000]\n hlt"
    assert start(machine, source) == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (0x3007F8, 0, CODE + 5)
    assert machine.engine.box[mb.VECTOR_COUNTS + DF] == 1
    machine.gate(DF, HANDLERS + 0x100)
    assert start(machine, source) == CpuExit.SHUTDOWN


def test_a_fault_in_the_delivery_of_a_software_interrupt_comes_first(machine: NestedMachine) -> None:
    machine.gate(0x40, HANDLERS + 0x100)
    machine.gate(PF, HANDLERS, ist=1)
    assert start(machine, "mov rsp,0x300800\n int 0x40\n hlt") == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (0x3007F8, W, CODE + 5)


def test_faults_without_end_end_with_the_budget() -> None:
    """A handler that cannot be fetched, on a stack that never runs out."""
    machine = NestedMachine()
    machine.gate(PF, 0x300000, ist=1)
    machine.code(CODE, "mov rax,[0x310000]")
    machine.reset()
    machine.engine.set_budget(100)
    assert machine.engine.enter() == CpuExit.QUANTUM
    assert (machine.engine.rip, machine.engine.cr2) == (0x300000, 0x300000)
    machine.map(0x300000, 0x42000, FULL)
    machine.code(0x42000, SAVE, org=0x300000)
    machine.engine.set_budget(100)
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (0x300000, 0x10, 0x300000)


def test_a_step_of_a_faulting_instruction_ends_before_its_handler(machine: NestedMachine) -> None:
    machine.code(CODE, "nop\n mov rax,[0x300000]\n hlt")
    machine.reset()
    assert machine.engine.step() == CpuExit.QUANTUM
    assert machine.engine.step() == CpuExit.QUANTUM
    assert machine.engine.rip == (HANDLERS if machine.engine.counting else CODE + 1)
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RCX), machine.reg(RDX)) == (0x300000, 0, CODE + 1)
    assert not machine.reg(6) & 1 << 8, "our trap flag is not in the frame"
