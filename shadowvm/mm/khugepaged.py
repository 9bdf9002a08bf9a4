"""Collapse: 512 pages that ptes map become one huge page (mm/khugepaged.c)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Hva, Vpn
from ..phys import ZERO_PAGE
from ..x86 import PT_PRESENT
from .compound import alloc_compound, put_compound
from .huge import map_huge_page
from .mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page_alloc import put_page
from .pgtable import pmd_alloc, pmdp_collapse_flush
from .rmap import page_remove_rmap
from .swap_state import free_swap_cache
from .vma import VM_PFNMAP, find_vma

if TYPE_CHECKING:
    from .mm_struct import MmStruct
    from .page_alloc import Page
    from .vma import Vma


class ScanResult(Enum):
    """enum scan_result: SCAN_*."""

    SUCCEED = "succeed"
    VMA_CHECK = "no area covers the block"
    PMD_MAPPED = "a huge page is there already"
    PMD_NULL = "no page is there"
    EXCEED_SWAP_PTE = "a page is in swap"
    PAGE_COUNT = "somebody uses a page"
    ALLOC_HUGE_PAGE_FAIL = "no run of free frames"


def collapse_huge_page(mm: MmStruct, vpn: Vpn) -> ScanResult:
    """Replace the pages of a block by one huge page with their contents, as MADV_COLLAPSE does. Takes mmap_lock."""
    host = mm.host
    block = vpn >> 9
    mm.mmap_lock.acquire()
    try:
        vma = find_vma(mm, Hva(block << 21))
        if vma is None or vma.flags & VM_PFNMAP or not vma.start <= block << 21 or vma.end < block + 1 << 21:
            return ScanResult.VMA_CHECK
        result = _scan_pmd(mm, block)
        if result is not ScanResult.SUCCEED:
            return result
        head = alloc_compound(host)
        if head is None:
            return ScanResult.ALLOC_HUGE_PAGE_FAIL
        result = _collapse(mm, vma, block, head)
        if result is not ScanResult.SUCCEED:
            put_compound(host, head)
        return result
    finally:
        mm.mmap_lock.release()


def _scan_pmd(mm: MmStruct, block: int) -> ScanResult:
    """hpage_collapse_scan_pmd(): whether every pte is none or maps a page that nobody but the mm uses."""
    if block in mm.huge_pmds:
        return ScanResult.PMD_MAPPED
    table = mm.pte_tables.get(block)
    ptes = [] if table is None else mm.q[table : table + 512].tolist()
    if not any(ptes):
        return ScanResult.PMD_NULL
    for pte in ptes:
        if pte and not pte & PT_PRESENT:
            return ScanResult.EXCEED_SWAP_PTE
        page = mm.mem_map[pte >> PAGE_SHIFT]
        if pte and page is not mm.host.zone.zero_page and (page.mapcount > 1 or page.refcount > 1 + page.swapcache):
            return ScanResult.PAGE_COUNT
    return ScanResult.SUCCEED


def _collapse(mm: MmStruct, vma: Vma, block: int, head: Page) -> ScanResult:
    """Inside the bracket, in which no secondary MMU maps the block, look again, copy, and change the pmd."""
    start = Hva(block << 21)
    range_ = MmuNotifierRange(mm, start, Hva(start + HUGE_PAGE_SIZE), MmuNotifierEvent.CLEAR)
    mmu_notifier_invalidate_range_start(range_)
    mm.page_table_lock.acquire()
    result = _scan_pmd(mm, block)
    old: list[Page] = []
    if result is ScanResult.SUCCEED:
        at = pmd_alloc(mm, Vpn(block << 9))
        assert at is not None, "the block has a pte table"
        table, ptes = pmdp_collapse_flush(mm, block, at)
        old = _copy_pages(mm, ptes, head)
        map_huge_page(mm, vma, block, at, head, table)
        mm.host.vmstat.thp_collapse_alloc += 1
    mm.page_table_lock.release()
    mmu_notifier_invalidate_range_end(range_)
    for page in old:
        free_swap_cache(mm.host, page)
        put_page(mm.host, page)
    return result


def _copy_pages(mm: MmStruct, ptes: list[int], head: Page) -> list[Page]:
    """Copy what the ptes mapped, and zeros where they were none; returns the pages that are unmapped by that."""
    b, zero_page = mm.host.ram.b, mm.host.zone.zero_page
    old = []
    for i, pte in enumerate(ptes):
        page = mm.mem_map[pte >> PAGE_SHIFT]
        target = head.pfn + i << PAGE_SHIFT
        if not pte or page is zero_page:
            b[target : target + PAGE_SIZE] = ZERO_PAGE
            continue
        source = page.pfn << PAGE_SHIFT
        b[target : target + PAGE_SIZE] = b[source : source + PAGE_SIZE]
        page_remove_rmap(mm, page)
        old.append(page)
    return old
