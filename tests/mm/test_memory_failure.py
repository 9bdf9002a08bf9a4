from __future__ import annotations

import pytest

from shadowvm.addr import PAGE_SIZE, Hva, Pfn, Vpn
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, host_pte
from shadowvm.mm.host import Host
from shadowvm.mm.huge import Thp
from shadowvm.mm.memory_failure import MfResult, madvise_hwpoison, memory_failure
from shadowvm.mm.mm_struct import MmStruct, copy_to_user, exit_mmap, madvise_dontneed, madvise_pageout, mmap
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import Page, put_page
from shadowvm.mm.pgtable import HWPOISON_ENTRY
from shadowvm.mm.swap import SwapFile
from shadowvm.phys import Ram
from shadowvm.sync import Scheduler
from tests.mm.helpers import MIB, BracketCheck, Mirror, audit, get_word, put_word, touch, vpn_of


@pytest.fixture
def start(mm: MmStruct) -> Hva:
    """Four pages that hold 1 to 4."""
    start = mmap(mm, 4 * PAGE_SIZE)
    for i in range(4):
        put_word(mm, vpn_of(start, i), i + 1)
    return start


def test_the_only_copy_is_lost_and_an_access_says_so(mm: MmStruct, start: Hva) -> None:
    pfn = host_pte(mm, vpn_of(start)) >> 12
    managed = mm.host.zone.managed
    assert memory_failure(mm.host, Pfn(pfn)) is MfResult.RECOVERED
    assert host_pte(mm, vpn_of(start)) == pfn << 12 | HWPOISON_ENTRY
    assert get_user_page(mm, vpn_of(start), False) is VmFault.HWPOISON
    assert get_user_page(mm, vpn_of(start), True) is VmFault.HWPOISON
    assert copy_to_user(mm, start, b"x") is VmFault.HWPOISON
    assert get_word(mm, vpn_of(start, 1)) == 2
    assert mm.host.zone.managed == managed - 1
    assert memory_failure(mm.host, Pfn(pfn)) is MfResult.IGNORED
    audit(mm.host)


def test_the_frame_is_never_used_again(mm: MmStruct, start: Hva) -> None:
    pfn = host_pte(mm, vpn_of(start)) >> 12
    assert madvise_hwpoison(mm, start) is MfResult.RECOVERED
    madvise_dontneed(mm, start, PAGE_SIZE)
    assert get_word(mm, vpn_of(start)) == 0
    exit_mmap(mm)
    assert mm.host.zone.nr_free == mm.host.zone.managed
    assert pfn not in [page.pfn for page in mm.host.zone.free_list]
    audit(mm.host)


def test_subscribers_lose_the_page_before_it_goes(mm: MmStruct, start: Hva) -> None:
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    mirror.map(mm, vpn_of(start), True)
    with check.watching():
        madvise_hwpoison(mm, start)
    assert check.narrowed == 1
    assert mirror.mapped == {}
    assert mirror.calls == ["start CLEAR", "end CLEAR"]


def test_a_clean_page_comes_back_from_swap(mm: MmStruct, start: Hva) -> None:
    """It was read and not written since: the slot still holds the same."""
    assert madvise_pageout(mm, start, 4 * PAGE_SIZE) == 4
    assert get_word(mm, vpn_of(start)) == 1
    assert madvise_hwpoison(mm, start) is MfResult.RECOVERED
    assert get_word(mm, vpn_of(start)) == 1
    audit(mm.host)


def test_a_dirty_page_in_the_swap_cache_waits_for_an_access(mm: MmStruct, start: Hva) -> None:
    """Swapped out while somebody holds it, then written through that reference."""
    held = get_user_page(mm, vpn_of(start), False)
    assert isinstance(held, Page)
    assert madvise_pageout(mm, start, PAGE_SIZE) == 0
    assert held.swapcache
    held.dirty = True
    assert memory_failure(mm.host, held.pfn) is MfResult.DELAYED
    assert get_user_page(mm, vpn_of(start), False) is VmFault.HWPOISON
    put_page(mm.host, held)
    audit(mm.host)
    exit_mmap(mm)
    assert mm.host.swap.cache == {}
    audit(mm.host)


def test_what_the_kernel_uses_itself_is_left_alone(mm: MmStruct, start: Hva) -> None:
    zone = mm.host.zone
    for pfn in (mm.pgd.pfn, zone.zero_page.pfn, zone.bump, len(zone.mem_map), -1):
        assert memory_failure(mm.host, Pfn(pfn)) is MfResult.IGNORED
    audit(mm.host)


def test_a_free_frame_is_taken_out_of_the_free_list(mm: MmStruct, start: Hva) -> None:
    pfn = host_pte(mm, vpn_of(start)) >> 12
    madvise_dontneed(mm, start, PAGE_SIZE)
    assert memory_failure(mm.host, Pfn(pfn)) is MfResult.RECOVERED
    assert touch(mm, vpn_of(start)).pfn != pfn
    audit(mm.host)


def test_reclaim_goes_on_around_it(mm: MmStruct) -> None:
    start = mmap(mm, 2 * MIB)
    for i in range(300):
        put_word(mm, vpn_of(start, i), i + 1)
    lost = range(0, 300, 7)
    for i in lost:
        if host_pte(mm, vpn_of(start, i)) & 1:
            madvise_hwpoison(mm, Hva(start + i * PAGE_SIZE))
    poisoned = {i for i in lost if host_pte(mm, vpn_of(start, i)) & HWPOISON_ENTRY}
    assert len(poisoned) > 10
    for i in range(300, 512):
        put_word(mm, vpn_of(start, i), i + 1)
    assert mm.host.vmstat.pswpout > 50
    for i in range(512):
        assert i in poisoned or get_word(mm, vpn_of(start, i)) == i + 1
    audit(mm.host)


def test_one_frame_of_a_huge_page_goes_alone() -> None:
    host = Host(Ram(8 * MIB), SwapFile(8 * MIB), Scheduler(), Thp.ALWAYS)
    mm = MmStruct(host, "vmm")
    start = mmap(mm, 2 * MIB)
    put_word(mm, vpn_of(start, 5), 7)
    assert mm.huge_pmds
    assert madvise_hwpoison(mm, Hva(start + 9 * PAGE_SIZE)) is MfResult.RECOVERED
    assert not mm.huge_pmds
    assert get_word(mm, vpn_of(start, 5)) == 7
    assert get_user_page(mm, vpn_of(start, 9), False) is VmFault.HWPOISON
    audit(host)
    exit_mmap(mm)
    assert host.zone.nr_free == host.zone.managed
    host.close()


def test_a_page_that_reclaim_has_isolated_is_busy(mm: MmStruct, start: Hva) -> None:
    page = touch(mm, Vpn(vpn_of(start)))
    listed = page.lru
    page.lru = None
    assert memory_failure(mm.host, page.pfn) is MfResult.FAILED
    page.lru = listed
    assert get_word(mm, vpn_of(start)) == 1
    audit(mm.host)
