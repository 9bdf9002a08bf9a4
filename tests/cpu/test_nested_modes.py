"""Two-dimensional paging outside of 64-bit mode, control register changes, INVLPG, windows and the A20 gate."""

from __future__ import annotations

import pytest

from shadowvm.addr import Gpa, Gva, Hpa, Pfn
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import READ, WRITE, CpuExit
from shadowvm.cpu.unicorn_engine import UnicornEngine
from shadowvm.errors import ModelBug
from shadowvm.x86 import CR0_PG, CR4_PAE, CR4_PSE
from tests.cpu.machine import CODE, HANDLERS, PS, RAX, RBX, RCX, RDX, STACK, TO_USER32, USER_CODE, A, D, P, U, W
from tests.cpu.nested_machine import FULL, FlatNestedMachine, NestedMachine

DATA, PAGE, OTHER = 0x200000, 0x40000, 0x41000
PF = 14
SAVE32 = "mov ebx,cr2\n mov ecx,[esp]\n mov edx,[esp+4]\n hlt"
MISSING32 = 0x500000


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> NestedMachine:
    machine = NestedMachine(counting=request.param)
    machine.map(DATA, PAGE, FULL | A)
    return machine


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def flat(request: pytest.FixtureRequest) -> FlatNestedMachine:
    return FlatNestedMachine(counting=request.param)


def start(machine: NestedMachine, source: str) -> int:
    machine.code(CODE, source)
    machine.reset()
    return machine.engine.enter()


# Control registers.


def test_cr3_changes_without_an_exit(machine: NestedMachine) -> None:
    q = machine.ram.q
    other = machine.new_table()
    q[other >> 3] = q[machine.root >> 3]
    third, second, first = machine.new_table(), machine.new_table(), machine.new_table()
    q[(other >> 3) + 1], q[third >> 3], q[second >> 3], q[first >> 3] = (
        third | FULL,
        second | FULL,
        first | FULL,
        OTHER | FULL,
    )
    machine.map(1 << 39, PAGE, FULL)
    q[PAGE >> 3], q[OTHER >> 3] = 11, 22
    source = f"mov rbp,1<<39\n mov rax,[rbp]\n mov rcx,{other}\n mov cr3,rcx\n mov rbx,[rbp]\n mov rdx,{machine.root}\n"
    assert start(machine, f"{source} mov cr3,rdx\n mov rsi,[rbp]\n hlt") == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.reg(6)) == (11, 22, 11)
    assert machine.engine.kept_roots() == []


def test_cr3_with_reserved_bits_exits_at_the_move(machine: NestedMachine) -> None:
    machine.engine.controls.cr = True
    machine.engine.controls.cr3_reserved = ~((1 << 40) - 1) & (1 << 64) - 1
    source = f"mov rcx,{machine.root | 1 << 45}\n xor ebx,ebx\n mov cr3,rcx\n inc ebx\n hlt"
    assert start(machine, source) == CpuExit.CR_WRITE
    box = machine.engine.box
    assert (box[mb.EXIT_CR], box[mb.EXIT_GPR], box[mb.EXIT_INSN_LEN]) == (3, RCX, 3)
    assert (machine.engine.rip, machine.engine.cr3, machine.reg(RBX)) == (CODE + 12, machine.root, 0)
    machine.engine.skip_instruction()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RBX) == 1


@pytest.mark.parametrize("size", [12, 21], ids=["4K", "2M"])
def test_invlpg_drops_all_of_the_guest_s_page(machine: NestedMachine, size: int) -> None:
    q, large = machine.ram.q, size == 21
    far, old, new = (0x5000, 0x205000, 0x5000) if large else (0, PAGE, OTHER)
    flags = FULL | A | D | (PS if large else 0)
    at = machine.map(DATA, old - far, flags, level=2 if large else 1)
    q[old >> 3], q[new >> 3] = 11, 22
    machine.map(0x30000000, at << 3 & ~0xFFF, FULL | A | D)
    entry = 0x30000000 | at << 3 & 0xFFF
    source = f"mov rax,[{DATA + far}]\n mov rbp,{new - far | flags}\n mov [{entry}],rbp\n mov rbx,[{DATA + far}]\n"
    assert start(machine, f"{source} invlpg [{DATA}]\n mov rcx,[{DATA + far}]\n hlt") == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.reg(RCX)) == (11, 11, 22)


