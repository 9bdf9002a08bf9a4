"""Runs of 512 frames, aligned, that make up huge pages (the order 9 of mm/page_alloc.c, and prep_compound_page).

A run is handed out and freed as a whole, or frame by frame after its huge page was split. Frames of it are counted
like any others: unlike the kernel, which counts in the head alone, each keeps the references to itself, so that a
huge page can go to pieces under a reference to one of them.

Nothing sleeps or reclaims for a run: it is there, or the caller makes do with single frames.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Pfn
from ..errors import ModelBug
from ..events import mm_page_alloc, mm_page_free
from ..phys import POISON_PAGE, ZERO_PAGE
from .lru import lru_del
from .page_alloc import Page, put_page

if TYPE_CHECKING:
    from .host import Host
    from .page_alloc import Zone

HPAGE_PMD_ORDER = 9
HPAGE_PMD_NR = 1 << HPAGE_PMD_ORDER
_SIZE = HPAGE_PMD_NR * PAGE_SIZE


def alloc_compound(host: Host) -> Page | None:
    """The head of 512 frames of zeros, with one reference to each, or None. Leaves the high watermark free."""
    zone = host.zone
    if zone.nr_free - HPAGE_PMD_NR < zone.high:
        return None
    if zone.free_runs:
        first = zone.free_runs.pop()
        fresh = False
    elif (zone.bump + HPAGE_PMD_NR - 1 & -HPAGE_PMD_NR) + HPAGE_PMD_NR <= host.ram.nr_frames:
        first = _untouched_run(host)
        fresh = True
    elif _merge_free(host):
        first = zone.free_runs.pop()
        fresh = False
    else:
        return None
    zone.nr_free -= HPAGE_PMD_NR
    for page in zone.mem_map[first : first + HPAGE_PMD_NR]:
        if page.refcount:
            raise ModelBug(f"{page} is in use and in a free run")
        page.refcount = 1
    head = zone.mem_map[first]
    head.order = HPAGE_PMD_ORDER
    host.vmstat.pgalloc_normal += HPAGE_PMD_NR
    if mm_page_alloc.on:
        mm_page_alloc(Pfn(first), HPAGE_PMD_ORDER)
    if not fresh:
        start = first << PAGE_SHIFT
        host.ram.b[start : start + _SIZE] = ZERO_PAGE * HPAGE_PMD_NR
    return head


def _untouched_run(host: Host) -> int:
    """Take an aligned run of frames that nobody used so far. Those that are skipped go on the free list."""
    zone = host.zone
    first = zone.bump + HPAGE_PMD_NR - 1 & -HPAGE_PMD_NR
    for pfn in range(zone.bump, first + HPAGE_PMD_NR):
        zone.mem_map[pfn] = Page(Pfn(pfn))
    skipped = zone.mem_map[zone.bump : first]
    host.ram.b[zone.bump << PAGE_SHIFT : first << PAGE_SHIFT] = POISON_PAGE * len(skipped)
    zone.free_list += reversed(skipped)
    zone.bump = first + HPAGE_PMD_NR
    return first


def _merge_free(host: Host) -> bool:
    """Take every aligned run out of the free list. True if there was one.

    A look costs as much as the list is long, so that after one in vain a fourth of it must have been freed anew.
    """
    zone = host.zone
    if host.vmstat.pgfree < zone.merge_at:
        return False
    free = Counter(page.pfn >> HPAGE_PMD_ORDER for page in zone.free_list)
    runs = {run for run, count in free.items() if count == HPAGE_PMD_NR}
    if not runs:
        zone.merge_at = host.vmstat.pgfree + max(len(zone.free_list) >> 2, HPAGE_PMD_NR)
        return False
    zone.free_list = [page for page in zone.free_list if page.pfn >> HPAGE_PMD_ORDER not in runs]
    zone.free_runs += sorted((run << HPAGE_PMD_ORDER for run in runs), reverse=True)
    return True


def compound_pages(zone: Zone, head: Page) -> list[Page]:
    """The pages of a huge page, its head first."""
    return zone.mem_map[head.pfn : head.pfn + HPAGE_PMD_NR]


def put_compound(host: Host, head: Page) -> None:
    """Drop one reference to each page of a huge page that is not mapped any more: it is one no longer."""
    pages = compound_pages(host.zone, head)
    head.order = 0
    if any(page.refcount != 1 for page in pages):
        for page in pages:
            put_page(host, page)
        return
    if head.lru is not None:
        lru_del(host.lruvec, head)
    for page in pages:
        if page.mapcount or page.swapcache or page.locked:
            raise ModelBug(f"{page} of a huge page freed in use")
        page.refcount = 0
        page.mapping = page.private = None
        page.active = page.dirty = page.referenced = page.swapbacked = page.readahead = False
    _free_run(host, head.pfn)


def _free_run(host: Host, first: Pfn) -> None:
    zone, ram = host.zone, host.ram
    host.vmstat.pgfree += HPAGE_PMD_NR
    if mm_page_free.on:
        mm_page_free(first, HPAGE_PMD_ORDER)
    for drop in ram.code_caches:
        for pfn in range(first, first + HPAGE_PMD_NR):
            drop(Pfn(pfn))
    ram.b[first << PAGE_SHIFT : (first + HPAGE_PMD_NR) << PAGE_SHIFT] = POISON_PAGE * HPAGE_PMD_NR
    zone.free_runs.append(first)
    zone.nr_free += HPAGE_PMD_NR
