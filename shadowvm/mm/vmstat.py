"""Counters of the host's memory management under the names of /proc/vmstat (mm/vmstat.c).

Counters only grow and are plain ints that the code which makes the event adds to. Gauges are computed when asked
for, but for huge pages and the two kinds of page tables, whose owners count them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .host import Host
    from .page_alloc import Page

COUNTERS = (
    "pgfault",
    "pgmajfault",
    "pswpin",
    "pswpout",
    "pgalloc_normal",
    "pgfree",
    "pgactivate",
    "pgdeactivate",
    "pgrefill",
    "pgreuse",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgscan_anon",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgsteal_anon",
    "allocstall_normal",
    "pageoutrun",
    "oom_kill",
    "nr_vmscan_write",
    "swap_ra",
    "swap_ra_hit",
    "swpin_zero",
    "swpout_zero",
    "thp_fault_alloc",
    "thp_fault_fallback",
    "thp_collapse_alloc",
    "thp_split_page",
    "thp_split_pmd",
)


class VmStat:
    """One node's counters. `nr_sec_page_table_pages` belongs to hypervisors: they add and subtract their tables."""

    __slots__ = (*COUNTERS, "host", "nr_anon_transparent_hugepages", "nr_page_table_pages", "nr_sec_page_table_pages")

    pgfault: int
    pgmajfault: int
    pswpin: int
    pswpout: int
    pgalloc_normal: int
    pgfree: int
    pgactivate: int
    pgdeactivate: int
    pgrefill: int
    pgreuse: int
    pgscan_kswapd: int
    pgscan_direct: int
    pgscan_anon: int
    pgsteal_kswapd: int
    pgsteal_direct: int
    pgsteal_anon: int
    allocstall_normal: int
    pageoutrun: int
    oom_kill: int
    nr_vmscan_write: int
    swap_ra: int
    swap_ra_hit: int
    swpin_zero: int
    swpout_zero: int
    thp_fault_alloc: int
    thp_fault_fallback: int
    thp_collapse_alloc: int
    thp_split_page: int
    thp_split_pmd: int

    def __init__(self, host: Host) -> None:
        self.host = host
        self.nr_page_table_pages = 0
        self.nr_anon_transparent_hugepages = 0
        self.nr_sec_page_table_pages = 0
        for name in COUNTERS:
            setattr(self, name, 0)

    def gauges(self) -> dict[str, int]:
        """What there is now, in pages."""
        host = self.host
        return {
            "nr_free_pages": host.zone.nr_free,
            "nr_inactive_anon": self._base_pages(host.lruvec.inactive),
            "nr_active_anon": self._base_pages(host.lruvec.active),
            "nr_anon_pages": sum(mm.rss_anon for mm in host.mms),
            "nr_anon_transparent_hugepages": self.nr_anon_transparent_hugepages,
            "nr_page_table_pages": self.nr_page_table_pages,
            "nr_sec_page_table_pages": self.nr_sec_page_table_pages,
            "nr_swapcached": len(host.swap.cache),
        }

    def _base_pages(self, pages: Mapping[int, Page]) -> int:
        """Pages of 4 KiB on a list, where a huge page has one place."""
        huge = sum(page.order > 0 for page in pages.values()) if self.nr_anon_transparent_hugepages else 0
        return len(pages) + 511 * huge

    def as_dict(self) -> dict[str, int]:
        """Gauges, then counters, in a fixed order."""
        return {**self.gauges(), **{name: getattr(self, name) for name in COUNTERS}}
