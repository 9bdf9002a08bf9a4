"""Reverse mapping of anonymous pages: from a page to the ptes that map it (mm/rmap.c).

`page.mapping` is the AnonVma, `page.index` the vpn. Several mms may share an AnonVma; those of its mappings that
are really there are counted in `page.mapcount`. Callers of the walks hold the folio lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Hva, Vpn
from ..errors import ModelBug
from ..events import folio_referenced as trace_folio_referenced
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PRESENT
from .mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_clear_flush_young,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .pgtable import ptep_clear_flush_young, ptep_swap_out
from .pmd import huge_pte, pmdp_clear_flush_young
from .vma import Vma, find_vma

if TYPE_CHECKING:
    from .host import Host
    from .mm_struct import MmStruct
    from .page_alloc import Page

CLEAR = MmuNotifierEvent.CLEAR


class AnonVma:
    """The mms in which a page of this family may be mapped, in order of birth."""

    __slots__ = ("mms",)

    def __init__(self, mm: MmStruct) -> None:
        self.mms = [mm]


def anon_vma_prepare(mm: MmStruct, vma: Vma) -> AnonVma:
    """The area's AnonVma; the first fault makes it."""
    if vma.anon_vma is None:
        vma.anon_vma = AnonVma(mm)
    return vma.anon_vma


def page_add_new_anon_rmap(mm: MmStruct, vma: Vma, page: Page, vpn: Vpn) -> None:
    """The first mapping of a fresh page. It takes over the caller's reference."""
    page.mapping = vma.anon_vma or anon_vma_prepare(mm, vma)
    page.index = vpn
    page.swapbacked = True
    page.mapcount = 1
    mm.rss_anon += 1


def page_add_anon_rmap(mm: MmStruct, page: Page) -> None:
    """One more mapping of a mapped page, at the same vpn. It takes over the caller's reference."""
    page.mapcount += 1
    mm.rss_anon += 1


def page_remove_rmap(mm: MmStruct, page: Page) -> None:
    """A mapping is gone; the caller drops its reference."""
    if page.mapcount <= 0:
        raise ModelBug(f"{page} loses a mapping that it does not have")
    page.mapcount -= 1
    mm.rss_anon -= 1


def rmap_walk(page: Page) -> list[tuple[MmStruct, Vma, Vpn]]:
    """Where the page may be mapped: (mm, area, vpn). The pte decides."""
    if page.mapping is None:
        return []
    vpn = page.index
    address = Hva(vpn << PAGE_SHIFT)
    found = []
    for mm in page.mapping.mms:
        vma = find_vma(mm, address)
        if vma is not None and vma.anon_vma is page.mapping:
            found.append((mm, vma, vpn))
    return found


def folio_referenced(page: Page) -> int:
    """How many mappings were accessed since the last call. All marks, primary and secondary, are cleared."""
    if not page.mapcount or page.mapping is None:
        return 0
    referenced = 0
    vpn = page.index
    # As rmap_walk, without the areas: a pte that holds this frame needs no second witness.
    for mm in page.mapping.mms:
        table = mm.pte_tables.get(vpn >> 9)
        if table is None:
            referenced += page.order > 0 and _huge_referenced(mm, vpn, page)
            continue
        index = table + (vpn & 511)
        pte = mm.q[index]
        if not pte & PT_PRESENT or pte >> PAGE_SHIFT != page.pfn:
            continue
        young = pte & PT_ACCESSED != 0
        if young:
            ptep_clear_flush_young(mm, vpn, index)
        if mm.notifiers.clear_flush_young:
            start = Hva(vpn << PAGE_SHIFT)
            # Never short-circuited: a mark left behind would keep the page young for one scan too many.
            young = mmu_notifier_clear_flush_young(mm, start, Hva(start + PAGE_SIZE)) or young
        if young:
            referenced += 1
    if trace_folio_referenced.on:
        trace_folio_referenced(page.pfn, referenced)
    return referenced


def _huge_referenced(mm: MmStruct, vpn: Vpn, head: Page) -> bool:
    """folio_referenced() for a huge pmd: all 2 MiB have one mark, and as many in secondary MMUs as they like."""
    if huge_pte(mm, vpn) >> PAGE_SHIFT != head.pfn:
        return False
    young = pmdp_clear_flush_young(mm, vpn >> 9)
    if mm.notifiers.clear_flush_young:
        start = Hva(vpn << PAGE_SHIFT)
        young = mmu_notifier_clear_flush_young(mm, start, Hva(start + HUGE_PAGE_SIZE)) or young
    return young


def try_to_unmap(host: Host, page: Page) -> bool:
    """Replace every pte of a swap cache page, which is no huge one, by its swap entry. True when no mapping is left.

    The page is dirty afterwards if it was written through any of them. The caller holds the folio lock.
    """
    if page.mapping is None:
        raise ModelBug(f"{page} is mapped by nobody known")
    vpn, slot = page.index, page.private
    start = Hva(vpn << PAGE_SHIFT)
    for mm in page.mapping.mms:
        range_ = MmuNotifierRange(mm, start, Hva(start + PAGE_SIZE), CLEAR)
        mmu_notifier_invalidate_range_start(range_)
        mm.page_table_lock.acquire()
        table = mm.pte_tables.get(vpn >> 9)
        if table is not None:
            index = table + (vpn & 511)
            pte = mm.q[index]
            if pte & PT_PRESENT and pte >> PAGE_SHIFT == page.pfn:
                host.swap.duplicate(slot)
                if ptep_swap_out(mm, vpn, index, slot) & PT_DIRTY:
                    page.dirty = True
                page_remove_rmap(mm, page)
                mm.rss_swap += 1
                page.refcount -= 1
        mm.page_table_lock.release()
        mmu_notifier_invalidate_range_end(range_)
    return not page.mapcount
