"""The native two-dimensional walk against its Python twin, on random tables in every paging mode."""

from __future__ import annotations

import ctypes
import random

import pytest

from shadowvm.addr import Gpa, Hpa
from shadowvm.cpu import layout as lay
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import FETCH, READ, WRITE, CpuExit, WalkFault
from shadowvm.cpu.native.nested import GUEST_FAULT
from shadowvm.cpu.nested import GuestFault, GuestPaging, Mapped, NestedFault, NestedTable, NonCanonical, walk
from shadowvm.cpu.walker import KNOSMAP, KSMAP, USER
from shadowvm.x86 import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NX,
    PT_ADDR_MASK,
)
from tests.cpu.machine import NX, PS, A, D, Machine, P, U, W

NESTED, GUEST, FRAMES = 0, 16, 32
"""First frames of the nested tables, one for each level and a few for level 1, and of the guest's pages."""
EXITS = {CpuExit.EPT_VIOLATION, CpuExit.EPT_MISCONFIG}
Outcome = Mapped | GuestFault | NestedFault | NonCanonical
MODES = {
    "nonpaging": (0, 0, 0),
    "32-bit": (CR0_PG, CR4_PSE, 0),
    "PAE": (CR0_PG, CR4_PAE, 0),
    "4-level": (CR0_PG, CR4_PAE, EFER_LMA),
    "5-level": (CR0_PG, CR4_PAE | CR4_LA57, EFER_LMA),
}


def fill_nested(rng: random.Random, machine: Machine) -> None:
    """Every guest-physical address leads to one of the guest's frames, but for a few flaws."""
    q = machine.ram.q
    for level in range(5, 0, -1):
        for index in range(512):
            target = NESTED + level - 1 if level > 1 else rng.randrange(GUEST, FRAMES)
            entry = target << 12 | P | W | U | rng.getrandbits(2) << 5
            flaw = rng.random() if level < 3 or index else 1
            if flaw < 0.02:
                entry ^= rng.choice((P, W, U, NX, D))
            elif flaw < 0.025 and level in (2, 3):
                entry = (
                    PS | P | W | U | rng.getrandbits(2) << 5 | (rng.randrange(512) << 21 if rng.random() < 0.2 else 0)
                )
            elif flaw < 0.028:
                entry |= 1 << 51
            q[(NESTED + level << 9) + index] = entry


def fill_guest(rng: random.Random, machine: Machine, guest: GuestPaging) -> None:
    """The guest's frames as tables that mostly point at each other."""
    words = machine.ram.b[GUEST << 12 : FRAMES << 12].cast("Q" if guest.width == 8 else "I")
    for i in range(len(words)):
        entry = rng.getrandbits(20) << 12 | rng.getrandbits(12) & ~PS | W | U
        entry |= P if rng.random() < 0.97 else 0
        entry |= A if rng.random() < 0.8 else 0
        if rng.random() < 0.15:
            entry ^= rng.choice((W, U))
        if rng.random() < 0.2:
            entry = entry & ~rng.choice((0x3FF000, 0x3FFFF000)) | PS | (rng.getrandbits(1) << 12)
            entry |= 1 << rng.randrange(12, 22) if rng.random() < 0.1 else 0
        if guest.width == 8:
            entry |= rng.getrandbits(20) << 32 if rng.random() < 0.05 else 0
            entry |= NX if rng.random() < 0.1 else 0
            entry |= rng.getrandbits(4) << 59 if rng.random() < (0.5 if guest.long_mode else 0.02) else 0
        words[i] = entry


def choose_guest(rng: random.Random, mode: str) -> GuestPaging:
    cr0, cr4, efer = MODES[mode]
    cr0 |= rng.choice((0, CR0_WP))
    cr4 |= rng.choice((0, CR4_SMEP, CR4_SMAP, CR4_SMEP | CR4_SMAP | CR4_PKE, CR4_PKE))
    if mode == "32-bit" and rng.random() < 0.3:
        cr4 &= ~CR4_PSE
    efer |= EFER_NX if rng.random() < 0.8 else 0
    pdptrs = tuple(rng.getrandbits(20) << 12 | (P if rng.random() < 0.9 else 0) for _ in range(4))
    return GuestPaging(
        cr0,
        rng.getrandbits(20) << 12 | rng.getrandbits(5),
        cr4,
        efer,
        rng.getrandbits(32) & rng.getrandbits(32) & ~3,
        pdptrs,
        rng.choice((36, 40, 48)),
        rng.random() < 0.7,
        rng.random() < 0.7,
        -1 if rng.random() < 0.7 else ~(1 << 20),
        (0, 0) if rng.random() < 0.7 else (rng.getrandbits(32), 1 << 32),
    )


