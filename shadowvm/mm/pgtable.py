"""Host page tables: real 4-level x86 tables in host frames, one tree for each mm (arch/x86/mm/pgtable.c).

Every store to a pte of a host page table is in this file; each tells `host_pte_change` and drops the host CPU's
own translation. A pte is named by its vpn and `index`, the pte's place in `ram.q`, which stays valid while
mmap_lock or page_table_lock is held. Host ptes use no bit above the frame number, so `pte >> 12` is the pfn; a
swapped page's pte is `slot << 12 | SWP_ENTRY`, and 0 is "none". Entries of 2 MiB are in pmd.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Hva, Pfn, Vpn
from ..events import host_pte_change
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PAGE_SIZE, PT_PRESENT, PT_USER, PT_WRITABLE
from .mmu_notifier import mmu_notifier_arch_invalidate_secondary_tlbs
from .page_alloc import put_page

if TYPE_CHECKING:
    from .mm_struct import MmStruct
    from .page_alloc import Page

HWPOISON_ENTRY = 1 << 10
"""Marks a pte whose page is lost with its frame: `pfn << 12 | HWPOISON_ENTRY`."""

SWP_ENTRY = 1 << 9
"""Marks a pte that is not present as a swap entry: a bit that hardware ignores."""

PTE_SPECIAL = 1 << 9
"""Marks a pte that is present as one without a page to be counted: the frame is a device's (pfnmap.py)."""

PAGE_READONLY = PT_PRESENT | PT_USER | PT_ACCESSED
"""Rights of a fresh mapping; x86's protections are born accessed."""

PAGE_SHARED_DIRTY = PAGE_READONLY | PT_WRITABLE | PT_DIRTY

PMD_TABLE = PT_PRESENT | PT_WRITABLE | PT_USER | PT_ACCESSED
"""Rights of an entry that names a table."""

HUGE_PMD = -1
"""pte_alloc: no table is there, nor will be, since a huge page is mapped meanwhile."""


def pte_index(mm: MmStruct, vpn: Vpn) -> int | None:
    """Where the pte of `vpn` is in `ram.q`, or None if there is no table for it."""
    table = mm.pte_tables.get(vpn >> 9)
    return None if table is None else table + (vpn & 511)


def pte_alloc(mm: MmStruct, vpn: Vpn) -> int | None:
    """As pte_index, but missing tables are made. None: out of memory. May sleep; mmap_lock is held.

    HUGE_PMD: while it slept another fault has mapped a huge page there.
    """
    at = pmd_alloc(mm, vpn)
    if at is None:
        return None
    table = _table_alloc(mm, at)
    if table is None:
        return None
    if mm.q[at] & PT_PAGE_SIZE:
        return HUGE_PMD
    mm.pte_tables[vpn >> 9] = table
    return table + (vpn & 511)


def pmd_alloc(mm: MmStruct, vpn: Vpn) -> int | None:
    """Where the pmd of `vpn` is in `ram.q`; missing tables above it are made. As pte_alloc."""
    pud = _table_alloc(mm, (mm.pgd.pfn << 9) + (vpn >> 27 & 511))
    pmd = None if pud is None else _table_alloc(mm, pud + (vpn >> 18 & 511))
    return None if pmd is None else pmd + (vpn >> 9 & 511)


def _table_alloc(mm: MmStruct, at: int) -> int | None:
    """Place of the table that the entry at `at` names, which is made if the entry is none. None: out of memory."""
    q = mm.q
    if not q[at]:
        page = mm.host.alloc_page(True)
        if page is None:
            return None
        if q[at]:
            # The allocation slept, and another fault was faster.
            put_page(mm.host, page)
        else:
            page.table = True
            mm.host.vmstat.nr_page_table_pages += 1
            q[at] = page.pfn << PAGE_SHIFT | PMD_TABLE
    return q[at] >> PAGE_SHIFT << 9


def populated_tables(mm: MmStruct, start: Hva, end: Hva) -> list[int]:
    """Which blocks (vpn >> 9) of [start, end) have a pte table, in order."""
    return blocks_among(mm.pte_tables, start, end)


def blocks_among(known: dict[int, int], start: Hva, end: Hva) -> list[int]:
    """Which blocks of [start, end) are among the known ones, in order."""
    first, last = start >> 21, (end - 1) >> 21
    if last - first < len(known):
        return [block for block in range(first, last + 1) if block in known]
    return sorted(block for block in known if first <= block <= last)


