from __future__ import annotations

from shadowvm.mm.mm_struct import madvise_pageout, mmap
from shadowvm.mm.vmstat import COUNTERS
from tests.mm.helpers import get_word, put_word, touch, vpn_of


def test_gauges_and_counters_of_a_small_story(mm):
    host = mm.host
    start = mmap(mm, 16 << 12)
    for i in range(8):
        put_word(mm, vpn_of(start, i), 1)
    touch(mm, vpn_of(start, 8), write=False)
    madvise_pageout(mm, start, 4 << 12)
    get_word(mm, vpn_of(start, 0))
    host.vmstat.nr_sec_page_table_pages += 3
    stat = host.vmstat.as_dict()
    expected = {
        "nr_free_pages": host.zone.managed - 4 - 5,
        "nr_inactive_anon": 5,
        "nr_active_anon": 0,
        "nr_anon_pages": 5,
        "nr_page_table_pages": 4,
        "nr_sec_page_table_pages": 3,
        "nr_swapcached": 1,
        "pgfault": 10,
        "pgmajfault": 1,
        "pswpout": 4,
        "pswpin": 1,
        "pgalloc_normal": 13,
        "pgfree": 4,
        "nr_vmscan_write": 4,
    }
    assert {name: stat[name] for name in expected} == expected
    assert list(stat)[-len(COUNTERS) :] == list(COUNTERS)
