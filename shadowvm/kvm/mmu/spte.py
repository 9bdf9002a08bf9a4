"""Shadow page table entries: their bits and how one is made (arch/x86/kvm/mmu/spte.c).

An spte is a real x86 entry, read by the CPU's walker. Bits 9-11, which the CPU ignores, carry KVM's own state.
Legal (host-writable, mmu-writable, W) of a leaf: 111, 110, 100, 000.

`sptep` is the index of the entry in `ram.q`: its hpa is `sptep * 8`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ...addr import Gfn, Pfn
from ...errors import ModelBug
from ...events import spte_change
from ...mm.fault import VmFault
from ...x86 import (
    PFERR_FETCH,
    PFERR_WRITE,
    PT_ACCESSED,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vm import Kvm

SPTE_HOST_WRITABLE = 1 << 9
SPTE_MMU_WRITABLE = 1 << 10
SPTE_MMU_PRESENT = 1 << 11
SPTE_MMIO = 1 << 51
"""The reserved bit of an entry where no memory is (mmio_spte.py)."""

FROZEN_SPTE = 0x1A0
"""Not present, and nobody may put anything there: the table behind it is being torn down, or the entry is in one."""

ACC_EXEC_MASK = 1
ACC_WRITE_MASK = PT_WRITABLE
ACC_USER_MASK = PT_USER
ACC_ALL = ACC_EXEC_MASK | ACC_WRITE_MASK | ACC_USER_MASK

_LEAF = PT_PRESENT | SPTE_MMU_PRESENT | PT_ACCESSED
_WRITABLE = PT_WRITABLE | SPTE_MMU_WRITABLE | PT_DIRTY
_NONLEAF = PT_PRESENT | SPTE_MMU_PRESENT | PT_ACCESSED | PT_WRITABLE | PT_USER


class RetPf(IntEnum):
    """What became of a fault (mmu_internal.h); negative values are errno of the host."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    WRITE_PROTECTED = 3
    INVALID = 4
    FIXED = 5
    SPURIOUS = 6
    GUEST = 7
    """The guest's own tables refuse: #PF was queued."""
    EAGAIN = -11
    EINTR = -4
    EHWPOISON = -133
    EFAULT = -14
    ENOMEM = -12


RET_PF_CONTINUE, RET_PF_RETRY, RET_PF_WRITE_PROTECTED = RetPf.CONTINUE, RetPf.RETRY, RetPf.WRITE_PROTECTED
RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_GUEST = RetPf.FIXED, RetPf.SPURIOUS, RetPf.GUEST
RET_PF_EMULATE, RET_PF_INVALID = RetPf.EMULATE, RetPf.INVALID
"""The members that every fault names: looking one up in its enum costs as much as a call."""


def kvm_handle_error_pfn(fault: VmFault) -> RetPf:
    """What a fault comes to when the host has no page for it: no memory, a page that was lost, no mapping."""
    if fault & VmFault.OOM:
        return RetPf.ENOMEM
    return RetPf.EHWPOISON if fault & VmFault.HWPOISON else RetPf.EFAULT


def make_spte(slot: MemSlot, access: int, gfn: Gfn, pfn: Pfn, host_writable: bool, pkey: int = 0) -> int:
    """A present leaf entry with `access`, less what the host pte forbids.

    `pkey`: the PT_PKEY_MASK bits of the guest's leaf; the CPU compares them with PKRU at each fill.
    Whether the shadowing of `gfn` allows stores is the caller's to find out (mmu_try_to_unsync_pages).
    """
    bits = _LEAF | access & ACC_USER_MASK | pkey
    if host_writable:
        bits |= SPTE_HOST_WRITABLE
        if access & ACC_WRITE_MASK:
            bits |= _WRITABLE
    return pfn << 12 | bits if access & ACC_EXEC_MASK else pfn << 12 | bits | PT_NX


def check_spte_writable_invariants(spte: int) -> None:
    """A leaf is MMU-writable only if host-writable, and has W only if MMU-writable; ModelBug (invariant I24)."""
    if spte & SPTE_MMU_WRITABLE:
        if not spte & SPTE_HOST_WRITABLE:
            raise ModelBug(f"spte {spte:#x} is MMU-writable, but not host-writable")
    elif spte & PT_WRITABLE:
        raise ModelBug(f"spte {spte:#x} is writable, but not MMU-writable")


def is_access_allowed(spte: int, error_code: int) -> bool:
    """Whether a leaf of two-dimensional paging lets pass the access that an error code (W, F) tells of."""
    if error_code & PFERR_FETCH:
        return spte & (PT_PRESENT | PT_NX) == PT_PRESENT
    if error_code & PFERR_WRITE:
        return spte & (PT_PRESENT | PT_WRITABLE) == PT_PRESENT | PT_WRITABLE
    return bool(spte & PT_PRESENT)


def make_nonleaf_spte(pfn: Pfn) -> int:
    """An entry that links a shadow page; rights are enforced at the leaf."""
    return pfn << 12 | _NONLEAF


def is_shadow_present(spte: int) -> bool:
    """is_shadow_present_pte()."""
    return bool(spte & SPTE_MMU_PRESENT)


def is_last_spte(spte: int, level: int) -> bool:
    """Whether a present entry maps a page instead of linking a table."""
    return level == 1 or bool(spte & PT_PAGE_SIZE)


def spte_pfn(spte: int) -> Pfn:
    """The frame that an entry names."""
    return Pfn((spte & PT_ADDR_MASK) >> 12)


def mmu_spte_set(kvm: Kvm, sptep: int, spte: int) -> None:
    """Store an entry. Every store to a shadow table goes through here or mmu_spte_clear()."""
    if spte_change.on:
        spte_change(sptep * 8, kvm.q[sptep], spte)
    kvm.q[sptep] = spte


def mmu_spte_clear(kvm: Kvm, sptep: int) -> int:
    """Make an entry non-present; returns what stood there."""
    old = kvm.q[sptep]
    if spte_change.on:
        spte_change(sptep * 8, old, 0)
    kvm.q[sptep] = 0
    return old
