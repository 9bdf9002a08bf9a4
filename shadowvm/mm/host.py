"""The host: one node of memory with everything that manages it.

    host = Host(Ram(16 << 20), SwapFile(128 << 20), Scheduler())
    page = host.alloc_page(zeroed=True)

`alloc_page`, `alloc_page_nowait`, `try_to_free_pages` and `wakeup_kswapd` are the functions of those names in
page_alloc.py and vmscan.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import page_alloc, vmscan
from .huge import Thp
from .lru import Lruvec
from .page_alloc import Zone
from .vmstat import VmStat

if TYPE_CHECKING:
    from ..phys import Ram
    from ..sync import Scheduler, Task
    from .mm_struct import MmStruct
    from .page_io import SwapReads
    from .swap import SwapFile


class Host:
    """A node.

    memalloc: tasks that free memory and may use the reserve to do so (PF_MEMALLOC). swap_reads: a swap device that
    takes time; None for one that takes none. thp: where faults may map huge pages.
    """

    __slots__ = (
        "folio_waiters",
        "kswapd",
        "kswapd_failures",
        "lruvec",
        "memalloc",
        "mms",
        "next_mm_id",
        "ram",
        "sched",
        "swap",
        "swap_reads",
        "thp",
        "vmstat",
        "zone",
    )

    def __init__(self, ram: Ram, swap: SwapFile, sched: Scheduler, thp: Thp = Thp.NEVER) -> None:
        self.ram = ram
        self.swap = swap
        self.swap_reads: SwapReads | None = None
        self.sched = sched
        self.thp = thp
        self.zone = Zone(ram)
        self.lruvec = Lruvec()
        self.vmstat = VmStat(self)
        self.mms: list[MmStruct] = []
        self.next_mm_id = 1
        self.folio_waiters: dict[int, list[Task]] = {}
        self.memalloc: set[Task] = set()
        self.kswapd_failures = 0
        self.kswapd = sched.spawn("kswapd0", lambda: vmscan.kswapd(self), daemon=True)

    alloc_page = page_alloc.alloc_page
    alloc_page_nowait = page_alloc.alloc_page_nowait
    try_to_free_pages = vmscan.try_to_free_pages
    wakeup_kswapd = vmscan.wakeup_kswapd

    def close(self) -> None:
        """Give the swap file back to the real machine."""
        self.swap.close()
