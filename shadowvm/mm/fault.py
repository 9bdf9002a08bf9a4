"""The page fault of a process: what handle_mm_fault() makes of one access (mm/memory.c).

Of anonymous memory: first touch, copy on write, swap-in; huge pages are in huge.py, devices in pfnmap.py. The caller
holds mmap_lock for reading and has checked that the area allows the access. Whoever finds under page_table_lock that
the pte changed leaves it: the access is tried again and faults again if it must.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Hva, Vpn
from ..events import handle_mm_fault as trace_handle_mm_fault
from ..x86 import PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_WRITABLE
from .filemap import folio_lock, folio_unlock
from .huge import HugeFault, Thp, handle_huge_fault
from .lru import lru_add
from .mmu_notifier import (
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page_alloc import Page, put_page
from .pfnmap import pfnmap_fault
from .pgtable import (
    HUGE_PMD,
    HWPOISON_ENTRY,
    PAGE_READONLY,
    PAGE_SHARED_DIRTY,
    pte_alloc,
    ptep_clear_flush,
    ptep_set_access_flags,
    set_pte,
)
from .rmap import CLEAR, page_add_anon_rmap, page_add_new_anon_rmap, page_remove_rmap
from .swap import SWAP_MAP_MAX
from .swap_state import folio_free_swap, free_swap_cache, swapin_readahead
from .vma import VM_PFNMAP, VM_WRITE, Vma

if TYPE_CHECKING:
    from .mm_struct import MmStruct


class VmFault(IntFlag):
    """vm_fault_t. Compare with `is`: the members' own operators are slow, and a fault returns one of these."""

    NONE = 0
    OOM = 1
    SIGBUS = 2
    MAJOR = 4
    SIGSEGV = 0x40
    HWPOISON = 0x10
    """The data was lost with its frame."""
    RETRY = 0x400
    """It takes I/O, and the caller does not wait."""


NONE, OOM, MAJOR, RETRY = VmFault.NONE, VmFault.OOM, VmFault.MAJOR, VmFault.RETRY
NEVER, DONE = Thp.NEVER, HugeFault.DONE


def handle_mm_fault(mm: MmStruct, vma: Vma, hva: Hva, write: bool, nowait: bool = False) -> VmFault:
    """Make one access possible: NONE, MAJOR (it took I/O) or OOM. May sleep; raises SwapIOError.

    With nowait (FAULT_FLAG_RETRY_NOWAIT) I/O is started but not waited for: RETRY, and a later call finds the page.
    """
    if trace_handle_mm_fault.on:
        trace_handle_mm_fault(hva, write)
    mm.host.vmstat.pgfault += 1
    vpn = Vpn(hva >> PAGE_SHIFT)
    if vma.flags & VM_PFNMAP:
        return NONE if pfnmap_fault(mm, vma, vpn, write) else OOM
    table = mm.pte_tables.get(vpn >> 9)
    if table is None:
        if (mm.huge_pmds or mm.host.thp is not NEVER) and handle_huge_fault(mm, vma, vpn, write) is DONE:
            return NONE
        index = pte_alloc(mm, vpn)
        if index is None:
            return OOM
        if index == HUGE_PMD:
            return NONE
    else:
        index = table + (vpn & 511)
    pte = mm.q[index]
    if not pte:
        return _do_anonymous_page(mm, vma, vpn, index, write)
    if not pte & PT_PRESENT:
        return _do_swap_page(mm, vma, vpn, index, pte, write, nowait)
    if write and not pte & PT_WRITABLE:
        return _do_wp_page(mm, vma, vpn, index, pte)
    # Somebody else was faster. Whoever accesses it now sets A and D itself.
    return NONE


def _do_anonymous_page(mm: MmStruct, vma: Vma, vpn: Vpn, index: int, write: bool) -> VmFault:
    """First touch: a read maps the zero page, a write a fresh page of zeros."""
    host = mm.host
    if not write:
        mm.page_table_lock.acquire()
        if not mm.q[index]:
            set_pte(mm, vpn, index, host.zone.zero_page.pfn << PAGE_SHIFT | PAGE_READONLY)
        mm.page_table_lock.release()
        return NONE
    page = host.alloc_page(True)
    if page is None:
        return OOM
    mm.page_table_lock.acquire()
    if mm.q[index]:
        mm.page_table_lock.release()
        put_page(host, page)
        return NONE
    page_add_new_anon_rmap(mm, vma, page, vpn)
    lru_add(host.lruvec, page)
    set_pte(mm, vpn, index, page.pfn << PAGE_SHIFT | PAGE_SHARED_DIRTY)
    mm.page_table_lock.release()
    return NONE


def _do_wp_page(mm: MmStruct, vma: Vma, vpn: Vpn, index: int, pte: int) -> VmFault:
    """A write to a read-only pte of a writable area: take the page over if it is ours alone, else copy it."""
    host = mm.host
    page = host.zone.mem_map[pte >> PAGE_SHIFT]
    if page is host.zone.zero_page:
        return _wp_page_copy(mm, vma, vpn, index, pte, None)
    page.refcount += 1
    try:
        folio_lock(host, page)
        reused = _wp_can_reuse(mm, page) and _wp_page_reuse(mm, vpn, index, pte, page)
        folio_unlock(host, page)
        if reused or mm.q[index] != pte:
            return NONE
        return _wp_page_copy(mm, vma, vpn, index, pte, page)
    finally:
        put_page(host, page)


