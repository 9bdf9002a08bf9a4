"""The native walker against its Python twin, and the walks' effects as the guest and the hypervisor see them."""

from __future__ import annotations

import ctypes
import random

import pytest

from shadowvm.addr import Hpa
from shadowvm.cpu import layout as lay
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import FETCH, READ, WRITE, CpuExit, WalkFault
from shadowvm.cpu.walker import KNOSMAP, KSMAP, USER, Checks, Refused, Walked, walk
from shadowvm.errors import ModelBug
from shadowvm.x86 import CR0_PG, CR0_WP, CR4_PKE, CR4_SMAP, CR4_SMEP, EFER_LMA
from tests.cpu.machine import CODE, LOW, NX, PS, A, D, Machine, P, U, W

ADDR = 0xFFFFFFFFFF000


def scramble(rng: random.Random, machine: Machine, tables: int) -> None:
    """Fill the first `tables` frames with random entries that mostly point at each other."""
    q = machine.ram.q
    for i in range(tables * 512):
        entry = rng.randrange(tables) << 12 | rng.getrandbits(12) & ~PS
        entry |= P if rng.random() < 0.9 else 0
        entry |= (W | U) if rng.random() < 0.7 else 0
        entry |= NX if rng.random() < 0.1 else 0
        if rng.random() < 0.05:
            entry |= PS
        if rng.random() < 0.02:
            entry |= rng.getrandbits(40) << 12
        q[i] = entry & (1 << 64) - 1


def native_walk(machine: Machine, va: int, access: int, mmu_idx: int) -> Walked | Refused:
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(machine.engine._native.address["walk_once"])
    box = machine.engine.box
    found = function(machine.engine._arrays.mailbox.address, va, access, mmu_idx)
    if found < 0:
        return Refused(box[mb.EXIT_LEVEL], WalkFault(box[mb.EXIT_WHY]))
    return Walked(found >> 1, bool(found & 1))


def checks_of(cr0: int, cr4: int, pkru: int) -> Checks:
    if not cr0 & CR0_PG:
        return Checks(smap=False)
    return Checks(bool(cr4 & CR4_SMEP), bool(cr4 & CR4_SMAP), pkru if cr4 & CR4_PKE else None, bool(cr0 & CR0_WP))


