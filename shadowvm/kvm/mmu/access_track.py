"""Accesses of an spte: by its A bit or, where the CPU has none to give (eptad=0), by faults (arch/x86/kvm/mmu/spte.c).

Bits 52-53 say which. Where the CPU sets no A bit an entry has it from the start, and is aged by taking its rights away
as well: P and U are saved in bits 54 and 56, W is not, since MMU_WRITABLE tells whether it may come back. The entry
stays shadow-present; the CPU finds it not present. So the A bit tells what was used in either case.
"""

from __future__ import annotations

from ...x86 import PT_ACCESSED, PT_PRESENT, PT_USER, PT_WRITABLE
from .spte import SPTE_MMU_PRESENT

SPTE_TDP_AD_MASK = 3 << 52
SPTE_TDP_AD_DISABLED = 1 << 52
SAVED_SHIFT = 54
_SAVED = PT_PRESENT | PT_USER
SAVED_MASK = _SAVED << SAVED_SHIFT
_RIGHTS = PT_PRESENT | PT_WRITABLE | PT_USER


def spte_ad_enabled(spte: int) -> bool:
    """Whether the entry's A and D bits mean something."""
    return spte & SPTE_TDP_AD_MASK != SPTE_TDP_AD_DISABLED


def is_access_track_spte(spte: int) -> bool:
    """Present for KVM, but its rights are put aside until the next access."""
    return spte & (SPTE_MMU_PRESENT | PT_PRESENT) == SPTE_MMU_PRESENT


def mark_spte_old(spte: int) -> int:
    """The entry as ageing leaves it (kvm_tdp_mmu_age_spte): no A, and no rights if the CPU cannot set A again."""
    if spte_ad_enabled(spte):
        return spte & ~PT_ACCESSED
    return mark_spte_for_access_track(spte)


def mark_spte_for_access_track(spte: int) -> int:
    """Put the rights aside."""
    if is_access_track_spte(spte):
        return spte
    return spte & ~(_RIGHTS | PT_ACCESSED) | (spte & _SAVED) << SAVED_SHIFT


def restore_acc_track_spte(spte: int) -> int:
    """Give the saved rights back: the entry was used. W comes from elsewhere."""
    return spte & ~SAVED_MASK | spte >> SAVED_SHIFT & _SAVED | PT_ACCESSED
