"""Huge pages of the host: faults, splits, collapse, reclaim; and that nothing else notices them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from shadowvm.addr import HUGE_PAGE_SIZE, Hva, Vpn
from shadowvm.events import attached, host_pte_change, swap_readpage, swap_writepage
from shadowvm.mm.gup import get_user_page, host_pte
from shadowvm.mm.host import Host
from shadowvm.mm.huge import Thp, host_pfn_mapping_level
from shadowvm.mm.khugepaged import ScanResult, collapse_huge_page
from shadowvm.mm.mm_struct import (
    MmStruct,
    copy_from_user,
    copy_to_user,
    exit_mmap,
    madvise_dontneed,
    madvise_hugepage,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
    read_user_u64,
    write_user_u64,
)
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import Page, put_page
from shadowvm.mm.vmscan import ScanControl, shrink_lruvec
from shadowvm.x86 import PT_ACCESSED, PT_PAGE_SIZE, PT_WRITABLE
from tests.mm.helpers import MIB, BracketCheck, Mirror, audit, get_word, put_word, touch, vpn_of
from tests.mm.test_model import HostMemory


@pytest.fixture
def mm(new_host: Callable[..., Host]) -> MmStruct:
    return MmStruct(new_host(16 * MIB, 32 * MIB, thp=Thp.ALWAYS), "vmm")


def is_huge(mm: MmStruct, vpn: Vpn) -> bool:
    return host_pfn_mapping_level(mm, vpn) == 2


def filled(mm: MmStruct, pages: int = 512) -> Vpn:
    vpn = vpn_of(mmap(mm, pages << 12))
    for i in range(pages):
        put_word(mm, Vpn(vpn + i), i + 1)
    return vpn


def words(mm: MmStruct, vpn: Vpn, pages: int = 512) -> list[int]:
    return [get_word(mm, Vpn(vpn + i)) for i in range(pages)]


NUMBERS = list(range(1, 513))


def test_a_write_fault_maps_a_huge_page(mm):
    vpn = vpn_of(mmap(mm, 2 * HUGE_PAGE_SIZE), 5)
    page = touch(mm, vpn)
    assert is_huge(mm, vpn)
    assert page.pfn % 512 == 5
    assert host_pte(mm, Vpn(vpn + 1)) >> 12 == page.pfn + 1
    assert host_pte(mm, vpn) & PT_PAGE_SIZE
    assert not is_huge(mm, Vpn(vpn + 512))
    assert mm.host.vmstat.thp_fault_alloc == mm.host.vmstat.pgfault == 1
    assert mm.host.vmstat.gauges()["nr_inactive_anon"] == 512
    audit(mm.host)


def test_it_is_all_zeros_whoever_had_its_frames_before(mm):
    start = mmap(mm, HUGE_PAGE_SIZE)
    put_word(mm, vpn_of(start), 7)
    first = host_pte(mm, vpn_of(start)) >> 12
    madvise_dontneed(mm, start, HUGE_PAGE_SIZE)
    audit(mm.host)
    assert touch(mm, vpn_of(start)).pfn == first
    assert copy_from_user(mm, start, HUGE_PAGE_SIZE) == bytes(HUGE_PAGE_SIZE)


def test_a_read_fault_maps_the_small_zero_page(mm):
    vpn = vpn_of(mmap(mm, HUGE_PAGE_SIZE))
    assert touch(mm, vpn, write=False) is mm.host.zone.zero_page
    touch(mm, Vpn(vpn + 1))
    assert not is_huge(mm, vpn)
    assert mm.host.vmstat.thp_fault_alloc == 0


def test_an_area_that_does_not_cover_the_block_gets_small_pages(mm):
    start = mmap(mm, HUGE_PAGE_SIZE + 4096)
    touch(mm, vpn_of(start, 512))
    assert not is_huge(mm, vpn_of(start, 512))
    touch(mm, vpn_of(start))
    assert is_huge(mm, vpn_of(start))


def test_where_it_is_used_is_a_matter_of_advice(new_host):
    mm = MmStruct(new_host(16 * MIB, thp=Thp.MADVISE), "vmm")
    start = mmap(mm, 4 * HUGE_PAGE_SIZE)
    madvise_hugepage(mm, Hva(start + HUGE_PAGE_SIZE), HUGE_PAGE_SIZE)
    huge = [is_huge(mm, vpn) for vpn in (vpn_of(start, 512 * i) for i in range(3)) if touch(mm, vpn)]
    assert huge == [False, True, False]
    mm.host.thp = Thp.ALWAYS
    madvise_hugepage(mm, Hva(start + 3 * HUGE_PAGE_SIZE), HUGE_PAGE_SIZE, wanted=False)
    touch(mm, vpn_of(start, 512 * 3))
    assert not is_huge(mm, vpn_of(start, 512 * 3))
    madvise_hugepage(mm, start, 4 * HUGE_PAGE_SIZE)
    assert len({vma.flags for vma in mm.vmas.areas}) == 1


def test_never_is_never(new_host):
    mm = MmStruct(new_host(16 * MIB), "vmm")
    start = mmap(mm, HUGE_PAGE_SIZE)
    madvise_hugepage(mm, start, HUGE_PAGE_SIZE)
    touch(mm, vpn_of(start))
    assert not is_huge(mm, vpn_of(start))


def test_short_of_memory_small_pages_serve(new_host):
    mm = MmStruct(new_host(4 * MIB, thp=Thp.ALWAYS), "vmm")
    host = mm.host
    vpn = filled(mm, 3 * 512)
    assert host.vmstat.thp_fault_alloc == 1
    assert host.vmstat.thp_fault_fallback == 2
    assert host.vmstat.oom_kill == 0
    assert host.vmstat.pswpout > 0
    assert host.vmstat.thp_split_page == 1
    assert words(mm, vpn, 3 * 512) == list(range(1, 3 * 512 + 1))
    audit(host)


def test_the_table_for_the_split_is_not_to_be_had(mm, monkeypatch):
    monkeypatch.setattr(type(mm.host), "alloc_page_nowait", lambda self, zeroed=False: None)
    vpn = vpn_of(mmap(mm, HUGE_PAGE_SIZE))
    touch(mm, vpn)
    assert not is_huge(mm, vpn)
    assert mm.host.vmstat.thp_fault_fallback == 1
    audit(mm.host)


def test_runs_come_from_untouched_frames_then_from_freed_ones(mm):
    host = mm.host
    start = mmap(mm, 7 * HUGE_PAGE_SIZE)
    for block in range(7):
        touch(mm, vpn_of(start, 512 * block))
    assert host.vmstat.thp_fault_alloc == 7
    # One page of each but the last two stays: two runs come together again.
    for block in range(5):
        madvise_dontneed(mm, Hva(start + block * HUGE_PAGE_SIZE), HUGE_PAGE_SIZE - 4096)
    for block in (5, 6):
        madvise_dontneed(mm, Hva(start + block * HUGE_PAGE_SIZE), 4096)
        madvise_dontneed(mm, Hva(start + block * HUGE_PAGE_SIZE + 4096), HUGE_PAGE_SIZE - 4096)
    audit(host)
    assert not host.zone.free_runs
    other = mmap(mm, 3 * HUGE_PAGE_SIZE)
    for block in range(3):
        touch(mm, vpn_of(other, 512 * block))
    assert host.vmstat.thp_fault_alloc == 9
    assert host.vmstat.thp_fault_fallback == 1
    audit(host)


def test_small_pages_come_out_of_free_runs_too(mm):
    host = mm.host
    start = mmap(mm, 6 * HUGE_PAGE_SIZE)
    for block in range(6):
        touch(mm, vpn_of(start, 512 * block))
    madvise_dontneed(mm, start, 6 * HUGE_PAGE_SIZE)
    assert len(host.zone.free_runs) == 6
    pages = []
    while host.zone.nr_free > host.zone.low:
        page = host.alloc_page_nowait()
        assert page is not None
        pages.append(page)
    assert len({page.pfn for page in pages}) == len(pages)
    for page in pages:
        put_page(host, page)
    audit(host)


@pytest.mark.parametrize("change", [munmap, madvise_dontneed])
def test_a_part_that_goes_splits_the_rest(mm, change):
    vpn = filled(mm)
    change(mm, Hva(vpn + 10 << 12), 20 << 12)
    vmstat = mm.host.vmstat
    assert (vmstat.thp_split_pmd, vmstat.thp_split_page) == (1, 1)
    assert words(mm, vpn, 10) == NUMBERS[:10]
    assert words(mm, Vpn(vpn + 30), 482) == NUMBERS[30:]
    assert host_pte(mm, Vpn(vpn + 10)) == 0
    audit(mm.host)


def test_a_whole_one_goes_without_a_split(mm):
    vpn = filled(mm)
    tables = mm.host.vmstat.nr_page_table_pages
    munmap(mm, Hva(vpn << 12), HUGE_PAGE_SIZE)
    assert mm.host.vmstat.thp_split_pmd == 0
    assert mm.host.vmstat.nr_page_table_pages == tables - 3 == 1
    assert mm.host.zone.free_runs
    audit(mm.host)


def test_a_page_that_somebody_holds_outlives_its_huge_page(mm):
    vpn = filled(mm)
    page = get_user_page(mm, Vpn(vpn + 7), False)
    assert isinstance(page, Page)
    munmap(mm, Hva(vpn << 12), HUGE_PAGE_SIZE)
    assert mm.q[page.pfn << 9 | 5] == 8
    assert not mm.host.zone.free_runs
    put_page(mm.host, page)
    audit(mm.host)


def test_protecting_all_of_it_leaves_it_huge_and_a_write_takes_it_back(mm):
    vpn = filled(mm)
    start = Hva(vpn << 12)
    mprotect(mm, start, HUGE_PAGE_SIZE, False)
    assert is_huge(mm, vpn)
    assert not host_pte(mm, Vpn(vpn + 3)) & PT_WRITABLE
    mprotect(mm, start, HUGE_PAGE_SIZE, True)
    put_word(mm, Vpn(vpn + 3), 4)
    assert is_huge(mm, vpn)
    assert mm.host.vmstat.pgreuse == 1
    assert words(mm, vpn) == NUMBERS


def test_a_write_to_a_protected_one_of_which_a_page_is_held_splits_it(mm):
    vpn = filled(mm)
    start = Hva(vpn << 12)
    held = get_user_page(mm, Vpn(vpn + 3), False)
    assert isinstance(held, Page)
    mprotect(mm, start, HUGE_PAGE_SIZE, False)
    mprotect(mm, start, HUGE_PAGE_SIZE, True)
    put_word(mm, Vpn(vpn + 3), 99)
    assert not is_huge(mm, vpn)
    assert mm.q[held.pfn << 9 | 5] == 4
    audit(mm.host, {held: 1})
    put_page(mm.host, held)


def test_protecting_a_part_splits(mm):
    vpn = filled(mm)
    mprotect(mm, Hva(vpn + 4 << 12), 4 << 12, False)
    writable = [bool(host_pte(mm, Vpn(vpn + i)) & PT_WRITABLE) for i in range(3, 9)]
    assert writable == [True] + [False] * 4 + [True]
    audit(mm.host)


def test_reclaim_gives_a_second_chance_then_splits_and_goes_on(mm):
    host = mm.host
    vpn = filled(mm)
    sc = ScanControl(1 << 20)
    sc.priority = 0
    shrink_lruvec(host, sc)
    assert is_huge(mm, vpn)
    assert not host_pte(mm, vpn) & PT_ACCESSED
    shrink_lruvec(host, sc)
    assert host.vmstat.thp_split_page == 1
    audit(host)
    while host.lruvec.inactive:
        shrink_lruvec(host, sc)
    assert host.vmstat.pswpout == 512
    assert words(mm, vpn) == NUMBERS
    audit(host)


def test_reclaim_leaves_one_alone_of_which_a_page_is_held(mm):
    host = mm.host
    vpn = filled(mm)
    page = get_user_page(mm, Vpn(vpn + 7), False)
    assert isinstance(page, Page)
    sc = ScanControl(1 << 20)
    sc.priority = 0
    for _ in range(3):
        shrink_lruvec(host, sc)
    assert is_huge(mm, vpn)
    assert host.vmstat.thp_split_page == 0
    put_page(host, page)
    audit(host)


def test_a_secondary_mmu_that_uses_any_page_keeps_the_huge_one_young(mm):
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    vpn = filled(mm)
    mirror.map(mm, Vpn(vpn + 300), True)
    sc = ScanControl(1 << 20)
    sc.priority = 0
    shrink_lruvec(mm.host, sc)
    mirror.young.add(vpn + 300)
    touched = mm.host.vmstat.pgactivate
    shrink_lruvec(mm.host, sc)
    assert mm.host.vmstat.pgactivate == touched + 1
    assert is_huge(mm, vpn)


def test_pageout_splits_first(mm):
    vpn = filled(mm)
    assert madvise_pageout(mm, Hva(vpn << 12), 100 << 12) == 100
    assert words(mm, vpn) == NUMBERS
    audit(mm.host)


def test_a_split_is_a_bracket_around_none(mm):
    vpn = filled(mm)
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    mirror.map(mm, Vpn(vpn + 5), True)
    seen = []
    with check.watching(), attached(lambda tp, args: seen.append(args[1:]), [host_pte_change]):
        madvise_hugepage(mm, Hva(vpn + 1 << 12), 4096, wanted=False)
    assert mirror.calls == ["start CLEAR", "end CLEAR"]
    assert not mirror.mapped
    assert check.narrowed == 512
    assert [new for at, old, new in seen[:512]] == [0] * 512
    assert [at for at, old, new in seen[512:]] == list(range(vpn, vpn + 512))
    assert all(old == 0 and not new & PT_PAGE_SIZE for at, old, new in seen[512:])


def test_the_host_tlb_forgets_a_huge_page(mm):
    start = mmap(mm, HUGE_PAGE_SIZE)
    assert write_user_u64(mm, Hva(start + 40), 3) is None
    assert copy_to_user(mm, Hva(start + 4096), bytes(8192)) is None
    assert len(mm.tlb) == len(mm.tlb_w) == 3
    madvise_dontneed(mm, start, HUGE_PAGE_SIZE)
    assert not mm.tlb
    assert not mm.tlb_w
    assert read_user_u64(mm, Hva(start + 40)) == 0


def small(mm: MmStruct) -> Vpn:
    """512 pages, of which the first two are none and the zero page."""
    mm.host.thp = Thp.NEVER
    vpn = vpn_of(mmap(mm, HUGE_PAGE_SIZE))
    touch(mm, Vpn(vpn + 1), write=False)
    for i in range(2, 512):
        put_word(mm, Vpn(vpn + i), i + 1)
    return vpn


def test_collapse_copies_all_and_frees_the_small_pages(mm):
    vpn = small(mm)
    check, mirror = BracketCheck(), Mirror()
    mmu_notifier_register(mirror, mm)
    mirror.map(mm, Vpn(vpn + 9), True)
    free = mm.host.zone.nr_free
    with check.watching():
        assert collapse_huge_page(mm, Vpn(vpn + 77)) is ScanResult.SUCCEED
    assert not mirror.mapped
    assert is_huge(mm, vpn)
    assert words(mm, vpn) == [0, 0, *range(3, 513)]
    assert mm.host.vmstat.thp_collapse_alloc == 1
    assert mm.host.zone.nr_free == free - 2
    audit(mm.host)
    munmap(mm, Hva(vpn << 12), 4096)
    assert words(mm, Vpn(vpn + 1), 511) == [0, *range(3, 513)]
    audit(mm.host)


def test_what_cannot_be_collapsed_says_why_and_stays(mm):
    vpn = small(mm)
    assert collapse_huge_page(mm, Vpn(vpn + 512)) is ScanResult.VMA_CHECK
    held = get_user_page(mm, Vpn(vpn + 5), False)
    assert isinstance(held, Page)
    assert collapse_huge_page(mm, vpn) is ScanResult.PAGE_COUNT
    put_page(mm.host, held)
    madvise_pageout(mm, Hva(vpn + 100 << 12), 4096)
    assert collapse_huge_page(mm, vpn) is ScanResult.EXCEED_SWAP_PTE
    touch(mm, Vpn(vpn + 100))
    pages = []
    while mm.host.zone.nr_free >= 512 + mm.host.zone.high:
        pages.append(mm.host.alloc_page())
    assert collapse_huge_page(mm, vpn) is ScanResult.ALLOC_HUGE_PAGE_FAIL
    for page in pages:
        put_page(mm.host, page)
    assert collapse_huge_page(mm, vpn) is ScanResult.SUCCEED
    assert collapse_huge_page(mm, vpn) is ScanResult.PMD_MAPPED
    madvise_dontneed(mm, Hva(vpn << 12), HUGE_PAGE_SIZE)
    assert collapse_huge_page(mm, vpn) is ScanResult.PMD_NULL
    audit(mm.host)


def test_the_end_of_a_process_with_huge_pages(mm):
    filled(mm, 1100)
    exit_mmap(mm)
    assert mm.host.zone.nr_free == mm.host.zone.managed
    audit(mm.host)


class HugeMemory(HostMemory):
    """As HostMemory, with areas of several blocks, and collapse."""

    def collapse(self) -> None:
        collapse_huge_page(self.mm, Vpn(self.pick(1)[0]))

    def calls(self):
        return [*super().calls(), self.collapse, self.collapse] if self.areas else super().calls()


@pytest.mark.parametrize(
    ("thp", "seed"), [(Thp.ALWAYS, 1), (Thp.ALWAYS, 2), (Thp.ALWAYS, 3), (Thp.NEVER, 1), (Thp.NEVER, 2)]
)
def test_random_calls_agree_with_the_model(thp, seed, new_host):
    random = Random(seed)
    model = HugeMemory(random, 4096, new_host(10 * MIB, 4096 << 12, thp=thp), area=1500)
    check = BracketCheck()
    with check.watching(), attached(model.io, (swap_writepage, swap_readpage)):
        for _ in range(120):
            random.choice(model.calls())()
            assert not model.mirror.open
            audit(model.host, model.held)
        vmstat = model.host.vmstat
        assert vmstat.thp_fault_alloc + vmstat.thp_collapse_alloc > 0
        assert thp is Thp.NEVER or vmstat.thp_split_page > 0
        assert vmstat.oom_kill == 0
        model.finish()
