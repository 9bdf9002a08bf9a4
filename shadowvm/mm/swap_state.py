"""The swap cache: pages that are in memory and have a slot, and read-ahead into it (mm/swap_state.c).

A page enters it to be written out, or when it is read back; while it stays clean its slot stays good, and it can
be dropped without another write. A mapped page leaves it when it is written to, or when swap runs short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SwapIOError
from .filemap import folio_trylock, folio_unlock
from .page_alloc import Page, put_page
from .page_io import swap_read_submitted
from .swap import SWAP_MAP_MAX, swap_read_pages

if TYPE_CHECKING:
    from .host import Host

PAGE_CLUSTER = 3
"""log2 of the largest read-ahead (/proc/sys/vm/page-cluster)."""


def add_to_swap(host: Host, page: Page) -> bool:
    """Give a locked page a slot. False: swap is full, and no slot that it could do without is held by a page."""
    swap = host.swap
    slot = swap.alloc_slot()
    if slot is None:
        if not _reclaim_slots(host):
            return False
        slot = swap.alloc_slot()
        assert slot is not None
    swap.cache_add(slot, page)
    page.dirty = True
    return True


def _reclaim_slots(host: Host) -> bool:
    """swap_reclaim_full_clusters(): take the slots of pages that are mapped and need none."""
    swap = host.swap
    if not swap.cache_only:
        return False
    swap.cache_only = False
    for slot, page in list(swap.cache.items()):
        if swap.swap_map[slot] & SWAP_MAP_MAX:
            continue
        if not folio_trylock(page):
            swap.cache_only = True
            continue
        page.refcount += 1
        folio_free_swap(host, page)
        folio_unlock(host, page)
        put_page(host, page)
    return swap.nr_free > 0


def folio_free_swap(host: Host, page: Page) -> bool:
    """Take a locked page out of the swap cache if no pte refers to its slot; the page is then dirty.

    The caller holds a reference of its own, or the page is mapped.
    """
    swap = host.swap
    if not page.swapcache or swap.swap_map[page.private] & SWAP_MAP_MAX:
        return False
    swap.cache_del(page)
    page.dirty = True
    page.refcount -= 1
    return True


def free_swap_cache(host: Host, page: Page) -> None:
    """A page lost its last mapping: if nobody needs its slot, the cache lets go of it. The caller has a reference."""
    if page.swapcache and not page.mapcount and folio_trylock(page):
        folio_free_swap(host, page)
        folio_unlock(host, page)


def free_swap_and_cache(host: Host, slot: int) -> None:
    """A pte with this swap entry is gone for good."""
    swap = host.swap
    swap.put(slot)
    page = swap.cache.get(slot)
    if page is not None and not swap.swap_map[slot] & SWAP_MAP_MAX:
        page.refcount += 1
        free_swap_cache(host, page)
        put_page(host, page)


def swapin_readahead(host: Host, slot: int) -> Page | None:
    """Read `slot`, and neighbours that are worth it, into the swap cache. None: out of memory.

    The page returned has a reference for the caller, and is locked while the read goes on. It may not be in the cache
    under `slot` any more, or never have been, if the slot was freed while the allocation slept: the caller looks at its
    pte again. May sleep. Raises SwapIOError; the page is then out of the cache again.
    """
    page = host.alloc_page()
    if page is None:
        return None
    swap, zone = host.swap, host.zone
    if slot in swap.cache or not swap.swap_map[slot]:
        # Somebody was faster while we slept. A page that never was in the cache tells the caller as much.
        found = swap.cache.get(slot)
        if found is None:
            return page
        put_page(host, page)
        found.refcount += 1
        return found
    batch = [page] if zone.nr_free <= zone.low else _gather_readahead(host, slot, page)
    swap.cache_add(slot, page)
    page.locked = True
    try:
        _read_batch(host, batch)
    except SwapIOError:
        put_page(host, page)
        raise
    return page


def _gather_readahead(host: Host, slot: int, target: Page) -> list[Page]:
    """`target`, which will hold `slot`, among locked swap cache pages for its neighbours, in order of slot.

    The window is aligned. A neighbour counts if its slot is in use, not in memory, and memory is plentiful.
    """
    swap, zone = host.swap, host.zone
    swap_map, cache = swap.swap_map, swap.cache
    nr = _swapin_nr_pages(host, slot)
    start = slot & -nr
    batch = []
    for other in range(start, min(start + nr, swap.nr_slots)):
        if other == slot:
            batch.append(target)
        elif swap_map[other] and other not in cache and zone.nr_free > zone.low:
            page = host.alloc_page_nowait()
            if page is not None:
                swap.cache_add(other, page)
                # The cache's reference is the only one of a page that nobody asked for.
                page.refcount = 1
                page.locked = page.readahead = True
                batch.append(page)
    host.vmstat.swap_ra += len(batch) - 1
    return batch


def _swapin_nr_pages(host: Host, slot: int) -> int:
    """Window of the next read-ahead: hits widen it, their absence halves it, a sequential walk keeps it open."""
    swap = host.swap
    wanted = swap.hits + 2
    swap.hits = 0
    if wanted == 2:
        nr = 2 if abs(slot - swap.prev_slot) == 1 else 1
        swap.prev_slot = slot
    else:
        nr = 4 if wanted <= 4 else 8
    nr = max(min(nr, 1 << PAGE_CLUSTER), swap.prev_window // 2)
    swap.prev_window = nr
    return nr


def _read_batch(host: Host, batch: list[Page]) -> None:
    """Read locked swap cache pages. They are unlocked, and on the LRU, when the read is complete."""
    try:
        swap_read_pages(host, batch)
    except SwapIOError:
        for page in batch:
            host.swap.cache_del(page)
            folio_unlock(host, page)
            put_page(host, page)
        raise
    swap_read_submitted(host, batch)