def test_without_a_root_every_access_exits_until_there_is_one(machine: NestedMachine) -> None:
    machine.code(CODE, "mov eax,1\n hlt")
    machine.reset()
    machine.engine.drop_all_roots()
    machine.engine.flush_tlb()
    assert machine.engine.enter() == CpuExit.CR_ACCESS
    assert machine.engine.enter() == CpuExit.CR_ACCESS
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT


def test_a_nested_root_has_4_or_5_levels() -> None:
    e = NestedMachine().engine
    with pytest.raises(ModelBug):
        e.load_nested_root(Hpa(0), 3)
    with pytest.raises(ModelBug):
        e.nested.set_features(52)


def test_a_saved_cpu_keeps_its_pae_pointers() -> None:
    first, second = NestedMachine().engine, NestedMachine().engine
    first.load_pdptrs(0x1234000, (1, 2, 3, 4))
    second.restore(first.save())
    assert second.box[mb.PDPTRS : mb.PDPTRS + 4].tolist() == [1, 2, 3, 4]
    assert second.box[mb.PDPTRS_CR3] == 0x1234000


# Windows.


def test_a_window_is_over_both_tables(machine: NestedMachine) -> None:
    machine.ram.q[machine.nested_at(PAGE)] = P | U | PAGE
    assert start(machine, "mov rax,[0x200000]\n mov [0x200008],rsp\n hlt") == CpuExit.EPT_VIOLATION
    machine.engine.set_window(0, Gva(DATA), Pfn(PAGE >> 12))
    assert machine.engine.step() == CpuExit.QUANTUM
    machine.engine.clear_windows()
    assert machine.ram.q[PAGE + 8 >> 3] == STACK
    assert machine.engine.enter() == CpuExit.HLT
    assert start(machine, "mov [0x200008],rsp\n hlt") == CpuExit.EPT_VIOLATION


def test_a_device_behind_a_misconfigured_entry_answers_through_a_window(machine: NestedMachine) -> None:
    log = []
    machine.engine.on_mmio(lambda gpa, size: log.append((gpa, size)) or 0x77, lambda gpa, size, value: None)
    machine.ram.q[machine.nested_at(PAGE)] = P | 1 << 51
    assert start(machine, "mov eax,[0x200010]\n hlt") == CpuExit.EPT_MISCONFIG
    gpa, va, access, final = machine.ept
    assert (access, final) == (READ, 1)
    machine.engine.set_mmio_window(0, Gva(va), Gpa(gpa))
    assert machine.engine.step() == CpuExit.QUANTUM
    machine.engine.clear_windows()
    assert (log, machine.reg(RAX)) == ([(PAGE + 0x10, 4)], 0x77)
    assert machine.engine.enter() == CpuExit.HLT


# Other modes.


def test_real_mode_goes_through_the_nested_table_only(flat: FlatNestedMachine) -> None:
    flat.ram.q[flat.nested_at(0x20000)] = 0
    assert flat.real("mov ax,0x2000\n mov ds,ax\n mov word [0x123],0x5678\n hlt") == CpuExit.EPT_VIOLATION
    box = flat.engine.box
    assert (box[mb.EXIT_GPA], box[mb.EXIT_VA], box[mb.EXIT_ACCESS], box[mb.EXIT_FINAL]) == (0x20123, 0x20123, WRITE, 1)
    flat.ram.q[flat.nested_at(0x20000)] = 0x21000 | FULL
    assert flat.engine.enter() == CpuExit.HLT
    assert flat.ram.b[0x21123] == 0x78


def test_the_closed_a20_gate_wraps_the_second_megabyte(flat: FlatNestedMachine) -> None:
    source = "mov ax,0xffff\n mov ds,ax\n mov word [0x510],0x5678\n hlt"
    flat.engine.nested.gpa_mask = ~(1 << 20)
    assert flat.real(source) == CpuExit.HLT
    assert flat.ram.b[0x500] == 0x78
    flat.engine.nested.gpa_mask = -1
    flat.ram.b[0x500] = 0
    flat.real(source)
    assert (flat.ram.b[0x500], flat.ram.b[0x100500]) == (0, 0x78)


def protected_with_paging(flat: FlatNestedMachine, source: str, cr4: int, cr3: int) -> int:
    """Turn paging on in 32-bit mode, then run `source`."""
    flat.gate(PF, HANDLERS)
    flat.code(HANDLERS, SAVE32, 32)
    flat.code(CODE, source, 32)
    flat.reset()
    e = flat.engine
    e.cr4, e.cr3 = cr4, cr3
    e.cr0 |= CR0_PG
    return e.enter()


