from __future__ import annotations

import pytest

from shadowvm.addr import Vpn
from shadowvm.events import attached, handle_mm_fault, mmu_notifier_invalidate_range_start
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import fixup_user_fault, get_user_page, host_pte
from shadowvm.mm.mm_struct import madvise_pageout, mmap, mprotect
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.pgtable import PAGE_READONLY, PAGE_SHARED_DIRTY
from shadowvm.phys import ZERO_PAGE
from shadowvm.x86 import PT_DIRTY, PT_WRITABLE
from tests.mm.helpers import BracketCheck, Mirror, audit, get_word, put_word, touch, vpn_of


@pytest.fixture
def vpn(mm):
    return vpn_of(mmap(mm, 1 << 20))


def fault(mm, vpn, write):
    return fixup_user_fault(mm, vpn << 12, write)


def page_out(mm, vpn):
    assert madvise_pageout(mm, vpn << 12, 4096) == 1


def test_first_read_maps_the_zero_page_first_write_a_page_of_zeros(mm, vpn):
    host = mm.host
    assert fault(mm, vpn, False) is VmFault.NONE
    assert host_pte(mm, vpn) == host.zone.zero_page.pfn << 12 | PAGE_READONLY
    assert mm.rss_anon == 0
    assert fault(mm, vpn + 1, True) is VmFault.NONE
    pfn = host_pte(mm, vpn + 1) >> 12
    assert host_pte(mm, vpn + 1) == pfn << 12 | PAGE_SHARED_DIRTY
    assert host.ram.read_page(pfn) == ZERO_PAGE
    assert mm.rss_anon == 1
    assert (host.vmstat.pgfault, host.vmstat.pgmajfault) == (2, 0)
    audit(host)


def test_a_write_to_the_zero_page_copies_inside_a_bracket(mm, vpn):
    touch(mm, vpn, write=False)
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    mirror.map(mm, vpn, False)
    with check.watching():
        page = touch(mm, vpn)
    assert mirror.calls == ["start CLEAR", "end CLEAR"]
    assert check.narrowed == 1
    assert page is not mm.host.zone.zero_page
    assert mm.host.ram.read_page(mm.host.zone.zero_page.pfn) == ZERO_PAGE
    audit(mm.host)


def test_a_spurious_fault_changes_nothing(mm, vpn):
    touch(mm, vpn)
    before = host_pte(mm, vpn)
    assert fault(mm, vpn, True) is VmFault.NONE
    assert host_pte(mm, vpn) == before


def test_a_page_of_our_own_is_reused_after_mprotect_there_and_back(mm, vpn):
    put_word(mm, vpn, 5)
    page = touch(mm, vpn)
    mprotect(mm, vpn << 12, 4096, writable=False)
    mprotect(mm, vpn << 12, 4096, writable=True)
    assert not host_pte(mm, vpn) & PT_WRITABLE
    assert touch(mm, vpn) is page
    assert mm.host.vmstat.pgreuse == 1
    assert get_word(mm, vpn) == 5


def test_a_page_that_somebody_holds_is_copied_when_it_was_write_protected(mm, vpn):
    put_word(mm, vpn, 5)
    held = get_user_page(mm, vpn, False)
    mm.q[held.pfn << 9 | 511] = 99
    mprotect(mm, vpn << 12, 4096, writable=False)
    mprotect(mm, vpn << 12, 4096, writable=True)
    with BracketCheck().watching():
        put_word(mm, vpn, 6)
    assert mm.q[held.pfn << 9 | 5] == 5
    assert get_word(mm, vpn) == 6
    assert mm.q[touch(mm, vpn).pfn << 9 | 511] == 99
    audit(mm.host, {held: 1})
    put_page(mm.host, held)
    audit(mm.host)


def test_a_copied_swap_cache_page_gives_its_slot_back(mm, vpn):
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    held = get_user_page(mm, vpn, False)
    assert held.swapcache
    mprotect(mm, vpn << 12, 4096, writable=False)
    mprotect(mm, vpn << 12, 4096, writable=True)
    put_word(mm, vpn, 6)
    assert mm.host.swap.nr_free == mm.host.swap.nr_slots
    put_page(mm.host, held)
    audit(mm.host)


def test_swap_in_for_a_read_is_writable_but_clean_and_keeps_the_slot(mm, vpn):
    host = mm.host
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    assert fault(mm, vpn, False) is VmFault.MAJOR
    pte = host_pte(mm, vpn)
    assert pte & (PT_WRITABLE | PT_DIRTY) == PT_WRITABLE
    page = host.zone.mem_map[pte >> 12]
    assert page.swapcache
    assert not page.dirty
    assert get_word(mm, vpn) == 5
    page_out(mm, vpn)
    assert host.vmstat.pswpout == 1
    assert get_word(mm, vpn) == 5
    assert host.vmstat.pgmajfault == 2
    audit(host)


def test_swap_in_for_a_write_is_dirty_and_gives_the_slot_back(mm, vpn):
    host = mm.host
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    put_word(mm, vpn, 6)
    page = host.zone.mem_map[host_pte(mm, vpn) >> 12]
    assert not page.swapcache
    assert page.dirty
    assert host.swap.nr_free == host.swap.nr_slots
    page_out(mm, vpn)
    assert get_word(mm, vpn) == 6
    assert host.vmstat.pswpout == 2


def test_a_clean_swapped_in_page_that_is_written_later_is_written_out_again(mm, vpn):
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    assert get_word(mm, vpn) == 5
    put_word(mm, vpn, 6)
    page_out(mm, vpn)
    assert get_word(mm, vpn) == 6


def test_a_read_only_area_gets_read_only_pages_back(mm, vpn):
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    mprotect(mm, vpn << 12, 4096, writable=False)
    assert get_word(mm, vpn) == 5
    assert not host_pte(mm, vpn) & PT_WRITABLE
    mprotect(mm, vpn << 12, 4096, writable=True)
    put_word(mm, vpn, 6)
    page_out(mm, vpn)
    assert get_word(mm, vpn) == 6
    audit(mm.host)


def test_when_swap_is_half_full_slots_of_pages_in_memory_are_not_kept(new_host):
    from shadowvm.mm.mm_struct import MmStruct

    host = new_host(swap=8 << 12)
    mm = MmStruct(host, "vmm")
    vpn = vpn_of(mmap(mm, 1 << 20))
    for i in range(5):
        put_word(mm, Vpn(vpn + i), i + 1)
    assert madvise_pageout(mm, vpn << 12, 5 << 12) == 5
    assert get_word(mm, vpn) == 1
    assert host.swap.nr_free == 4
    page = touch(mm, vpn, write=False)
    assert not page.swapcache
    assert page.dirty
    page_out(mm, vpn)
    assert get_word(mm, vpn) == 1
    audit(host)


def test_two_tasks_that_fault_on_one_page_get_one_page(mm, vpn):
    host = mm.host
    put_word(mm, vpn, 5)
    page_out(mm, vpn)
    got = []

    def preempt(_tracepoint, _args):
        host.sched.preempt()

    def main():
        got.append(get_word(mm, vpn))

    for name in ("vcpu0", "vcpu1", "vcpu2"):
        host.sched.spawn(name, main)
    from shadowvm.events import host_pte_change, swap_readpage

    with attached(preempt, (swap_readpage, host_pte_change, handle_mm_fault, mmu_notifier_invalidate_range_start)):
        host.sched.run()
    assert got == [5, 5, 5]
    assert host.vmstat.pswpin == 1
    audit(host)
