"""Paging modes of the guest, and what each makes of the control registers (SDM vol. 3, 4.1.1).

The shadow tables have four levels for a 4-level guest and five for a 5-level one. Every other guest lives in the low
4 GiB: as KVM does on a 64-bit host, its CPU then walks a PAE root of four entries over shadow pages of level 2.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from ...addr import PAGE_SHIFT, Gfn
from ...x86 import CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, EFER_NX, PT_ADDR_MASK, PT_NX, PT_PAGE_SIZE

if TYPE_CHECKING:
    from ..cpuid import CpuModel

MAXPHYADDR = 40
"""Physical address bits of the CPU model (CPUID 0x80000008)."""

RSVD_ADDR = PT_ADDR_MASK & ~((1 << MAXPHYADDR) - 1)
PDPTR_RSVD = 0x1E6 | RSVD_ADDR | 0x7FF << 52 | PT_NX
"""Reserved bits of a present PAE page-directory-pointer entry (SDM 4.4.1)."""


class PagingMode(IntEnum):
    """How the guest translates linear addresses."""

    NONPAGING = 0
    PT32 = 1
    PAE = 2
    PT64 = 3
    LA57 = 4


NONPAGING, PT32, PAE, PT64, LA57 = PagingMode


class ModeTraits(NamedTuple):
    """levels: of the guest's tables that are walked, topmost first. root_level: of the shadow root the CPU walks."""

    levels: tuple[int, ...]
    root_level: int


TRAITS = {
    PagingMode.NONPAGING: ModeTraits((), 3),
    PagingMode.PT32: ModeTraits((2, 1), 3),
    PagingMode.PAE: ModeTraits((2, 1), 3),
    PagingMode.PT64: ModeTraits((4, 3, 2, 1), 4),
    PagingMode.LA57: ModeTraits((5, 4, 3, 2, 1), 5),
}


def paging_mode(cr0: int, cr4: int, efer: int) -> PagingMode:
    """The mode that the control registers select."""
    if not cr0 & CR0_PG:
        return PagingMode.NONPAGING
    if not cr4 & CR4_PAE:
        return PagingMode.PT32
    if not efer & EFER_LMA:
        return PagingMode.PAE
    return PagingMode.LA57 if cr4 & CR4_LA57 else PagingMode.PT64


def rsvd_bits(mode: PagingMode, efer: int) -> int:
    """Bits that must be clear in every present entry of 64 bits."""
    nx = 0 if efer & EFER_NX else PT_NX
    return RSVD_ADDR | nx | (0x7FF << 52 if mode is PagingMode.PAE else 0)


def rsvd_large_bits(mode: PagingMode, model: CpuModel) -> tuple[int, ...]:
    """By level: bits that must be clear in an entry with PS set, PS itself where the CPU knows no page of that size.

    In 32-bit entries these are bit 21, or without PSE-36 all of the upper half of the address (SDM vol. 3, 4.3).
    """
    if mode is PagingMode.PT32:
        return (0, 0, 1 << 21 if model.has("pse36") else 0x3FE000)
    gigabyte = 0x3FFFE000 if model.has("pdpe1gb") else PT_PAGE_SIZE
    return (0, 0, 0x1FE000, gigabyte, PT_PAGE_SIZE, PT_PAGE_SIZE)


def root_gfn(mode: PagingMode, cr3: int) -> Gfn:
    """The frame of the guest's topmost table (of the table of pointers, in PAE mode)."""
    return Gfn((cr3 & (0xFFFFF000 if mode <= PagingMode.PAE else PT_ADDR_MASK)) >> PAGE_SHIFT)
