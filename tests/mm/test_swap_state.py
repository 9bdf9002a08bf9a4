from __future__ import annotations

import pytest

from shadowvm.addr import Vpn
from shadowvm.mm.gup import host_pte
from shadowvm.mm.mm_struct import MmStruct, madvise_pageout, mmap
from shadowvm.mm.swap_state import add_to_swap, folio_free_swap
from tests.mm.helpers import audit, get_word, put_word, touch, vpn_of


def swapped_out(mm, n):
    start = mmap(mm, n << 12)
    for i in range(n):
        put_word(mm, vpn_of(start, i), i + 1)
    assert madvise_pageout(mm, start, n << 12) == n
    return vpn_of(start)


def test_a_sequential_walk_opens_the_window_to_eight(mm):
    host = mm.host
    vpn = swapped_out(mm, 128)
    assert [get_word(mm, Vpn(vpn + i)) for i in range(128)] == list(range(1, 129))
    vmstat = host.vmstat
    assert vmstat.pswpin == 128
    assert vmstat.pgmajfault <= 128 // 8 + 4
    assert vmstat.swap_ra == 128 - vmstat.pgmajfault
    assert vmstat.swap_ra_hit == vmstat.swap_ra
    audit(host)


def test_scattered_faults_read_no_neighbours(mm):
    vpn = swapped_out(mm, 120)
    order = [i * 53 % 120 for i in range(60)]
    assert all(get_word(mm, Vpn(vpn + i)) == i + 1 for i in order)
    assert mm.host.vmstat.swap_ra <= 4


def test_read_ahead_pages_are_in_memory_but_not_mapped(mm):
    host = mm.host
    vpn = swapped_out(mm, 16)
    host.swap.hits = 6
    get_word(mm, Vpn(vpn + 11))
    assert sorted(host.swap.cache) == list(range(8, 16))
    assert host.vmstat.swap_ra == 7
    assert [bool(host_pte(mm, Vpn(vpn + i)) & 1) for i in range(8, 16)] == [False] * 3 + [True] + [False] * 4
    audit(host)
    majors = host.vmstat.pgmajfault
    assert get_word(mm, Vpn(vpn + 12)) == 13
    assert host.vmstat.pgmajfault == majors
    assert host.vmstat.swap_ra_hit == 1


def test_no_read_ahead_while_memory_is_short(mm):
    host = mm.host
    vpn = swapped_out(mm, 64)
    hog = []
    while host.zone.nr_free > host.zone.low + 3:
        hog.append(host.alloc_page())
    host.swap.hits = 6
    get_word(mm, vpn)
    assert host.vmstat.swap_ra <= 3
    assert host.zone.nr_free >= host.zone.low
    assert host.vmstat.allocstall_normal == 0


def test_free_slots_are_not_read_ahead(mm):
    host = mm.host
    vpn = swapped_out(mm, 8)
    for i in (1, 2):
        put_word(mm, Vpn(vpn + i), 100)
    in_memory = set(host.swap.cache)
    host.swap.hits = 6
    get_word(mm, Vpn(vpn + 5))
    assert set(host.swap.cache) == {0, 3, 4, 5, 6, 7} | in_memory


def test_a_slot_that_a_pte_needs_is_not_freed(mm):
    host = mm.host
    page = touch(mm, vpn_of(mmap(mm, 4096)))
    page.locked = True
    assert add_to_swap(host, page)
    host.swap.duplicate(page.private)
    assert not folio_free_swap(host, page)
    host.swap.put(page.private)
    page.dirty = False
    assert folio_free_swap(host, page)
    assert page.dirty
    assert not folio_free_swap(host, page)
    page.locked = False
    audit(host)


def test_a_full_swap_takes_slots_back_from_pages_in_memory(new_host):
    host = new_host(swap=64 << 12)
    mm = MmStruct(host, "vmm")
    vpn = swapped_out(mm, 32)
    assert [get_word(mm, Vpn(vpn + i)) for i in range(32)] == list(range(1, 33))
    assert len(host.swap.cache) == 32
    other = swapped_out(mm, 32)
    assert host.swap.nr_free == 0
    more = mmap(mm, 8 << 12)
    for i in range(8):
        put_word(mm, vpn_of(more, i), 5)
    assert madvise_pageout(mm, more, 8 << 12) == 8
    assert not host.swap.cache
    audit(host)
    assert [get_word(mm, Vpn(other + i)) for i in range(32)] == list(range(1, 33))


@pytest.mark.parametrize("full", [False, True])
def test_searching_a_swap_that_is_full_for_good_is_done_once(new_host, full, monkeypatch):
    host = new_host(swap=8 << 12)
    mm = MmStruct(host, "vmm")
    swapped_out(mm, 8 if full else 7)
    page = touch(mm, vpn_of(mmap(mm, 4096)))
    page.locked = True
    assert add_to_swap(host, page) is not full
    if full:
        assert not host.swap.cache_only
    page.locked = False
