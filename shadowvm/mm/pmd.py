"""Huge pmds: entries of 2 MiB in the host page tables (arch/x86/mm/pgtable.c, include/linux/huge_mm.h).

Every store to a huge pmd is in this file, and tells `host_pte_change` what it means for each of its 512 vpns: the
entry with the vpn's own frame, PT_PAGE_SIZE included. A block (vpn >> 9) is in `mm.huge_pmds`, as the pmd's place in
`ram.q`, or in `mm.pte_tables`, never in both. `mm.deposited` holds a table for each huge pmd, so that it can always be
split. While one is being split its pmd is not present but not none: whoever finds it waits for page_table_lock, which
is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Hva, Vpn
from ..events import host_pte_change
from ..x86 import PT_ACCESSED, PT_PAGE_SIZE, PT_PRESENT, PT_WRITABLE
from .mmu_notifier import mmu_notifier_arch_invalidate_secondary_tlbs
from .page_alloc import Page
from .pgtable import PMD_TABLE

if TYPE_CHECKING:
    from .mm_struct import MmStruct

HPAGE_PMD_NR = 512


def huge_pte(mm: MmStruct, vpn: Vpn) -> int:
    """What a present huge pmd says of one page: its entry, with the page's own frame; else 0."""
    at = mm.huge_pmds.get(vpn >> 9)
    if at is None:
        return 0
    entry = mm.q[at]
    return entry + ((vpn & 511) << PAGE_SHIFT) if entry & PT_PRESENT else 0


def set_huge_pmd(mm: MmStruct, block: int, at: int, entry: int, table: Page) -> None:
    """Fill the pmd at `at`, which is none; `table`, of zeros, is for the day when it is split."""
    mm.q[at] = entry
    mm.huge_pmds[block] = at
    mm.deposited[block] = table
    mm.huge_gibs.add(block >> 9)
    _tell(mm, block, 0, entry)


def pmdp_huge_clear_flush(mm: MmStruct, block: int) -> tuple[int, Page]:
    """Make it none and flush the TLB; returns what it was, with its final A and D, and the table that it had."""
    at = mm.huge_pmds.pop(block)
    old = mm.q[at]
    mm.q[at] = 0
    _flush_tlb_pmd(mm, block)
    _tell(mm, block, old, 0)
    return old, mm.deposited.pop(block)


def pmdp_invalidate(mm: MmStruct, block: int) -> int:
    """Make it not present, but not none, and flush; returns what it was."""
    at = mm.huge_pmds[block]
    old = mm.q[at]
    mm.q[at] = old & ~PT_PRESENT
    _flush_tlb_pmd(mm, block)
    _tell(mm, block, old, 0)
    return old


def pmd_populate_split(mm: MmStruct, block: int, entry: int) -> None:
    """Put the deposited table in the place of an invalidated pmd, filled with what that said (`entry`)."""
    table = mm.deposited.pop(block)
    base = table.pfn << 9
    pte = entry & ~PT_PAGE_SIZE
    for i in range(HPAGE_PMD_NR):
        mm.q[base + i] = pte + (i << PAGE_SHIFT)
    mm.q[mm.huge_pmds.pop(block)] = table.pfn << PAGE_SHIFT | PMD_TABLE
    mm.pte_tables[block] = base
    _tell(mm, block, 0, pte)


def pmdp_set_wrprotect(mm: MmStruct, block: int) -> None:
    """Take the right to write away and flush the TLB."""
    at = mm.huge_pmds[block]
    old = mm.q[at]
    mm.q[at] = new = old & ~PT_WRITABLE
    _flush_tlb_pmd(mm, block)
    _tell(mm, block, old, new)


def pmdp_set_access_flags(mm: MmStruct, vpn: Vpn, bits: int) -> None:
    """Add rights, A or D to a present huge pmd, for an access to `vpn`. No flush, as with a pte."""
    at = mm.huge_pmds[vpn >> 9]
    old = mm.q[at]
    mm.q[at] = new = old | bits
    if host_pte_change.on:
        offset = (vpn & 511) << PAGE_SHIFT
        host_pte_change(mm.id, vpn, old + offset, new + offset)


def pmdp_clear_flush_young(mm: MmStruct, block: int) -> bool:
    """Clear A and flush, so that the next access sets it again; returns what it was."""
    at = mm.huge_pmds[block]
    old = mm.q[at]
    if not old & PT_ACCESSED:
        return False
    mm.q[at] = new = old & ~PT_ACCESSED
    _flush_tlb_pmd(mm, block)
    if host_pte_change.on:
        host_pte_change(mm.id, block << 9, old, new)
    return True


def _tell(mm: MmStruct, block: int, old: int, new: int) -> None:
    if host_pte_change.on:
        for i in range(HPAGE_PMD_NR):
            offset = i << PAGE_SHIFT
            host_pte_change(mm.id, block << 9 | i, old and old + offset, new and new + offset)


def _flush_tlb_pmd(mm: MmStruct, block: int) -> None:
    if mm.tlb:
        for vpn in range(block << 9, block + 1 << 9):
            if mm.tlb.pop(vpn, None) is not None:
                mm.tlb_w.pop(vpn, None)
    if mm.notifiers.secondary_tlbs:
        start = Hva(block << 21)
        mmu_notifier_arch_invalidate_secondary_tlbs(mm, start, Hva(start + HUGE_PAGE_SIZE))
