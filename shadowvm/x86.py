"""Bits of x86-64 paging, control registers and exceptions (Intel SDM vol. 3, chapters 2, 4 and 6)."""

from __future__ import annotations

PT_PRESENT = 1 << 0
PT_WRITABLE = 1 << 1
PT_USER = 1 << 2
PT_PWT = 1 << 3
PT_PCD = 1 << 4
PT_ACCESSED = 1 << 5
PT_DIRTY = 1 << 6
PT_PAGE_SIZE = 1 << 7
PT_GLOBAL = 1 << 8
PT_PKEY_SHIFT = 59
PT_PKEY_MASK = 15 << PT_PKEY_SHIFT
"""Protection key of a leaf, bits 62:59."""
PT_NX = 1 << 63
PT_ADDR_MASK = 0x000F_FFFF_FFFF_F000
"""Bits 51:12, the frame of an entry at any level."""

CR0_PE = 1 << 0
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_PGE = 1 << 7
CR4_LA57 = 1 << 12
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11

RFLAGS_IF = 1 << 9
RFLAGS_AC = 1 << 18

PFERR_PRESENT = 1 << 0
PFERR_WRITE = 1 << 1
PFERR_USER = 1 << 2
PFERR_RSVD = 1 << 3
PFERR_FETCH = 1 << 4
PFERR_PK = 1 << 5
PFERR_GUEST_FINAL = 1 << 32
PFERR_GUEST_PAGE = 1 << 33
"""Of a nested page fault: at the final address of the guest's walk, or at a page of its tables (AMD APM 2, 15.25.6)."""

DE_VECTOR, DB_VECTOR, NMI_VECTOR, BP_VECTOR, OF_VECTOR, BR_VECTOR, UD_VECTOR, NM_VECTOR = range(8)
DF_VECTOR, TS_VECTOR, NP_VECTOR, SS_VECTOR, GP_VECTOR, PF_VECTOR = 8, 10, 11, 12, 13, 14
MF_VECTOR, AC_VECTOR, MC_VECTOR, XM_VECTOR = 16, 17, 18, 19


def is_canonical(gva: int) -> bool:
    """A 4-level linear address: bits 63:47 all equal."""
    return (gva + (1 << 47)) & 0xFFFF_FFFF_FFFF_FFFF < 1 << 48


def pt_index(address: int, level: int) -> int:
    """Index into the table of `level` (1 = page table, 4 = PML4)."""
    return address >> (3 + 9 * level) & 511
