from __future__ import annotations

import pytest

from shadowvm.addr import Vpn
from shadowvm.events import attached, host_pte_change
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import host_pte
from shadowvm.mm.mm_struct import (
    cmpxchg_user_u64,
    copy_from_user,
    copy_to_user,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
    read_user_u64,
    write_user_u64,
)
from shadowvm.mm.rmap import folio_referenced
from shadowvm.x86 import PT_ACCESSED, PT_DIRTY
from tests.mm.helpers import audit, touch


@pytest.fixture
def start(mm):
    return mmap(mm, 1 << 20)


def test_words_come_back(mm, start):
    assert read_user_u64(mm, start + 8) == 0
    assert write_user_u64(mm, start + 8, 1 << 63) is None
    assert read_user_u64(mm, start + 8) == 1 << 63
    assert read_user_u64(mm, start + 16) == 0
    audit(mm.host)


def test_a_tlb_hit_leaves_no_mark_and_a_miss_does(mm, start):
    vpn = start >> 12
    write_user_u64(mm, start, 1)
    page = touch(mm, vpn)
    assert folio_referenced(page) == 1
    assert vpn not in mm.tlb
    read_user_u64(mm, start)
    assert host_pte(mm, vpn) & PT_ACCESSED
    assert vpn in mm.tlb
    assert vpn not in mm.tlb_w


def test_only_a_write_makes_dirty(mm, start):
    vpn = start >> 12
    touch(mm, vpn)
    index = mm.pte_tables[vpn >> 9] + (vpn & 511)
    mm.q[index] &= ~(PT_DIRTY | PT_ACCESSED)
    read_user_u64(mm, start)
    assert host_pte(mm, vpn) & (PT_ACCESSED | PT_DIRTY) == PT_ACCESSED
    write_user_u64(mm, start, 1)
    assert host_pte(mm, vpn) & PT_DIRTY


def test_compare_and_exchange(mm, start):
    assert cmpxchg_user_u64(mm, start, 0, 5) is True
    assert cmpxchg_user_u64(mm, start, 0, 6) is False
    assert read_user_u64(mm, start) == 5


def test_copies_cross_pages_and_swap(mm, start):
    data = bytes(range(256)) * 64
    assert copy_to_user(mm, start + 100, data) is None
    madvise_pageout(mm, start, 1 << 20)
    assert copy_from_user(mm, start + 100, len(data)) == data
    assert copy_from_user(mm, start + 99, 2) == b"\0" + data[:1]
    assert copy_from_user(mm, start, 0) == b""


def test_nothing_is_written_through_a_stale_translation(mm, start):
    write_user_u64(mm, start, 1)
    madvise_pageout(mm, start, 4096)
    assert mm.tlb == mm.tlb_w == {}
    write_user_u64(mm, start, 2)
    mprotect(mm, start, 4096, writable=False)
    assert write_user_u64(mm, start, 3) is VmFault.SIGSEGV
    assert read_user_u64(mm, start) == 2
    munmap(mm, start, 4096)
    assert read_user_u64(mm, start) is VmFault.SIGSEGV


@pytest.mark.parametrize(
    "access",
    [
        read_user_u64,
        lambda mm, hva: write_user_u64(mm, hva, 1),
        lambda mm, hva: cmpxchg_user_u64(mm, hva, 0, 1),
        lambda mm, hva: copy_from_user(mm, hva, 1),
        lambda mm, hva: copy_to_user(mm, hva, b"x"),
    ],
)
def test_a_bad_address_is_a_value(mm, start, access):
    assert access(mm, start + (1 << 20)) is VmFault.SIGSEGV
    assert not mm.mmap_lock.readers


def test_a_copy_stops_where_it_faults(mm, start):
    last = start + (1 << 20) - 4
    assert copy_to_user(mm, last, b"abcdefgh") is VmFault.SIGSEGV
    assert copy_from_user(mm, last, 4) == b"abcd"


def test_code_caches_hear_of_what_the_host_writes(mm, start):
    dropped = []
    write_user_u64(mm, start, 0)
    pfn = host_pte(mm, start >> 12) >> 12
    mm.host.ram.code_caches.append(dropped.append)
    write_user_u64(mm, start, 1)
    copy_to_user(mm, start, b"x")
    cmpxchg_user_u64(mm, start, 9, 9)
    assert dropped == [pfn, pfn]
    cmpxchg_user_u64(mm, start, ord("x"), 9)
    assert dropped == [pfn] * 3


def test_a_page_taken_away_while_its_pte_is_marked_is_brought_back(mm, start):
    write_user_u64(mm, start, 5)
    vpn = Vpn(start >> 12)
    index = mm.pte_tables[vpn >> 9] + (vpn & 511)
    mm.q[index] &= ~(PT_DIRTY | PT_ACCESSED)
    mm.tlb.clear()
    mm.tlb_w.clear()
    taken = []

    def take_away(_tracepoint, _args):
        if not taken:
            taken.append(True)
            assert madvise_pageout(mm, start, 4096) == 1

    with attached(take_away, (host_pte_change,)):
        write_user_u64(mm, start + 8, 6)
    assert taken
    assert [read_user_u64(mm, start), read_user_u64(mm, start + 8)] == [5, 6]
    audit(mm.host)
