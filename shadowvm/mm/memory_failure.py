"""A frame of the host has failed: it is taken from whoever uses it, and never used again (mm/memory-failure.c).

Where a process had the only copy of its data, an access finds a poisoned entry (VmFault.HWPOISON), for which the kernel
sends SIGBUS. A page whose data is in swap as well loses nothing: the next access reads it again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Hva, Pfn, Vpn
from ..events import memory_failure_event
from ..x86 import PT_PRESENT
from .compound import HPAGE_PMD_NR
from .fault import VmFault
from .filemap import folio_lock, folio_unlock
from .gup import get_user_page
from .huge import split_huge_pmd
from .lru import isolate_lru_folio
from .mmu_notifier import (
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page_alloc import Page, get_page, put_page
from .pgtable import ptep_clear_flush, set_hwpoison_pte
from .rmap import CLEAR, page_remove_rmap, try_to_unmap

if TYPE_CHECKING:
    from .host import Host
    from .mm_struct import MmStruct

MAX_ISOLATE_RETRIES = 100


class MfResult(Enum):
    """enum mf_result."""

    IGNORED = "Ignored"
    """The kernel's own: nothing can be done about it."""
    FAILED = "Failed"
    """Others hold on to it."""
    DELAYED = "Delayed"
    """Its data waits in the swap cache for an access, which will fail."""
    RECOVERED = "Recovered"


def memory_failure(host: Host, pfn: Pfn) -> MfResult:
    """Take a frame out of service. May sleep."""
    result = _memory_failure(host, pfn)
    if memory_failure_event.on:
        memory_failure_event(pfn, result.value)
    return result


def madvise_hwpoison(mm: MmStruct, start: Hva) -> MfResult | VmFault:
    """MADV_HWPOISON: fail the page at an address, faulted in as needed."""
    page = get_user_page(mm, Vpn(start >> PAGE_SHIFT), False)
    if not isinstance(page, Page):
        return page
    pfn = page.pfn
    put_page(mm.host, page)
    return memory_failure(mm.host, pfn)


def _memory_failure(host: Host, pfn: Pfn) -> MfResult:
    zone = host.zone
    page: Page | None = zone.mem_map[pfn] if 0 <= pfn < len(zone.mem_map) else None
    if page is None or page is zone.zero_page or page.hwpoison:
        return MfResult.IGNORED
    if not page.refcount:
        return _take_page_off_buddy(host, page)
    if page.mapping is None and not page.swapcache:
        return MfResult.IGNORED
    # This reference is never given back.
    get_page(page)
    _split_huge_page(host, page)
    if not _lock_and_isolate(host, page):
        put_page(host, page)
        return MfResult.FAILED
    page.hwpoison = True
    zone.managed -= 1
    result = _unmap(host, page)
    folio_unlock(host, page)
    return result


def _take_page_off_buddy(host: Host, page: Page) -> MfResult:
    """A free frame: nobody will be given it."""
    zone = host.zone
    first = page.pfn & -HPAGE_PMD_NR
    if first in zone.free_runs:
        zone.free_runs.remove(first)
        zone.free_list += zone.mem_map[first : first + HPAGE_PMD_NR]
    if page not in zone.free_list:
        return MfResult.IGNORED  # of a driver's block, which counts nothing but its first frame
    zone.free_list.remove(page)
    zone.nr_free -= 1
    zone.managed -= 1
    page.refcount, page.hwpoison = 1, True
    return MfResult.RECOVERED


def _split_huge_page(host: Host, page: Page) -> None:
    """Only the frame that has failed is to go, not its 511 neighbours."""
    head: Page | None = host.zone.mem_map[page.pfn & -HPAGE_PMD_NR]
    if head is None or not head.order or head.mapping is None:
        return
    get_page(head)
    folio_lock(host, head)
    block = head.index >> 9
    for mm in head.mapping.mms:
        at = mm.huge_pmds.get(block)
        if at is not None and mm.q[at] >> PAGE_SHIFT == head.pfn:
            split_huge_pmd(mm, block)
    folio_unlock(host, head)
    put_page(host, head)


def _lock_and_isolate(host: Host, page: Page) -> bool:
    """The folio lock, and the page off the LRU, so that reclaim does not come upon it. False: reclaim keeps it."""
    for _ in range(MAX_ISOLATE_RETRIES):
        folio_lock(host, page)
        if isolate_lru_folio(host.lruvec, page):
            page.refcount -= 1
            return True
        folio_unlock(host, page)
        host.sched.preempt()
    return False


def _unmap(host: Host, page: Page) -> MfResult:
    """hwpoison_user_mappings() and me_swapcache_dirty() or _clean(): the page is locked."""
    if not page.swapcache:
        _poison_mappings(page)
        return MfResult.RECOVERED
    if page.mapcount:
        try_to_unmap(host, page)
    if page.dirty and host.swap.count(page.private):
        return MfResult.DELAYED
    host.swap.cache_del(page)
    page.refcount -= 1
    return MfResult.RECOVERED


def _poison_mappings(page: Page) -> None:
    """try_to_unmap() with TTU_HWPOISON: a poisoned entry in place of every pte."""
    if page.mapping is None:
        return
    vpn = page.index
    start = Hva(vpn << PAGE_SHIFT)
    for mm in page.mapping.mms:
        range_ = MmuNotifierRange(mm, start, Hva(start + PAGE_SIZE), CLEAR)
        mmu_notifier_invalidate_range_start(range_)
        mm.page_table_lock.acquire()
        table = mm.pte_tables.get(vpn >> 9)
        index = 0 if table is None else table + (vpn & 511)
        if index and mm.q[index] & PT_PRESENT and mm.q[index] >> PAGE_SHIFT == page.pfn:
            ptep_clear_flush(mm, vpn, index)
            set_hwpoison_pte(mm, vpn, index, page.pfn)
            page_remove_rmap(mm, page)
            page.refcount -= 1
        mm.page_table_lock.release()
        mmu_notifier_invalidate_range_end(range_)
