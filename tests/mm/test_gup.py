from __future__ import annotations

import pytest

from shadowvm.addr import Vpn
from shadowvm.events import attached, host_pte_change
from shadowvm.events import get_user_page as trace_get_user_page
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, get_user_page_fast, host_pte
from shadowvm.mm.mm_struct import madvise_pageout, mmap, munmap
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.pgtable import SWP_ENTRY
from shadowvm.mm.rmap import folio_referenced
from shadowvm.x86 import PT_ACCESSED, PT_DIRTY, PT_WRITABLE
from tests.mm.helpers import audit, touch, vpn_of


@pytest.fixture
def vpn(mm):
    return vpn_of(mmap(mm, 1 << 20))


def test_the_fast_way_faults_nothing_in(mm, vpn):
    assert get_user_page_fast(mm, vpn, False) is None
    assert get_user_page_fast(mm, Vpn(5), False) is None
    assert mm.host.vmstat.pgfault == 0
    assert host_pte(mm, vpn) == 0


def test_the_fast_way_respects_a_read_only_pte(mm, vpn):
    page = touch(mm, vpn, write=False)
    assert page is mm.host.zone.zero_page
    assert get_user_page_fast(mm, vpn, True) is None
    assert get_user_page_fast(mm, vpn, False) is page
    put_page(mm.host, page)


def test_access_marks_the_pte_as_hardware_would(mm, vpn):
    page = touch(mm, vpn)
    index = mm.pte_tables[vpn >> 9] + (vpn & 511)
    mm.q[index] &= ~(PT_DIRTY | PT_ACCESSED)
    page.dirty = False
    put_page(mm.host, get_user_page_fast(mm, vpn, False))
    assert host_pte(mm, vpn) & (PT_ACCESSED | PT_DIRTY) == PT_ACCESSED
    assert not page.dirty
    put_page(mm.host, get_user_page_fast(mm, vpn, True))
    assert host_pte(mm, vpn) & (PT_ACCESSED | PT_DIRTY) == PT_ACCESSED | PT_DIRTY
    assert page.dirty


def test_looking_at_a_pte_leaves_no_mark(mm, vpn):
    page = touch(mm, vpn)
    folio_referenced(page)
    assert host_pte(mm, vpn) & PT_WRITABLE
    assert folio_referenced(page) == 0


def test_what_cant_be_accessed_is_a_value(mm):
    read_only = vpn_of(mmap(mm, 1 << 20, writable=False))
    assert get_user_page(mm, read_only, True) is VmFault.SIGSEGV
    assert get_user_page(mm, Vpn(read_only - 1), False) is VmFault.SIGSEGV
    assert not mm.mmap_lock.readers
    assert touch(mm, read_only, write=False) is mm.host.zone.zero_page


def test_out_of_memory_is_a_value(new_host):
    from shadowvm.mm.mm_struct import MmStruct

    host = new_host(swap=0)
    mm = MmStruct(host, "vmm")
    vpn = vpn_of(mmap(mm, 4 << 20))
    results = [get_user_page(mm, Vpn(vpn + i), True) for i in range(host.zone.managed)]
    assert results[-1] is VmFault.OOM
    assert not mm.mmap_lock.readers
    assert host.vmstat.oom_kill > 0


def test_a_held_page_survives_its_mapping(mm, vpn):
    host = mm.host
    page = get_user_page(mm, vpn, True)
    host.ram.q[page.pfn << 9] = 77
    munmap(mm, vpn << 12, 1 << 20)
    assert host.ram.q[page.pfn << 9] == 77
    audit(host, {page: 1})
    put_page(host, page)
    audit(host)
    assert host.ram.q[page.pfn << 9] != 77


def test_a_held_page_is_unmapped_by_reclaim_but_not_freed_and_comes_back_as_itself(mm, vpn):
    host = mm.host
    page = get_user_page(mm, vpn, True)
    mm.q[page.pfn << 9] = 77
    assert madvise_pageout(mm, vpn << 12, 4096) == 0
    assert host_pte(mm, vpn) & SWP_ENTRY
    assert page.swapcache
    assert host.vmstat.pswpout == 0
    audit(host, {page: 1})
    assert get_user_page(mm, vpn, True) is page
    assert host.vmstat.pgmajfault == 0
    for _ in range(2):
        put_page(host, page)
    assert madvise_pageout(mm, vpn << 12, 4096) == 1


def test_the_zero_page_is_counted_like_any_other(mm, vpn):
    zero = mm.host.zone.zero_page
    before = zero.refcount
    assert get_user_page(mm, vpn, False) is zero
    assert zero.refcount == before + 1
    put_page(mm.host, zero)
    assert zero.refcount == before


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("point", [trace_get_user_page, host_pte_change])
def test_a_page_taken_away_at_a_scheduling_point_keeps_its_swap_entry(mm, vpn, point, write):
    host = mm.host
    page = touch(mm, vpn)
    index = mm.pte_tables[vpn >> 9] + (vpn & 511)
    mm.q[index] &= ~(PT_DIRTY | PT_ACCESSED)
    seen = []

    def take_away(_tracepoint, _args):
        if not seen:
            seen.append(0)
            madvise_pageout(mm, vpn << 12, 4096)
            seen[0] = host_pte(mm, vpn)

    with attached(take_away, (point,)):
        assert get_user_page_fast(mm, vpn, write) is page
    assert seen[0] & SWP_ENTRY
    assert host_pte(mm, vpn) == seen[0]
    put_page(host, page)
    audit(host)
