"""Counters of the host's memory management under the names of /proc/vmstat (mm/vmstat.c).

Counters only grow and are plain ints that the code which makes the event adds to. Gauges are computed when asked
for, but for the two kinds of page tables, whose owners count them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .host import Host

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
)


class VmStat:
    """One node's counters. `nr_sec_page_table_pages` belongs to hypervisors: they add and subtract their tables."""

    __slots__ = (*COUNTERS, "host", "nr_page_table_pages", "nr_sec_page_table_pages")

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

    def __init__(self, host: Host) -> None:
        self.host = host
        self.nr_page_table_pages = 0
        self.nr_sec_page_table_pages = 0
        for name in COUNTERS:
            setattr(self, name, 0)

    def gauges(self) -> dict[str, int]:
        """What there is now, in pages."""
        host = self.host
        return {
            "nr_free_pages": host.zone.nr_free,
            "nr_inactive_anon": len(host.lruvec.inactive),
            "nr_active_anon": len(host.lruvec.active),
            "nr_anon_pages": sum(mm.rss_anon for mm in host.mms),
            "nr_page_table_pages": self.nr_page_table_pages,
            "nr_sec_page_table_pages": self.nr_sec_page_table_pages,
            "nr_swapcached": len(host.swap.cache),
        }

    def as_dict(self) -> dict[str, int]:
        """Gauges, then counters, in a fixed order."""
        return {**self.gauges(), **{name: getattr(self, name) for name in COUNTERS}}