def _wp_can_reuse(mm: MmStruct, page: Page) -> bool:
    """wp_can_reuse_anon_folio(): one mapping, ours, and no reference but that, the cache's and the caller's."""
    if page.mapcount != 1 or page.refcount > 2 + page.swapcache:
        return False
    return not page.swapcache or not mm.host.swap.count(page.private)


def _wp_page_reuse(mm: MmStruct, vpn: Vpn, index: int, pte: int, page: Page) -> bool:
    mm.page_table_lock.acquire()
    same = mm.q[index] == pte
    if same:
        folio_free_swap(mm.host, page)
        page.dirty = True
        mm.host.vmstat.pgreuse += 1
        ptep_set_access_flags(mm, vpn, index, PT_WRITABLE | PT_DIRTY | PT_ACCESSED)
    mm.page_table_lock.release()
    return same


def _wp_page_copy(mm: MmStruct, vma: Vma, vpn: Vpn, index: int, pte: int, old: Page | None) -> VmFault:
    """Map a private copy of `old`, or of zeros. No secondary MMU maps the page while the pte changes."""
    host = mm.host
    page = host.alloc_page(old is None)
    if page is None:
        return OOM
    if old is not None:
        source, target, b = old.pfn << PAGE_SHIFT, page.pfn << PAGE_SHIFT, host.ram.b
        b[target : target + PAGE_SIZE] = b[source : source + PAGE_SIZE]
    start = Hva(vpn << PAGE_SHIFT)
    range_ = MmuNotifierRange(mm, start, Hva(start + PAGE_SIZE), CLEAR)
    mmu_notifier_invalidate_range_start(range_)
    mm.page_table_lock.acquire()
    spare: Page | None = page
    # A and D may have changed, which makes no difference; the frame or its rights may not.
    if not (mm.q[index] ^ pte) & ~(PT_ACCESSED | PT_DIRTY):
        ptep_clear_flush(mm, vpn, index)
        page_add_new_anon_rmap(mm, vma, page, vpn)
        lru_add(host.lruvec, page)
        set_pte(mm, vpn, index, page.pfn << PAGE_SHIFT | PAGE_SHARED_DIRTY)
        if old is not None:
            page_remove_rmap(mm, old)
        spare = old
    mm.page_table_lock.release()
    mmu_notifier_invalidate_range_end(range_)
    if spare is not None:
        free_swap_cache(host, spare)
        put_page(host, spare)
    return NONE


def _do_swap_page(mm: MmStruct, vma: Vma, vpn: Vpn, index: int, entry: int, write: bool, nowait: bool) -> VmFault:
    """Bring a page back: from the swap cache, or from the file with read-ahead."""
    if entry & HWPOISON_ENTRY:
        return VmFault.HWPOISON
    host = mm.host
    swap = host.swap
    slot = entry >> PAGE_SHIFT
    fault = NONE
    page = swap.cache.get(slot)
    if page is not None:
        page.refcount += 1
        if page.readahead:
            page.readahead = False
            swap.hits += 1
            host.vmstat.swap_ra_hit += 1
    else:
        page = swapin_readahead(host, slot)
        if page is None:
            return OOM
        fault = MAJOR
        host.vmstat.pgmajfault += 1
    if page.locked:
        if nowait:
            put_page(host, page)
            # It counts when it comes to its end (mm_account_fault).
            host.vmstat.pgfault -= 1
            return RETRY
        folio_lock(host, page)
    page.locked = True
    if page.hwpoison:
        folio_unlock(host, page)
        put_page(host, page)
        return VmFault.HWPOISON
    mm.page_table_lock.acquire()
    # While we waited, reclaim may have thrown the page out, and another fault may have mapped it.
    mapped = mm.q[index] == entry and page.swapcache and page.private == slot
    if mapped:
        _map_swapped_page(mm, vma, vpn, index, page, write)
    mm.page_table_lock.release()
    folio_unlock(host, page)
    if not mapped:
        put_page(host, page)
    return fault


def _map_swapped_page(mm: MmStruct, vma: Vma, vpn: Vpn, index: int, page: Page, write: bool) -> None:
    """Replace a swap entry by a mapping of its page.

    A page that is ours alone becomes writable at once, but dirty only by a write: clean, it keeps its slot, and can
    be dropped without writing it again.
    """
    swap = mm.host.swap
    slot = page.private
    swap.put(slot)
    mm.rss_swap -= 1
    pte = page.pfn << PAGE_SHIFT | PAGE_READONLY
    if page.mapcount:
        page_add_anon_rmap(mm, page)
    else:
        page_add_new_anon_rmap(mm, vma, page, vpn)
        if not swap.swap_map[slot] & SWAP_MAP_MAX:
            if vma.flags & VM_WRITE:
                pte |= PT_WRITABLE | PT_DIRTY if write else PT_WRITABLE
            if write or swap.nr_free * 2 < swap.nr_slots:
                folio_free_swap(mm.host, page)
    set_pte(mm, vpn, index, pte)