def free_pgtables(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Free the tables of [start, end) that no area needs any more. mmap_lock is held for writing."""
    for block in populated_tables(mm, start, end):
        if not mm.vmas.overlapping(Hva(block << 21), Hva(block + 1 << 21)):
            mm.page_table_lock.acquire()
            del mm.pte_tables[block]
            freed = _unlink_tables(mm, block, (18, 9, 0))
            mm.page_table_lock.release()
            _free_tables(mm, freed)
    # Huge pages have no pte table whose end would show that the table above it is empty.
    for gib in sorted(mm.huge_gibs):
        if start >> 30 <= gib <= end - 1 >> 30:
            mm.page_table_lock.acquire()
            freed = _unlink_tables(mm, gib << 9, (18, 9))
            mm.page_table_lock.release()
            _free_tables(mm, freed)


def _unlink_tables(mm: MmStruct, block: int, shifts: tuple[int, ...]) -> list[int]:
    """Take out the lowest table on the way to a block, or if it is one of pmds only when empty; then what is empty.

    Returns the frames to free.
    """
    q = mm.q
    path: list[int] = []
    table = mm.pgd.pfn << 9
    for shift in shifts:
        at = table + (block >> shift & 511)
        if not q[at]:
            return []
        path.append(at)
        table = q[at] >> PAGE_SHIFT << 9
    if shifts[-1] and any(q[table : table + 512]):
        return []
    freed: list[int] = []
    for at in reversed(path):
        freed.append(q[at] >> PAGE_SHIFT)
        q[at] = 0
        if any(q[at & -512 : (at & -512) + 512]):
            break
    return freed


def _free_tables(mm: MmStruct, pfns: list[int]) -> None:
    for pfn in pfns:
        mm.host.vmstat.nr_page_table_pages -= 1
        put_page(mm.host, mm.host.zone.mem_map[pfn])


def set_pte(mm: MmStruct, vpn: Vpn, index: int, pte: int) -> None:
    """Fill a pte that is not present."""
    q = mm.q
    old = q[index]
    q[index] = pte
    if old & PT_PRESENT:
        _flush_tlb_page(mm, vpn)
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, pte)


def set_hwpoison_pte(mm: MmStruct, vpn: Vpn, index: int, pfn: Pfn) -> None:
    """Fill a pte that was cleared: the data that was there is lost."""
    set_pte(mm, vpn, index, pfn << PAGE_SHIFT | HWPOISON_ENTRY)


def ptep_clear_flush(mm: MmStruct, vpn: Vpn, index: int) -> int:
    """Clear a pte and flush the TLB; returns what it was, with its final A and D."""
    q = mm.q
    old = q[index]
    q[index] = 0
    if old & PT_PRESENT:
        _flush_tlb_page(mm, vpn)
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, 0)
    return old


def pmdp_collapse_flush(mm: MmStruct, block: int, at: int) -> tuple[Page, list[int]]:
    """Take a pte table out of the pmd at `at`, none of whose ptes is a swap entry, and flush.

    Returns the table, of zeros now, and what its ptes were, with their final A and D.
    """
    q = mm.q
    base = mm.pte_tables.pop(block)
    q[at] = 0
    ptes = q[base : base + 512].tolist()
    for i in range(512):
        q[base + i] = 0
    for i, pte in enumerate(ptes):
        if pte:
            _flush_tlb_page(mm, Vpn(block << 9 | i))
    if host_pte_change.on:
        for i, pte in enumerate(ptes):
            if pte:
                host_pte_change(mm.id, block << 9 | i, pte, 0)
    return mm.mem_map[base >> 9], ptes


def ptep_set_wrprotect(mm: MmStruct, vpn: Vpn, index: int) -> None:
    """Take the right to write away and flush the TLB."""
    q = mm.q
    old = q[index]
    q[index] = new = old & ~PT_WRITABLE
    _flush_tlb_page(mm, vpn)
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, new)


def ptep_set_access_flags(mm: MmStruct, vpn: Vpn, index: int, bits: int) -> None:
    """Add rights, A or D to a present pte. No flush: a TLB without them only walks once more."""
    q = mm.q
    old = q[index]
    q[index] = new = old | bits
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, new)


def ptep_clear_flush_young(mm: MmStruct, vpn: Vpn, index: int) -> bool:
    """Clear A and flush, so that the next access sets it again; returns what it was."""
    q = mm.q
    old = q[index]
    if not old & PT_ACCESSED:
        return False
    q[index] = new = old & ~PT_ACCESSED
    if vpn in mm.tlb or mm.notifiers.secondary_tlbs:
        _flush_tlb_page(mm, vpn)
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, new)
    return True


def ptep_swap_out(mm: MmStruct, vpn: Vpn, index: int, slot: int) -> int:
    """ptep_clear_flush(), then the swap entry of `slot` in its place; returns what the pte was."""
    q = mm.q
    old = q[index]
    q[index] = 0
    if vpn in mm.tlb or mm.notifiers.secondary_tlbs:
        _flush_tlb_page(mm, vpn)
    entry = slot << PAGE_SHIFT | SWP_ENTRY
    if host_pte_change.on:
        host_pte_change(mm.id, vpn, old, 0)
        q[index] = entry
        host_pte_change(mm.id, vpn, 0, entry)
    else:
        q[index] = entry
    return old


def _flush_tlb_page(mm: MmStruct, vpn: Vpn) -> None:
    if mm.tlb.pop(vpn, None) is not None:
        # What may be written may be read, so tlb_w holds nothing that tlb does not.
        mm.tlb_w.pop(vpn, None)
    if mm.notifiers.secondary_tlbs:
        start = Hva(vpn << PAGE_SHIFT)
        mmu_notifier_arch_invalidate_secondary_tlbs(mm, start, Hva(start + PAGE_SIZE))
