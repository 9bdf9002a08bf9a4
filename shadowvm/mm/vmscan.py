"""Page reclaim: second chance over two lists, swap-out in batches, kswapd and direct reclaim (mm/vmscan.c).

A page goes out in these steps: isolated from the LRU, locked, asked whether it was referenced, given a swap slot,
unmapped everywhere (with notifiers), written with its batch, and freed if nobody else holds it. A page that
somebody holds (get_user_page) stays in the swap cache, unmapped, and goes back to the list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SwapIOError
from ..events import (
    mm_vmscan_direct_reclaim_begin,
    mm_vmscan_direct_reclaim_end,
    mm_vmscan_kswapd_sleep,
    mm_vmscan_kswapd_wake,
    mm_vmscan_lru_isolate,
    mm_vmscan_lru_shrink_active,
    mm_vmscan_lru_shrink_inactive,
    mm_vmscan_wakeup_kswapd,
)
from .filemap import folio_unlock
from .huge import split_huge_page
from .lru import LRU_ACTIVE_ANON, LRU_INACTIVE_ANON, LRU_NAMES, inactive_is_low, isolate_lru_folios
from .page_alloc import Page, put_page
from .rmap import folio_referenced, try_to_unmap
from .swap import swap_write_pages
from .swap_state import add_to_swap

if TYPE_CHECKING:
    from .host import Host

SWAP_CLUSTER_MAX = 32
DEF_PRIORITY = 12
MAX_RECLAIM_RETRIES = 16


class ScanControl:
    """One reclaim: how much is wanted, on whose behalf, how hard (a list's length >> priority is scanned)."""

    __slots__ = ("kswapd", "nr_reclaimed", "nr_scanned", "nr_to_reclaim", "priority")

    def __init__(self, nr_to_reclaim: int, kswapd: bool = False) -> None:
        self.nr_to_reclaim = nr_to_reclaim
        self.kswapd = kswapd
        self.priority = DEF_PRIORITY
        self.nr_reclaimed = 0
        self.nr_scanned = 0


class ReclaimStat:
    """What became of one batch; pages in `keep` go back to the lists."""

    __slots__ = ("keep", "nr_activate", "nr_dirty", "nr_reclaimed", "nr_unmap_fail")

    def __init__(self) -> None:
        self.keep: list[Page] = []
        self.nr_reclaimed = self.nr_dirty = self.nr_activate = self.nr_unmap_fail = 0


def shrink_folio_list(host: Host, pages: list[Page], stat: ReclaimStat, ignore_references: bool = False) -> None:
    """Reclaim isolated pages. Those that stay are in `stat.keep`, unlocked. Raises SwapIOError.

    Second chance: every page is born accessed, so it must be seen accessed twice to become active.
    """
    writes: list[Page] = []
    clean: list[Page] = []
    keep = stat.keep
    for page in pages:
        if page.refcount == 1:
            # Its last user let go while it was isolated.
            clean.append(page)
            continue
        if page.locked:
            keep.append(page)
            continue
        page.locked = True
        if not ignore_references and page.mapcount and folio_referenced(page):
            if page.referenced:
                _activate(page, stat)
            else:
                page.referenced = True
        elif _unmap(host, page, stat):
            if page.dirty and host.swap.count(page.private):
                writes.append(page)
            else:
                clean.append(page)
            continue
        folio_unlock(host, page)
        keep.append(page)
    if writes:
        stat.nr_dirty += len(writes)
        try:
            swap_write_pages(host, writes)
        except SwapIOError:
            for page in writes + clean:
                if page.locked:
                    folio_unlock(host, page)
            keep += writes + clean
            raise
    _free_reclaimed(host, clean, stat)
    _free_reclaimed(host, writes, stat)


def _activate(page: Page, stat: ReclaimStat) -> None:
    page.active = True
    page.referenced = False
    stat.nr_activate += 1


def _unmap(host: Host, page: Page, stat: ReclaimStat) -> bool:
    """Give a locked page a slot and take it out of every page table. False: it can't be freed now."""
    page.referenced = False
    if page.order and not _split(host, page, stat):
        return False
    if not page.swapcache and not page.mapcount:
        # Unmapped for good: it goes when the reference that somebody has goes.
        return False
    if not page.swapcache and not add_to_swap(host, page):
        _activate(page, stat)
        return False
    if page.mapcount and not try_to_unmap(host, page):
        stat.nr_unmap_fail += 1
        _activate(page, stat)
        return False
    # The isolation's reference and the cache's. With more, somebody is using the page, or about to map it.
    return page.refcount == 2


def _split(host: Host, head: Page, stat: ReclaimStat) -> bool:
    """A huge page goes out as base pages: its head now, the others with the next scan."""
    if (host.swap.nr_free or host.swap.cache_only) and split_huge_page(host, head):
        return True
    stat.nr_unmap_fail += 1
    _activate(head, stat)
    return False


def _free_reclaimed(host: Host, pages: list[Page], stat: ReclaimStat) -> None:
    """__remove_mapping() and free, but for pages that somebody took or wrote to since they were unmapped."""
    swap = host.swap
    for page in pages:
        if page.swapcache and page.refcount == 2 and not (page.dirty and swap.count(page.private)):
            swap.cache_del(page)
            page.refcount = 1
        if page.locked:
            folio_unlock(host, page)
        if page.refcount == 1 and not page.swapcache:
            put_page(host, page)
            stat.nr_reclaimed += 1
        else:
            stat.keep.append(page)


def move_folios_to_lru(host: Host, pages: list[Page]) -> None:
    """Put isolated pages back, and drop the isolation's reference."""
    inactive, active = host.lruvec.lists
    for page in pages:
        if page.refcount == 1:
            put_page(host, page)
            continue
        # lru_add() and put_page(), in line: most of what a scan does is to put pages back.
        page.refcount -= 1
        if page.active:
            page.lru = LRU_ACTIVE_ANON
            active[page.pfn] = page
        else:
            page.lru = LRU_INACTIVE_ANON
            inactive[page.pfn] = page


def shrink_inactive_list(host: Host, nr_to_scan: int, sc: ScanControl) -> int:
    """Take a batch from the old end of the inactive list; returns how many pages were freed."""
    vmstat = host.vmstat
    pages = _isolate(host, LRU_INACTIVE_ANON, nr_to_scan)
    scanned = len(pages)
    sc.nr_scanned += scanned
    vmstat.pgscan_anon += scanned
    if sc.kswapd:
        vmstat.pgscan_kswapd += scanned
    else:
        vmstat.pgscan_direct += scanned
    stat = ReclaimStat()
    try:
        shrink_folio_list(host, pages, stat)
    finally:
        move_folios_to_lru(host, stat.keep)
    reclaimed = stat.nr_reclaimed
    vmstat.pgsteal_anon += reclaimed
    vmstat.pgactivate += stat.nr_activate
    if sc.kswapd:
        vmstat.pgsteal_kswapd += reclaimed
    else:
        vmstat.pgsteal_direct += reclaimed
    if mm_vmscan_lru_shrink_inactive.on:
        mm_vmscan_lru_shrink_inactive(scanned, reclaimed, stat.nr_dirty, stat.nr_activate, stat.nr_unmap_fail)
    return reclaimed


def shrink_active_list(host: Host, nr_to_scan: int) -> None:
    """Move a batch from the old end of the active list to the inactive list, accessed or not.

    Its marks are cleared, so that the inactive list sees what is accessed from now on.
    """
    pages = _isolate(host, LRU_ACTIVE_ANON, nr_to_scan)
    referenced = 0
    for page in pages:
        if not page.locked:
            page.locked = True
            referenced += folio_referenced(page) > 0
            folio_unlock(host, page)
        page.active = False
    move_folios_to_lru(host, pages)
    host.vmstat.pgrefill += len(pages)
    host.vmstat.pgdeactivate += len(pages)
    if mm_vmscan_lru_shrink_active.on:
        mm_vmscan_lru_shrink_active(len(pages), 0, len(pages), referenced)


def _isolate(host: Host, lru: int, nr: int) -> list[Page]:
    pages = isolate_lru_folios(host.lruvec, lru, nr)
    if mm_vmscan_lru_isolate.on:
        mm_vmscan_lru_isolate(nr, len(pages), len(pages), LRU_NAMES[lru])
    return pages


def shrink_lruvec(host: Host, sc: ScanControl) -> int:
    """Scan the share of both lists that `sc.priority` says, in batches; returns how many pages were freed."""
    lruvec, swap = host.lruvec, host.swap
    if not swap.nr_free and not swap.cache:
        return 0
    # Never less than a batch: a host of few pages would write them to swap one by one.
    inactive = max(len(lruvec.inactive) >> sc.priority, min(len(lruvec.inactive), SWAP_CLUSTER_MAX))
    active = max(len(lruvec.active) >> sc.priority, min(len(lruvec.active), SWAP_CLUSTER_MAX))
    freed = 0
    while (inactive or active) and sc.nr_reclaimed < sc.nr_to_reclaim:
        if active:
            nr = min(active, SWAP_CLUSTER_MAX)
            active -= nr
            if inactive_is_low(lruvec):
                shrink_active_list(host, nr)
        if inactive:
            nr = min(inactive, SWAP_CLUSTER_MAX)
            inactive -= nr
            got = shrink_inactive_list(host, nr, sc)
            freed += got
            sc.nr_reclaimed += got
        host.sched.cond_resched()
    if inactive_is_low(lruvec):
        shrink_active_list(host, SWAP_CLUSTER_MAX)
    return freed


def reclaim_pages(host: Host, pages: list[Page]) -> int:
    """Reclaim isolated pages whatever their marks say (MADV_PAGEOUT); returns how many were freed."""
    freed = 0
    for first in range(0, len(pages), SWAP_CLUSTER_MAX):
        stat = ReclaimStat()
        try:
            shrink_folio_list(host, pages[first : first + SWAP_CLUSTER_MAX], stat, ignore_references=True)
        except SwapIOError:
            stat.keep += pages[first + SWAP_CLUSTER_MAX :]
            raise
        finally:
            move_folios_to_lru(host, stat.keep)
        freed += stat.nr_reclaimed
    return freed


def try_to_free_pages(host: Host) -> int:
    """Direct reclaim by whoever needs memory; returns how many pages were freed. Raises SwapIOError."""
    host.vmstat.allocstall_normal += 1
    if mm_vmscan_direct_reclaim_begin.on:
        mm_vmscan_direct_reclaim_begin(0)
    task = host.sched.current
    sc = ScanControl(SWAP_CLUSTER_MAX)
    host.memalloc.add(task)
    try:
        while sc.priority >= 0 and sc.nr_reclaimed < sc.nr_to_reclaim:
            shrink_lruvec(host, sc)
            sc.priority -= 1
    finally:
        host.memalloc.discard(task)
    if sc.nr_reclaimed:
        host.kswapd_failures = 0
    if mm_vmscan_direct_reclaim_end.on:
        mm_vmscan_direct_reclaim_end(sc.nr_reclaimed)
    return sc.nr_reclaimed


def wakeup_kswapd(host: Host) -> None:
    """Wake kswapd if it sleeps, and if it has not given up."""
    if host.kswapd.waiting is None or host.kswapd_failures >= MAX_RECLAIM_RETRIES:
        return
    if mm_vmscan_wakeup_kswapd.on:
        mm_vmscan_wakeup_kswapd(0, 0)
    host.sched.wake(host.kswapd)


def kswapd(host: Host) -> None:
    """Main of the task kswapd0: reclaim up to the high watermark whenever somebody falls below the low one."""
    host.memalloc.add(host.sched.current)
    while True:
        if mm_vmscan_kswapd_wake.on:
            mm_vmscan_kswapd_wake(0, 0)
        while not _balanced(host) and host.kswapd_failures < MAX_RECLAIM_RETRIES:
            balance_pgdat(host)
        if mm_vmscan_kswapd_sleep.on:
            mm_vmscan_kswapd_sleep(0)
        host.sched.wait(host.zone)


def _balanced(host: Host) -> bool:
    return host.zone.nr_free >= host.zone.high


def balance_pgdat(host: Host) -> int:
    """One run of kswapd, from a light scan to one of nearly everything; returns how many pages were freed."""
    host.vmstat.pageoutrun += 1
    zone = host.zone
    sc = ScanControl(0, kswapd=True)
    while sc.priority >= 1 and not _balanced(host):
        scanned = sc.nr_scanned
        wanted = max(zone.high - zone.nr_free, SWAP_CLUSTER_MAX)
        sc.nr_to_reclaim = sc.nr_reclaimed + wanted
        shrink_lruvec(host, sc)
        host.sched.cond_resched()
        if sc.nr_scanned - scanned < wanted or not sc.nr_reclaimed:
            sc.priority -= 1
    if not sc.nr_reclaimed:
        host.kswapd_failures += 1
    return sc.nr_reclaimed