@pytest.mark.parametrize("seed", range(5))
def test_native_walk_equals_its_twin_on_random_tables(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(frames=64, tables=False)
    scramble(rng, machine, 8)
    engine = machine.engine
    reference = bytearray(machine.ram.b)
    seen = set()
    for i in range(20_000):
        if i % 500 == 0:
            level, pkru = rng.choice((3, 4, 4, 5)), rng.getrandbits(32) & rng.getrandbits(32)
            cr0, cr4 = rng.choice((0, CR0_PG, CR0_PG | CR0_WP)), rng.choice((0, CR4_SMEP, CR4_SMAP, CR4_SMEP | CR4_PKE))
            engine.load_root(Hpa(rng.randrange(8) << 12), 0, cr0, cr4, EFER_LMA, level)
            checks = checks_of(cr0, cr4, pkru)
            ctypes.c_uint32.from_address(engine._env_address + lay.ENV_PKRU).value = pkru
            reference[:] = machine.ram.b
        va = rng.getrandbits(32) if level == 3 else rng.getrandbits(9 * level + 12) - (1 << 9 * level + 11)
        access, mmu_idx = rng.choice((READ, WRITE, FETCH)), rng.choice((KSMAP, USER, KNOSMAP))
        root = engine.box[mb.ROOT]
        before = bytes(machine.ram.b[: 8 << 12])
        native = native_walk(machine, va, access, mmu_idx)
        after = bytes(machine.ram.b[: 8 << 12])
        machine.ram.b[: 8 << 12] = before
        assert walk(machine.ram, Hpa(root), va, access, mmu_idx, level=level, checks=checks) == native
        assert bytes(machine.ram.b[: 8 << 12]) == after
        seen.add(native.why if isinstance(native, Refused) else native.writable)
    assert not {True, False, *WalkFault} - seen


@pytest.mark.parametrize(
    ("source", "access", "address"),
    [
        ("mov rax,[0x200123]", READ, 0x200123),
        ("mov [0x2007f9],rax", WRITE, 0x2007F9),
        ("lock xadd [0x200008],rax", WRITE, 0x200008),
        ("mov eax,0x200456\n jmp rax", FETCH, 0x200456),
    ],
)
def test_a_failed_walk_gives_the_exact_address_and_access(source: str, access: int, address: int) -> None:
    machine = Machine()
    assert machine.run(f"mov esi,7\n {source}") == CpuExit.WALK_FAULT
    assert machine.exit[:2] == (address, access)
    box = machine.engine.box
    assert (box[mb.EXIT_USER], box[mb.EXIT_WHY], box[mb.EXIT_LEVEL]) == (0, WalkFault.NOT_PRESENT, 2)
    assert machine.engine.rip == (address if access == FETCH else CODE + 5)
    assert machine.reg(6) == 7


def test_a_walk_sets_accessed_on_its_path_and_dirty_only_for_a_store() -> None:
    machine = Machine()
    read, written = machine.map(0x200000, 0x20000, P | W | U), machine.map(0x201000, 0x21000, P | W | U)
    assert machine.run("mov rax,[0x200000]\n mov [0x201000],rax\n hlt") == CpuExit.HLT
    assert machine.ram.q[read] & (A | D) == A
    assert machine.ram.q[written] & (A | D) == A | D


def test_a_clean_page_that_was_read_comes_back_to_the_walker_to_be_written() -> None:
    machine = Machine()
    at = machine.map(0x200000, 0x20000, P | W | U)
    machine.run("mov rax,[0x200000]\n mov [0x200000],rax\n hlt")
    assert machine.ram.q[at] & D


def test_a_large_page_maps_contiguous_frames() -> None:
    machine = Machine(frames=2048)
    machine.map(0x40000000, 0x400000, P | W | U | PS, level=2)
    machine.write(0x400000 + 0x5008, b"\x11\x22\x33\x44\x55\x66\x77\x08")
    assert machine.run("mov rax,[0x40005008]\n mov [0x40005010],rax\n hlt") == CpuExit.HLT
    assert machine.reg(0) == 0x0877665544332211
    assert machine.ram.q[(0x405010) >> 3] == 0x0877665544332211
    assert machine.engine.may_cache(0x405)
    assert not machine.engine.may_cache(0x404)


@pytest.mark.parametrize(("flags", "source", "why"), [
    (P | U, "mov [0x200000],rax", WalkFault.WRITE),
    (P | W | U | NX, "mov eax,0x200000\n jmp rax", WalkFault.NX),
])  # fmt: skip
def test_rights_are_kept_from_the_supervisor(flags: int, source: str, why: WalkFault) -> None:
    machine = Machine()
    machine.map(0x200000, 0x20000, flags)
    assert machine.run(source) == CpuExit.WALK_FAULT
    assert (machine.engine.box[mb.EXIT_WHY], machine.engine.box[mb.EXIT_LEVEL]) == (why, 1)


def test_smap_and_smep_keep_the_supervisor_out_of_user_pages() -> None:
    machine = Machine()
    machine.map(0x200000, 0x20000, P | W | U)
    for page in range(0, LOW, 4096):
        machine.map(page, page, P | W)
    for cr4, source, why in (
        (CR4_SMAP, "mov rax,[0x200000]", WalkFault.SMAP),
        (CR4_SMEP, "mov eax,0x200000\n jmp rax", WalkFault.SMEP),
    ):
        machine.code(CODE, source)
        machine.reset()
        machine.engine.cr4 |= cr4
        machine.load()
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        assert machine.engine.box[mb.EXIT_WHY] == why
    machine.code(CODE, "stac\n mov rax,[0x200000]\n hlt")
    machine.reset()
    machine.engine.cr4 |= CR4_SMAP
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT


def test_smap_holds_for_a_page_that_the_supervisor_runs_code_from() -> None:
    machine = Machine()
    machine.map(0x200000, 0x20000, P | W | U)
    for page in range(0, LOW, 4096):
        machine.map(page, page, P | W)
    machine.code(0x20000, "mov rax,[0x200000]\n hlt", org=0x200000)
    machine.code(CODE, "mov eax,0x200000\n jmp rax")
    machine.reset()
    machine.engine.cr4 |= CR4_SMAP
    machine.load()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert (machine.engine.box[mb.EXIT_WHY], machine.engine.rip) == (WalkFault.SMAP, 0x200000)


def test_a_table_that_names_a_frame_beyond_ram_is_an_exit_and_no_crash() -> None:
    machine = Machine()
    machine.map(0x200000, 1 << 45, P | W | U)
    assert machine.run("mov rax,[0x200000]") == CpuExit.WALK_FAULT
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.BAD_FRAME


@pytest.mark.parametrize("source", ["mov rbx,0x1234567812345678\n mov rax,[rbx]", "mov rbx,1<<47\n jmp rbx"])
def test_a_non_canonical_address_has_its_own_exit(source: str) -> None:
    machine = Machine()
    assert machine.run(source) == CpuExit.NON_CANONICAL


@pytest.mark.parametrize("counting", [True, False])
def test_a_block_that_reaches_into_an_absent_page_runs_up_to_it(counting: bool) -> None:
    machine = Machine(counting=counting)
    machine.map(0x200000, 0x30000, P | W | U)
    start = 0x200FF0
    code = machine.code(0x30FF0, "mov eax,1\n mov ebx,2\n inc eax\n mov rcx,0x1122334455667788\n hlt")
    assert code > 16
    machine.reset(start)
    before = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.exit[:2] == (0x201000, FETCH)
    assert (machine.engine.rip, machine.reg(0), machine.reg(3)) == (start + 12, 2, 2)
    assert not counting or machine.engine.instructions - before == 3
    machine.map(0x201000, 0x31000, P | W | U)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(1) == 0x1122334455667788


def test_five_levels_reach_57_bits() -> None:
    machine = Machine()
    top = machine.new_table()
    machine.ram.q[top >> 3] = machine.root | P | W | U
    machine.ram.q[(top >> 3) + 3] = machine.root | P | W | U
    machine.code(CODE, "mov rbx,0x3000000020000\n mov rax,[rbx]\n mov rbx,1<<56\n mov rax,[rbx]")
    machine.write(0x20000, b"\x55")
    machine.reset()
    e = machine.engine
    e.load_root(Hpa(top), e.cr3, e.cr0, e.cr4, e.efer, 5)
    assert e.enter() == CpuExit.NON_CANONICAL
    assert machine.reg(0) == 0x55
    assert machine.ram.q[(top >> 3) + 3] & A


def test_three_levels_take_32_bits_of_an_address() -> None:
    machine = Machine()
    top = machine.new_table()
    directory = machine.ram.q[machine.ram.q[machine.root >> 3] >> 12 << 9] & ADDR
    machine.ram.q[top >> 3] = machine.ram.q[(top >> 3) + 3] = directory | P | W | U
    machine.write(0x20000, b"\x66")
    machine.code(CODE, "mov rbx,0x7c0020000\n mov al,[rbx]\n mov rbx,0x140000000\n mov al,[rbx]")
    machine.reset()
    e = machine.engine
    e.load_root(Hpa(top), e.cr3, e.cr0, e.cr4, e.efer, 3)
    assert e.enter() == CpuExit.WALK_FAULT
    assert machine.reg(0) & 0xFF == 0x66
    assert machine.exit == (0x40000000, READ, 3)


def test_a_root_has_3_to_5_levels() -> None:
    e = Machine().engine
    with pytest.raises(ModelBug):
        e.load_root(Hpa(0), 0, 0, 0, 0, 2)


def test_without_paging_cr3_is_not_looked_at() -> None:
    machine = Machine()
    e = machine.engine
    e.load_root(Hpa(machine.root), 0, e.cr0 & ~CR0_PG, e.cr4, e.efer, 3)
    assert (e.box[mb.MASK_CR3], e.box[mb.CHECKS], e.kept_roots()) == (0, 0, [])
    e.load_root(Hpa(machine.root), 0, e.cr0, e.cr4, e.efer)
    e.load_root(Hpa(machine.root), 0x1000, e.cr0, e.cr4, e.efer)
    assert e.kept_roots() == [(0, machine.root)]
    e.drop_root(0x1000)
    e.env[lay.ENV_CR // 8 + 3] = 0
    e.load_root(Hpa(machine.root), 0x1000, e.cr0, e.cr4, e.efer)
    e.drop_all_roots()
    machine.code(CODE, "nop")
    assert e.enter() == CpuExit.CR_ACCESS, "a CR3 of 0 has no root either"


@pytest.mark.parametrize(("pkru", "source", "result"), [
    (0, "mov [0x200000],rax", None),
    (1 << 10, "mov rax,[0x200000]", WalkFault.PK),
    (2 << 10, "mov rax,[0x200000]", None),
    (2 << 10, "mov rax,[0x200000]\n mov [0x200000],rax", WalkFault.PK),
    (~(3 << 10), "mov [0x200000],rax", None),
    (3 << 10, "mov eax,0x200000\n call rax", None),
])  # fmt: skip
def test_protection_keys_guard_data_of_user_pages(pkru: int, source: str, result: WalkFault | None) -> None:
    machine = Machine()
    for page in range(0, LOW, 4096):
        machine.map(page, page, P | W)
    machine.map(0x200000, 0x20000, P | W | U | 5 << 59)
    machine.write(0x20000, b"\xc3")
    machine.code(CODE, f"xor ecx,ecx\n xor edx,edx\n mov eax,{pkru & 0xFFFFFFFF}\n wrpkru\n {source}\n hlt")
    machine.reset()
    machine.engine.cr4 |= CR4_PKE
    machine.load()
    code = machine.engine.enter()
    assert code == (CpuExit.HLT if result is None else CpuExit.WALK_FAULT)
    assert result is None or machine.engine.box[mb.EXIT_WHY] == result
