from __future__ import annotations

import pytest

from shadowvm.addr import Vpn
from shadowvm.events import (
    attached,
    mm_vmscan_direct_reclaim_begin,
    mm_vmscan_direct_reclaim_end,
    mm_vmscan_kswapd_sleep,
    mm_vmscan_kswapd_wake,
    mm_vmscan_lru_isolate,
    mm_vmscan_lru_shrink_inactive,
)
from shadowvm.mm.fault import VmFault
from shadowvm.mm.gup import get_user_page, host_pte
from shadowvm.mm.mm_struct import MmStruct, exit_mmap, madvise_pageout, mmap, munmap
from shadowvm.mm.mmu_notifier import mmu_notifier_register
from shadowvm.mm.page_alloc import put_page
from shadowvm.mm.vmscan import (
    MAX_RECLAIM_RETRIES,
    ReclaimStat,
    ScanControl,
    balance_pgdat,
    move_folios_to_lru,
    shrink_active_list,
    shrink_folio_list,
    shrink_inactive_list,
    shrink_lruvec,
)
from tests.mm.helpers import BracketCheck, Mirror, audit, get_word, put_word, touch, vpn_of


def filled(mm, n):
    start = mmap(mm, n << 12)
    for i in range(n):
        put_word(mm, vpn_of(start, i), i + 1)
    return vpn_of(start)


def scan(host, n, kswapd=False):
    return shrink_inactive_list(host, n, ScanControl(n, kswapd))


def test_a_page_gets_a_second_chance_and_then_goes(mm):
    host = mm.host
    filled(mm, 8)
    assert scan(host, 8) == 0
    assert scan(host, 8) == 8
    assert host.vmstat.pgscan_direct == 16
    assert host.vmstat.pgsteal_direct == 8
    audit(host)


def test_a_page_that_is_used_between_two_scans_becomes_active(mm):
    host = mm.host
    vpn = filled(mm, 4)
    scan(host, 4)
    hot = touch(mm, Vpn(vpn + 2))
    assert scan(host, 4) == 3
    assert hot.active
    assert list(host.lruvec.active.values()) == [hot]
    assert host.vmstat.pgactivate == 1
    audit(host)


def test_a_secondary_mmu_keeps_its_pages_in_memory(mm):
    host = mm.host
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    vpn = filled(mm, 4)
    hot = mirror.map(mm, Vpn(vpn + 1), True)
    scan(host, 4)
    mirror.young.add(vpn + 1)
    assert scan(host, 4) == 3
    assert hot.active


def test_the_active_list_is_aged_into_the_inactive_one(mm):
    host = mm.host
    vpn = filled(mm, 4)
    scan(host, 4)
    for i in range(4):
        touch(mm, Vpn(vpn + i))
    scan(host, 4)
    assert len(host.lruvec.active) == 4
    shrink_active_list(host, 3)
    assert (len(host.lruvec.active), len(host.lruvec.inactive)) == (1, 3)
    assert host.vmstat.pgdeactivate == host.vmstat.pgrefill == 3
    assert scan(host, 3) == 3
    audit(host)


def test_the_lightest_scan_is_one_batch_and_the_hardest_everything(mm):
    host = mm.host
    filled(mm, 80)
    sc = ScanControl(1 << 20)
    shrink_lruvec(host, sc)
    assert (sc.priority, sc.nr_scanned) == (12, 32)
    sc.priority = 0
    shrink_lruvec(host, sc)
    assert sc.nr_scanned == 32 + 80


def test_a_clean_page_is_dropped_without_a_second_write(mm):
    host = mm.host
    vpn = filled(mm, 4)
    madvise_pageout(mm, vpn << 12, 4 << 12)
    for i in range(4):
        get_word(mm, Vpn(vpn + i))
    scan(host, 4)
    assert scan(host, 4) == 4
    assert host.vmstat.pswpout == 4


def test_a_held_page_goes_back_and_others_of_its_batch_go(mm):
    host = mm.host
    vpn = filled(mm, 8)
    held = get_user_page(mm, Vpn(vpn + 3), False)
    scan(host, 8)
    assert scan(host, 8) == 7
    assert held.swapcache
    assert held.lru is not None
    audit(host, {held: 1})
    put_page(host, held)
    assert scan(host, 8) == 1
    assert get_word(mm, Vpn(vpn + 3)) == 4