def load_guest(machine: Machine, guest: GuestPaging) -> None:
    engine = machine.engine
    env = engine.env
    for n, value in ((0, guest.cr0), (3, guest.cr3), (4, guest.cr4)):
        env[lay.ENV_CR // 8 + n] = value
    env[lay.ENV_EFER // 8] = guest.efer
    ctypes.c_uint32.from_address(engine._env_address + lay.ENV_PKRU).value = guest.pkru
    engine.load_pdptrs(guest.cr3, guest.pdptrs)
    engine.nested.set_features(guest.maxphyaddr, gigabyte=guest.gigabyte, pse36=guest.pse36)
    engine.nested.gpa_mask = guest.gpa_mask
    engine.nested.rom = guest.rom


def native_walk(machine: Machine, va: int, access: int, mmu_idx: int) -> Outcome | int:
    engine = machine.engine
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)(engine._native.address["walk_both"])
    found = function(engine._arrays.mailbox.address, va, access, mmu_idx)
    box = engine.box
    if found >= 0:
        return Mapped(found >> 1, bool(found & 1), box[mb.GUEST_PAGE])
    if -found == GUEST_FAULT:
        return GuestFault(box[mb.FAULT_CAUSE])
    if -found == CpuExit.NON_CANONICAL:
        return NonCanonical()
    if -found not in EXITS:
        return -found
    why = WalkFault(box[mb.EXIT_WHY])
    assert (-found == CpuExit.EPT_MISCONFIG) == (why == WalkFault.BAD_FRAME)
    return NestedFault(box[mb.EXIT_GPA], box[mb.EXIT_ACCESS], bool(box[mb.EXIT_FINAL]), box[mb.EXIT_LEVEL], why)


def choose_address(rng: random.Random, guest: GuestPaging) -> int:
    if not guest.cr0 & CR0_PG or not guest.long_mode:
        return rng.getrandbits(32)
    bits = 12 + 9 * guest.levels[0]
    va = rng.getrandbits(bits) - (1 << bits - 1)
    return va if rng.random() < 0.98 else va ^ 1 << 62


def kind(outcome: Outcome | int) -> object:
    if isinstance(outcome, Mapped):
        return outcome.writable, outcome.size
    if isinstance(outcome, NestedFault):
        return outcome.access, outcome.final, outcome.why
    return outcome


@pytest.mark.parametrize("mode", MODES)
def test_the_native_walk_equals_its_twin_on_random_tables(mode: str) -> None:
    rng = random.Random(mode)
    machine = Machine(frames=64, tables=False)
    fill_nested(rng, machine)
    ram, seen = machine.ram, set()
    for i in range(12_000):
        if i % 200 == 0:
            guest = choose_guest(rng, mode)
            fill_guest(rng, machine, guest)
            load_guest(machine, guest)
            level = rng.choice((4, 4, 5))
            root = NESTED + level << 12
            machine.engine.load_nested_root(Hpa(root), level)
            machine.engine.nested.has_ad = has_ad = rng.random() < 0.7
            clean = bytes(ram.b[: FRAMES << 12])
        va, access = choose_address(rng, guest), rng.choice((READ, READ, WRITE, FETCH))
        mmu_idx = rng.choice((KSMAP, USER, KNOSMAP))
        ram.b[: FRAMES << 12] = clean
        native = native_walk(machine, va, access, mmu_idx)
        after = bytes(ram.b[: FRAMES << 12])
        ram.b[: FRAMES << 12] = clean
        assert walk(NestedTable(ram, root, level, has_ad=has_ad), guest, va, access, mmu_idx) == native
        assert bytes(ram.b[: FRAMES << 12]) == after
        seen.add(kind(native))
    assert {(True, 4096), (False, 4096)} <= seen
    assert {(WRITE, True, WalkFault.WRITE), (FETCH, True, WalkFault.NX), (READ, True, WalkFault.BAD_FRAME)} <= seen
    if mode != "nonpaging":
        assert {GuestFault(0), GuestFault(P), GuestFault(P | 8)} <= seen
        assert {(READ, False, WalkFault.NOT_PRESENT), (WRITE, False, WalkFault.WRITE)} <= seen
        assert (True, 4 << 20 if mode == "32-bit" else 2 << 20) in seen
    if mode.endswith("level"):
        assert {GuestFault(P | 0x20), NonCanonical(), (True, 1 << 30)} <= seen


@pytest.mark.parametrize("mode", MODES)
def test_a_look_by_the_twin_changes_nothing_and_sees_what_a_read_sees(mode: str) -> None:
    rng = random.Random(mode)
    machine = Machine(frames=64, tables=False)
    fill_nested(rng, machine)
    guest = choose_guest(rng, mode)
    guest = guest._replace(efer=guest.efer | EFER_NX)
    fill_guest(rng, machine, guest)
    before, root, mapped = bytes(machine.ram.b), NESTED + 4 << 12, 0
    for _ in range(300):
        va = choose_address(rng, guest)
        looked = walk(NestedTable(machine.ram, root, mark=False), guest, va)
        assert bytes(machine.ram.b) == before
        read = walk(NestedTable(machine.ram, root), guest, va, READ, KNOSMAP)
        machine.ram.b[:] = before
        if isinstance(read, Mapped):
            assert isinstance(looked, Mapped)
            assert looked.pfn == read.pfn
            mapped += 1
    assert mapped > 20


def test_a_large_nested_page_of_1_gib_gives_contiguous_frames() -> None:
    machine = Machine(frames=1024, tables=False)
    root, third = machine.new_table(), machine.new_table()
    machine.ram.q[root >> 3] = third | P | W | U
    machine.ram.q[third >> 3] = P | W | U | PS
    table = NestedTable(machine.ram, root)
    assert table.walk(Gpa(0x123456), WRITE, final=True) == (0x123, True)
    assert machine.ram.q[third >> 3] & PT_ADDR_MASK == 0
    assert machine.ram.q[third >> 3] & (A | D) == A | D
