"""Page allocator of the simulated host: one zone of frames, watermarks, struct page (mm/page_alloc.c).

`host.alloc_page()` is GFP_KERNEL: it wakes kswapd below the low watermark and reclaims at the min watermark, so it
may sleep; None means that memory and swap are used up. A page is born with one reference; `put_page` of the last
one frees the frame, which is then filled with POISON_FREE until it is handed out again.

References: one for each mapping of a user page, one for the swap cache, one for whoever isolated it, one for each
get_user_page(). Being on an LRU list counts none.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from ..addr import PAGE_SHIFT, PAGE_SIZE, Pfn, Vpn
from ..errors import ConfigError, ModelBug
from ..events import might_sleep, mm_page_alloc, mm_page_free
from ..phys import POISON_PAGE, ZERO_PAGE, Ram
from .lru import lru_del

if TYPE_CHECKING:
    from .host import Host
    from .rmap import AnonVma

MAX_RECLAIM_RETRIES = 16
"""How often direct reclaim may find nothing before an allocation fails."""

_ZERO_PFN = Pfn(1)


class Page:
    """struct page of one frame.

    `private` is the swap slot while `swapcache`, else whatever the owner of the frame keeps there (a hypervisor its
    shadow page). `mapping` and `index` (a vpn) say where an anonymous page is mapped. `active` is the list that the
    page belongs to, `lru` the one it is on, None while isolated. `order`: 9 for the head of a huge page (compound.py).
    `hwpoison`: out of service for good (memory_failure.py).
    """

    __slots__ = (
        "active",
        "dirty",
        "hwpoison",
        "index",
        "locked",
        "lru",
        "mapcount",
        "mapping",
        "order",
        "pfn",
        "private",
        "readahead",
        "refcount",
        "referenced",
        "swapbacked",
        "swapcache",
        "table",
    )

    def __init__(self, pfn: Pfn) -> None:
        self.pfn = pfn
        self.refcount = 0
        self.mapcount = 0
        self.mapping: AnonVma | None = None
        self.index = Vpn(0)
        self.order = 0
        self.private: Any = None
        self.lru: int | None = None
        self.active = self.locked = self.dirty = self.referenced = self.hwpoison = False
        self.swapcache = self.swapbacked = self.readahead = self.table = False

    def __repr__(self) -> str:
        return f"<page pfn={self.pfn:x} ref={self.refcount} map={self.mapcount}>"


class Zone:
    """All frames of the host. Freed frames are used again first, last freed first; then untouched ones in order.

    Frame 0 is never handed out; `zero_page` is the frame of zeros that read faults map. `mem_map[pfn]` is None for
    a frame that nobody used so far, and such a frame holds zeros, not poison. `free_runs` are the first frames of
    aligned runs of 512 free ones, which are not on the free list; `merge_at` is when to look there for more
    (compound.py).
    """

    __slots__ = (
        "bump",
        "free_list",
        "free_runs",
        "high",
        "low",
        "managed",
        "mem_map",
        "merge_at",
        "min",
        "nr_free",
        "zero_page",
    )

    def __init__(self, ram: Ram) -> None:
        self.mem_map: list[Page] = [None] * ram.nr_frames  # type: ignore[list-item]
        self.free_list: list[Page] = []
        self.free_runs: list[int] = []
        self.merge_at = 0
        self.bump = _ZERO_PFN + 1
        self.managed = self.nr_free = ram.nr_frames - self.bump
        self._setup_per_zone_wmarks(ram.size)
        self.zero_page = self.mem_map[_ZERO_PFN] = Page(_ZERO_PFN)
        self.zero_page.refcount = 1

    def _setup_per_zone_wmarks(self, size: int) -> None:
        """min = 4 * sqrt(KiB) KiB in bounds; low and high above it in steps of a quarter, at least 0.1 %."""
        if self.managed <= 0:
            raise ConfigError(f"host memory of {size} bytes holds no page")
        min_free_kbytes = min(max(isqrt(self.managed * (PAGE_SIZE >> 10) * 16), 128), 262144)
        self.min = min_free_kbytes // (PAGE_SIZE >> 10)
        step = max(self.min // 4, self.managed // 1000)
        self.low = self.min + step
        self.high = self.min + 2 * step
        if self.managed <= 2 * self.high:
            raise ConfigError(f"host memory of {size} bytes is too small: its watermarks alone take {self.high} pages")


def alloc_page(host: Host, zeroed: bool = False) -> Page | None:
    """GFP_KERNEL: one frame with one reference. May sleep and reclaim; None when nothing can be reclaimed."""
    if might_sleep.on:
        might_sleep("alloc_page")
    zone = host.zone
    if zone.nr_free <= zone.low and not _alloc_slowpath(host):
        return None
    return _rmqueue(host, zeroed)


def alloc_page_nowait(host: Host, zeroed: bool = False) -> Page | None:
    """GFP_NOWAIT: one frame if there is one above the min watermark. Never sleeps."""
    zone = host.zone
    if zone.nr_free <= zone.low:
        host.wakeup_kswapd()
        if zone.nr_free <= zone.min:
            return None
    return _rmqueue(host, zeroed)


def _alloc_slowpath(host: Host) -> bool:
    """Below the low watermark. True when a frame may be taken."""
    zone = host.zone
    if host.sched.current in host.memalloc:
        # PF_MEMALLOC: whoever frees memory may use the reserve, and must not reclaim inside of reclaim.
        return zone.nr_free > 0
    host.wakeup_kswapd()
    failures = 0
    while zone.nr_free <= zone.min:
        if host.try_to_free_pages():
            failures = 0
        else:
            failures += 1
            if failures > MAX_RECLAIM_RETRIES:
                host.vmstat.oom_kill += 1
                return False
        host.sched.cond_resched()
    return True


def _rmqueue(host: Host, zeroed: bool) -> Page:
    zone = host.zone
    zone.nr_free -= 1
    if zone.free_list:
        page = zone.free_list.pop()
    elif zone.free_runs:
        first = zone.free_runs.pop()
        zone.free_list += zone.mem_map[first + 511 : first : -1]
        page = zone.mem_map[first]
    else:
        page = zone.mem_map[zone.bump] = Page(Pfn(zone.bump))
        zone.bump += 1
    if page.refcount:
        raise ModelBug(f"{page} is in use and on the free list")
    page.refcount = 1
    host.vmstat.pgalloc_normal += 1
    if mm_page_alloc.on:
        mm_page_alloc(page.pfn, 0)
    if zeroed:
        start = page.pfn << PAGE_SHIFT
        host.ram.b[start : start + PAGE_SIZE] = ZERO_PAGE
    return page


def get_free_pages(host: Host, npages: int) -> Pfn | None:
    """The first of `npages` frames of zeros in a row, for a driver; None: there are none above the high watermark.

    Not a compound page: the first one has a reference, which stands for all; those behind it have none.
    """
    zone = host.zone
    first = zone.bump
    if first + npages > host.ram.nr_frames or zone.nr_free - npages < zone.high:
        return None
    zone.bump += npages
    zone.nr_free -= npages
    host.vmstat.pgalloc_normal += npages
    for pfn in range(first, first + npages):
        zone.mem_map[pfn] = Page(Pfn(pfn))
        if mm_page_alloc.on:
            mm_page_alloc(Pfn(pfn), 0)
    zone.mem_map[first].refcount = 1
    return Pfn(first)


def free_pages(host: Host, first: Pfn, npages: int) -> None:
    """Give back what get_free_pages() gave, whatever the counts of those behind the first say."""
    pages = host.zone.mem_map[first : first + npages]
    pages[0].refcount -= 1
    for page in pages:
        _free_page(host, page)


def get_page(page: Page) -> None:
    """Take another reference to a page that has one."""
    if page.refcount <= 0:
        raise ModelBug(f"reference to the free {page}")
    page.refcount += 1


def put_page(host: Host, page: Page) -> None:
    """Drop a reference; the last one frees the frame."""
    page.refcount -= 1
    if page.refcount <= 0:
        _free_page(host, page)


def _free_page(host: Host, page: Page) -> None:
    """free_unref_page(): checks, tells the CPUs, poisons."""
    if page.lru is not None:
        lru_del(host.lruvec, page)
    if page.refcount or page.mapcount or page.swapcache or page.locked:
        raise ModelBug(f"{page} freed in use: swapcache={page.swapcache} locked={page.locked}")
    page.mapping = page.private = None
    page.active = page.dirty = page.referenced = page.swapbacked = page.readahead = page.table = False
    pfn = page.pfn
    host.vmstat.pgfree += 1
    if mm_page_free.on:
        mm_page_free(pfn, 0)
    ram = host.ram
    for drop in ram.code_caches:
        drop(pfn)
    start = pfn << PAGE_SHIFT
    ram.b[start : start + PAGE_SIZE] = POISON_PAGE
    zone = host.zone
    zone.free_list.append(page)
    zone.nr_free += 1