def test_a_held_page_without_an_owner_takes_no_slot(mm):
    host = mm.host
    vpn = filled(mm, 1)
    held = get_user_page(mm, vpn, True)
    munmap(mm, vpn << 12, 4096)
    assert scan(host, 1) == 0
    assert host.swap.nr_free == host.swap.nr_slots
    put_page(host, held)
    audit(host)


def test_a_locked_page_is_passed_over(mm):
    host = mm.host
    vpn = filled(mm, 2)
    scan(host, 2)
    locked = host.zone.mem_map[host_pte(mm, vpn) >> 12]
    locked.locked = True
    assert scan(host, 2) == 1
    assert host_pte(mm, vpn) & 1
    locked.locked = False
    audit(host)


def test_a_page_whose_owner_let_go_while_isolated_is_freed(mm):
    host = mm.host
    filled(mm, 1)
    (page,) = host.lruvec.inactive.values()
    del host.lruvec.inactive[page.pfn]
    page.lru = None
    page.refcount += 1
    exit_mmap(mm)
    stat = ReclaimStat()
    shrink_folio_list(host, [page], stat)
    move_folios_to_lru(host, stat.keep)
    assert stat.nr_reclaimed == 1
    assert host.zone.nr_free == host.zone.managed


def test_every_unmapping_is_bracketed_and_starts_before_the_write(mm):
    host = mm.host
    mirror, check = Mirror(), BracketCheck()
    mmu_notifier_register(mirror, mm)
    vpn = filled(mm, 64)
    for i in range(64):
        mirror.map(mm, Vpn(vpn + i), True)
    with check.watching():
        sc = ScanControl(1 << 20)
        sc.priority = 0
        shrink_lruvec(host, sc)
        shrink_lruvec(host, sc)
    assert sc.nr_reclaimed == 64
    assert check.narrowed == 64
    assert not mirror.mapped
    assert mirror.calls == ["start CLEAR", "end CLEAR"] * 64


def test_without_a_free_slot_pages_become_active_and_stay(new_host):
    host = new_host(swap=3 << 12)
    mm = MmStruct(host, "vmm")
    filled(mm, 5)
    scan(host, 5)
    assert scan(host, 5) == 3
    assert (len(host.lruvec.active), len(host.lruvec.inactive)) == (2, 0)
    audit(host)


def test_without_swap_nothing_is_scanned(new_host):
    host = new_host(swap=0)
    mm = MmStruct(host, "vmm")
    start = mmap(mm, 4 << 20)
    faults = [get_user_page(mm, vpn_of(start, i), True) for i in range(500)]
    assert faults[-1] is VmFault.OOM
    assert host.vmstat.pgscan_anon == 0


def test_memory_beyond_ram_comes_back_intact(mm):
    host = mm.host
    vpn = filled(mm, 1500)
    for _ in range(2):
        assert [get_word(mm, Vpn(vpn + i)) for i in range(1500)] == list(range(1, 1501))
    assert host.vmstat.allocstall_normal > 0
    assert host.vmstat.oom_kill == 0
    audit(host)


def test_held_pages_do_not_make_allocation_fail_while_others_can_go(mm):
    host = mm.host
    start = mmap(mm, 4 << 20)
    held = {}
    for i in range(900):
        page = get_user_page(mm, vpn_of(start, i), True)
        assert page is not VmFault.OOM
        if i % 3 == 0 and len(held) < 300:
            held[page] = 1
        else:
            put_page(host, page)
    audit(host, held)
    for page in held:
        put_page(host, page)
    exit_mmap(mm)
    assert host.zone.nr_free == host.zone.managed


def test_direct_reclaim_is_traced_and_frees_a_batch(mm):
    host = mm.host
    seen = []
    with attached(
        lambda tp, args: seen.append((tp.name, args)), (mm_vmscan_direct_reclaim_begin, mm_vmscan_direct_reclaim_end)
    ):
        filled(mm, host.zone.managed - host.zone.min + 1)
    assert seen[0] == ("mm_vmscan_direct_reclaim_begin", (0,))
    name, (reclaimed,) = seen[1]
    assert name == "mm_vmscan_direct_reclaim_end"
    assert reclaimed >= 32
    assert not host.memalloc


