from __future__ import annotations

from itertools import product

from shadowvm.addr import Gfn, Hva, Pfn
from shadowvm.kvm.memslot import MemSlot
from shadowvm.kvm.mmu.spte import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    SPTE_HOST_WRITABLE,
    SPTE_MMU_PRESENT,
    SPTE_MMU_WRITABLE,
    is_last_spte,
    is_shadow_present,
    make_nonleaf_spte,
    make_spte,
    spte_pfn,
)
from shadowvm.x86 import PT_NX, PT_PAGE_SIZE, PT_PKEY_MASK, PT_PRESENT, PT_USER, PT_WRITABLE

PLAIN = Gfn(5)


def slot() -> MemSlot:
    return MemSlot(0, Gfn(0), 16, Hva(0))


def test_rights_are_what_guest_and_host_both_allow() -> None:
    for access, host_writable in product(range(8), (False, True)):
        spte = make_spte(slot(), access, PLAIN, Pfn(0x123), host_writable)
        writable = bool(access & ACC_WRITE_MASK) and host_writable
        assert bool(spte & PT_WRITABLE) == writable
        assert bool(spte & SPTE_MMU_WRITABLE) == writable
        assert bool(spte & SPTE_HOST_WRITABLE) == host_writable
        assert bool(spte & PT_USER) == bool(access & ACC_USER_MASK)
        assert bool(spte & PT_NX) != bool(access & ACC_EXEC_MASK)
        assert spte & PT_PRESENT
        assert is_shadow_present(spte)
        assert spte_pfn(spte) == 0x123


def test_the_key_of_the_guest_is_the_key_of_the_spte() -> None:
    for key in range(16):
        spte = make_spte(slot(), ACC_ALL, PLAIN, Pfn(0x123), True, key << 59)
        assert spte & PT_PKEY_MASK == key << 59
        assert spte & ~PT_PKEY_MASK == make_spte(slot(), ACC_ALL, PLAIN, Pfn(0x123), True)


def test_a_link_leaves_rights_to_the_leaf() -> None:
    link = make_nonleaf_spte(Pfn(0x77))
    assert spte_pfn(link) == 0x77
    assert link & ACC_WRITE_MASK
    assert link & PT_USER
    assert not link & PT_NX


def test_which_entries_are_leaves() -> None:
    leaf = make_spte(slot(), ACC_ALL, PLAIN, Pfn(1), True)
    assert is_last_spte(leaf, 1)
    assert is_last_spte(leaf | PT_PAGE_SIZE, 2)
    assert not is_last_spte(make_nonleaf_spte(Pfn(1)), 2)
    assert not is_shadow_present(0)
    assert SPTE_MMU_PRESENT & leaf