def tables32(flat: FlatNestedMachine) -> tuple[int, int]:
    """A 32-bit directory that maps the low 2 MiB 1:1, 4 KiB at a time; (directory, table)."""
    directory, table = flat.new_table(), flat.new_table()
    words = flat.ram.b.cast("I")
    words[directory >> 2] = table | FULL
    for page in range(512):
        words[(table >> 2) + page] = page << 12 | FULL
    return directory, table


@pytest.mark.parametrize(("source", "error"), [
    (f"mov eax,[{MISSING32}]", 0),
    (f"lock inc dword [{MISSING32}]", W),
    (f"mov eax,{MISSING32}\n jmp eax", 0),
])  # fmt: skip
def test_32_bit_tables_of_two_levels(flat: FlatNestedMachine, source: str, error: int) -> None:
    directory, table = tables32(flat)
    words = flat.ram.b.cast("I")
    assert (
        protected_with_paging(flat, f"mov eax,5\n mov [0x20000],eax\n {source}\n hlt", CR4_PSE, directory)
        == CpuExit.HLT
    )
    assert (flat.reg(RBX), flat.reg(RCX)) == (MISSING32, error)
    assert flat.reg(RDX) == (MISSING32 if "jmp" in source else CODE + 10)
    assert flat.ram.b[0x20000] == 5
    assert words[(table >> 2) + 0x20] & (A | D) == A | D
    assert words[(table >> 2) + 0x21] & (A | D) == 0, "the neighbour in the same 8 bytes is left alone"


def test_a_4_mib_page_has_40_bits(flat: FlatNestedMachine) -> None:
    directory, _ = tables32(flat)
    flat.ram.b.cast("I")[(directory >> 2) + 3] = 5 << 22 | 0x7 << 13 | PS | FULL
    assert protected_with_paging(flat, "mov eax,[0xc12345]\n hlt", CR4_PSE, directory) == CpuExit.EPT_VIOLATION
    assert flat.engine.box[mb.EXIT_GPA] == 7 << 32 | 5 << 22 | 0x12345
    flat.engine.nested.set_features(32, pse36=False)
    flat.engine.flush_tlb()
    assert flat.engine.enter() == CpuExit.HLT
    assert (flat.reg(RBX), flat.reg(RCX)) == (0xC12345, P | 8)


def pae(flat: FlatNestedMachine) -> tuple[int, int]:
    """(CR3, directory) of PAE tables that map the low 2 MiB 1:1 by one large page."""
    pointers, directory = flat.new_table(), flat.new_table()
    flat.ram.q[directory >> 3] = PS | FULL
    flat.ram.q[pointers >> 3] = directory | P
    return pointers, directory


def test_pae_goes_by_the_pointers_that_were_loaded(flat: FlatNestedMachine) -> None:
    cr3, directory = pae(flat)
    e = flat.engine
    e.load_pdptrs(cr3, (directory | P, 0, 0, directory | P))
    flat.ram.q[cr3 >> 3] = 0
    source = "mov eax,[0xc0020000]\n mov ecx,[0x80020000]\n hlt"
    flat.write(0x20000, b"\x99")
    assert protected_with_paging(flat, source, CR4_PAE, cr3) == CpuExit.HLT
    assert (flat.reg(RAX) & 0xFF, flat.reg(RBX), flat.reg(RCX)) == (0x99, 0x80020000, 0)
    e.cr3 = cr3 + 0x20
    e.rip = CODE
    assert e.enter() == CpuExit.CR_ACCESS, "the pointers are those of another CR3"
    e.load_pdptrs(cr3 + 0x20, (directory | P, 0, 0, directory | P))
    assert e.enter() == CpuExit.HLT


def test_a_user_s_fault_in_32_bit_mode_comes_on_the_stack_of_ring_0(flat: FlatNestedMachine) -> None:
    directory, _ = tables32(flat)
    flat.code(USER_CODE, f"mov eax,[{MISSING32}]\n hlt", 32)
    assert protected_with_paging(flat, TO_USER32, CR4_PSE, directory) == CpuExit.HLT
    assert (flat.reg(RBX), flat.reg(RCX), flat.reg(RDX)) == (MISSING32, U, USER_CODE)
    assert flat.engine.nested.guest_faults == 1


def test_a_shadow_root_ends_nesting(machine: NestedMachine) -> None:
    e: UnicornEngine = machine.engine
    assert e.nested.on
    machine.code(CODE, "mov rax,[0x300000]\n hlt")
    machine.reset()
    e.load_root(Hpa(machine.root), e.cr3, e.cr0, e.cr4, e.efer)
    e.flush_tlb()
    assert not e.nested.on
    assert e.enter() == CpuExit.WALK_FAULT