def test_scans_are_traced_with_what_they_found(mm):
    host = mm.host
    filled(mm, 4)
    scan(host, 8)
    seen = []
    with attached(
        lambda tp, args: seen.append((tp.name, args)), (mm_vmscan_lru_isolate, mm_vmscan_lru_shrink_inactive)
    ):
        scan(host, 8, kswapd=True)
    assert seen == [
        ("mm_vmscan_lru_isolate", (8, 4, 4, "inactive_anon")),
        ("mm_vmscan_lru_shrink_inactive", (4, 4, 4, 0, 0)),
    ]
    assert host.vmstat.pgsteal_kswapd == 4


def run(host, main):
    host.sched.spawn("vmm", main)
    host.sched.run()


def test_kswapd_wakes_below_low_and_works_up_to_high(mm):
    host = mm.host
    zone = host.zone
    marks = []

    def main():
        start = mmap(mm, 4 << 20)
        for i in range(900):
            put_word(mm, vpn_of(start, i), i + 1)
            host.sched.cond_resched()

    with attached(lambda tp, _: marks.append((tp.name, zone.nr_free)), (mm_vmscan_kswapd_wake, mm_vmscan_kswapd_sleep)):
        run(host, main)
    wakes = [free for name, free in marks if name.endswith("wake")]
    sleeps = [free for name, free in marks if name.endswith("sleep")]
    assert len(wakes) > 3
    assert max(wakes) <= zone.low
    assert min(sleeps) >= zone.high
    assert host.vmstat.pgsteal_kswapd > 4 * host.vmstat.pgsteal_direct
    audit(host)


def test_kswapd_gives_up_when_there_is_nothing_and_comes_back_when_there_is(new_host):
    host = new_host(swap=512 << 12)
    mm = MmStruct(host, "vmm")
    hog = []

    def starve():
        while (page := host.alloc_page_nowait()) is not None:
            hog.append(page)
            host.sched.cond_resched()
        for _ in range(400):
            host.wakeup_kswapd()
            host.sched.cond_resched()

    run(host, starve)
    assert host.kswapd_failures == MAX_RECLAIM_RETRIES
    assert host.vmstat.pageoutrun == MAX_RECLAIM_RETRIES
    for page in hog:
        put_page(host, page)

    def use():
        filled(mm, 480)
        start = mmap(mm, 4 << 20)
        for i in range(200):
            put_word(mm, vpn_of(start, i), 1)
            host.sched.cond_resched()

    run(host, use)
    assert host.kswapd_failures == 0
    assert host.vmstat.pgsteal_kswapd > 0


def test_one_run_of_kswapd_stops_at_the_high_watermark(mm):
    host = mm.host
    filled(mm, host.zone.managed - host.zone.low)
    assert host.zone.nr_free < host.zone.high
    while host.zone.nr_free < host.zone.high:
        balance_pgdat(host)
    assert host.zone.nr_free < host.zone.high + 64
    assert balance_pgdat(host) == 0


@pytest.mark.parametrize("seed", range(6))
def test_tasks_under_pressure_and_preemption_keep_their_contents(new_host, seed):
    from shadowvm.sync import Lockdep, RandomPreemption

    host = new_host()
    mm = MmStruct(host, "vmm")
    start = mmap(mm, 4 << 20)
    errors = []

    def worker(number):
        for i in range(number, 720, 3):
            put_word(mm, vpn_of(start, i), i + 1)
        for i in range(number, 720, 3):
            if get_word(mm, vpn_of(start, i)) != i + 1:
                errors.append(i)

    for number in range(3):
        host.sched.spawn(f"vcpu{number}", lambda number=number: worker(number))
    check = BracketCheck()
    with check.watching(), Lockdep(host.sched).watching(), RandomPreemption(host.sched, seed).watching():
        host.sched.run()
        # kswapd may have been stopped in the middle of something when the last worker ended.
        while host.sched.runnable:
            host.sched.spawn("drain", lambda: [host.sched.preempt() for _ in range(50)])
            host.sched.run()
    assert errors == []
    assert host.vmstat.pswpin > 0
    audit(host)
