"""MMIO sptes: a shadow entry that remembers that no memory is there (make_mmio_spte of spte.c, mmu.c).

The entry is present for the CPU and has a reserved bit set: an access that the guest's rights allow ends as a fault
with RSVD (mmio_fault.py). It is good for one generation of the memory slots, of which it holds 19 bits.

    0 P   1 W   2 U   3-8 generation 0-5   12-39 gfn   40-50 generation 6-16   51 reserved   52-53 generation 17-18
    59-62 protection key   63 NX

P, W, U, the key and NX are the guest's rights. KVM's own bits 9-11 are clear: the entry is not shadow-present.
"""

from __future__ import annotations

from ...addr import PAGE_SHIFT, Gfn
from ...x86 import PT_NX, PT_PRESENT
from .spte import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK, SPTE_MMIO, SPTE_MMU_PRESENT

MMIO_SPTE_GEN_MASK = (1 << 19) - 1
KVM_PFN_NOSLOT = -1
"""The pfn of a fault where no slot is."""

_RIGHTS = ACC_WRITE_MASK | ACC_USER_MASK
_GFN_MASK = (1 << 28) - 1


def make_mmio_spte(gfn: Gfn, access: int, generation: int, pkey: int = 0) -> int:
    """An entry for `gfn`, with ACC_* rights `access`, good while the slots have `generation`."""
    spte = PT_PRESENT | SPTE_MMIO | gfn << PAGE_SHIFT | access & _RIGHTS | pkey
    spte |= (generation & 0x3F) << 3 | (generation >> 6 & 0x7FF) << 40 | (generation >> 17 & 3) << 52
    return spte if access & ACC_EXEC_MASK else spte | PT_NX


def is_mmio_spte(spte: int) -> bool:
    """Whether an entry of a level 1 table is one of these."""
    return bool(spte & SPTE_MMIO) and not spte & SPTE_MMU_PRESENT


def get_mmio_spte_gfn(spte: int) -> Gfn:
    """The guest frame without memory."""
    return Gfn(spte >> PAGE_SHIFT & _GFN_MASK)


def get_mmio_spte_access(spte: int) -> int:
    """The guest's rights, as ACC_*."""
    return spte & _RIGHTS | (0 if spte & PT_NX else ACC_EXEC_MASK)


def get_mmio_spte_generation(spte: int) -> int:
    """19 bits of the generation for which it is good."""
    return spte >> 3 & 0x3F | (spte >> 40 & 0x7FF) << 6 | (spte >> 52 & 3) << 17
