"""The CPU's two-dimensional walk refuses what KVM's walk of the guest's tables refuses, with the same error code."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest

from shadowvm.addr import Hpa
from shadowvm.cpu.engine import FETCH, READ, WRITE
from shadowvm.cpu.nested import GuestFault, GuestPaging, Mapped
from shadowvm.cpu.walker import KNOSMAP, KSMAP, USER
from shadowvm.kvm.mmu.paging_mode import PagingMode, paging_mode, rsvd_bits, rsvd_large_bits
from shadowvm.kvm.mmu.permission import permission_fault
from shadowvm.kvm.mmu.spte import ACC_EXEC_MASK
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
    PFERR_FETCH,
    PFERR_USER,
    PFERR_WRITE,
)
from tests.cpu.machine import NX, PS, A, D, Machine, P, U, W
from tests.cpu.nested_machine import FULL, identity
from tests.cpu.test_nested import load_guest, native_walk

CR4 = {
    PagingMode.PT32: CR4_PSE,
    PagingMode.PAE: CR4_PAE,
    PagingMode.PT64: CR4_PAE,
    PagingMode.LA57: CR4_PAE | CR4_LA57,
}
MODES = tuple(CR4)
PAGE, PKRU_KEY = 0x40000, 5
ACCESSES = ((READ, 0), (WRITE, PFERR_WRITE), (FETCH, PFERR_FETCH))
INDICES = ((KSMAP, 0, True), (KNOSMAP, 0, False), (USER, PFERR_USER, False))


class Guest:
    """Tables of one address, 0, in one mode: `at[level]` is the byte offset of its entry."""

    def __init__(self, mode: PagingMode) -> None:
        self.machine = Machine(frames=1024, tables=False)
        self.mode, self.width = mode, 4 if mode is PagingMode.PT32 else 8
        self.top = {PagingMode.PT64: 4, PagingMode.LA57: 5}.get(mode, 2)
        tables = {level: self.machine.new_table() for level in range(self.top, 0, -1)}
        self.at, self.below = tables, {level: tables[level - 1] if level > 1 else PAGE for level in tables}
        self.machine.engine.load_nested_root(Hpa(identity(self.machine, 1024)))
        self.machine.engine.nested.has_ad = False
        self.paging = GuestPaging(
            CR0_PG,
            tables[self.top],
            CR4[mode],
            EFER_NX | (EFER_LMA if self.top > 3 else 0),
            0,
            (tables[2] | P, 0, 0, 0),
        )
        for level in tables:
            self.set(level, self.below[level] | FULL | A | D)

    def set(self, level: int, entry: int) -> None:
        self.machine.write(self.at[level], entry.to_bytes(8, "little")[: self.width])

    def load(self, paging: GuestPaging) -> None:
        load_guest(self.machine, paging)


@pytest.mark.parametrize("mode", MODES)
def test_rights_and_keys_as_kvm_has_them(mode: PagingMode) -> None:
    guest = Guest(mode)
    has_nx = (0, NX) if guest.width == 8 else (0,)
    keys = ((0, 0), (PKRU_KEY, 1), (PKRU_KEY, 2)) if guest.top > 3 else ((0, 0),)
    for wp, smep, smap, pke, (key, rights) in product((0, CR0_WP), (0, CR4_SMEP), (0, CR4_SMAP), (0, CR4_PKE), keys):
        pkru = rights << 2 * key
        cr0, cr4 = CR0_PG | wp, CR4[mode] | smep | smap | pke
        guest.load(guest.paging._replace(cr0=cr0, cr4=cr4, pkru=pkru))
        vcpu = SimpleNamespace(mode=mode, cr0=cr0, cr4=cr4, engine=SimpleNamespace(pkru=pkru))
        for w, u, nx in product((0, W), (0, U), has_nx):
            guest.set(1, PAGE | P | w | u | nx | A | D | key << 59)
            access = w | u | (0 if nx else ACC_EXEC_MASK)
            for (how, pferr), (index, user, vcpu.smap_active) in product(ACCESSES, INDICES):
                cause = permission_fault(vcpu, access, key << 59, pferr | user)  # type: ignore[arg-type]
                found = native_walk(guest.machine, 0x123, how, index)
                if cause:
                    assert found == GuestFault(cause)
                else:
                    assert isinstance(found, Mapped)
                    write = permission_fault(vcpu, access, key << 59, PFERR_WRITE | user)  # type: ignore[arg-type]
                    assert how == FETCH or found.writable == (not write)


@pytest.mark.parametrize("mode", MODES)
def test_rights_of_every_level_count(mode: PagingMode) -> None:
    guest = Guest(mode)
    guest.load(guest.paging)
    for level in guest.at:
        for bit, how in ((W, WRITE), (U, READ)) if guest.width == 4 else ((W, WRITE), (U, READ), (NX, FETCH)):
            guest.set(level, (guest.below[level] | FULL | A | D) ^ bit)
            assert native_walk(guest.machine, 0x123, how, USER) == GuestFault(P)
            guest.set(level, guest.below[level] | FULL | A | D)
            assert isinstance(native_walk(guest.machine, 0x123, how, USER), Mapped)


@pytest.mark.parametrize("nx", [0, EFER_NX])
@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_each_bit_is_reserved_where_kvm_has_it_reserved(mode: PagingMode, features: bool, nx: int) -> None:
    guest = Guest(mode)
    paging = guest.paging._replace(efer=guest.paging.efer & ~EFER_NX | nx, gigabyte=features, pse36=features)
    guest.load(paging)
    assert paging_mode(paging.cr0, paging.cr4, paging.efer) is mode
    always = rsvd_bits(mode, paging.efer) if guest.width == 8 else 0
    model = SimpleNamespace(has=lambda name: features)
    large = rsvd_large_bits(mode, model)  # type: ignore[arg-type]
    for level, bit in product(guest.at, range(8 * guest.width)):
        for size in (0, PS) if level > 1 else (0,):
            if bit in (0, 7):
                continue
            entry = size or guest.below[level]
            entry ^= FULL | A | D | 1 << bit
            guest.set(level, entry)
            reserved = entry & always or (size and entry & large[level])
            found = native_walk(guest.machine, 0, READ, KNOSMAP)
            assert (found == GuestFault(P | 8)) == bool(reserved), (level, bit, size)
        guest.set(level, guest.below[level] | FULL | A | D)
