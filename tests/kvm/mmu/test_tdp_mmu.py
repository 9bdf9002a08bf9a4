"""The tables of the TDP MMU: what faults build, notifiers zap, and who may look at what meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shadowvm.addr import PAGE_SIZE, Gfn, Gpa
from shadowvm.config import MIB
from shadowvm.errors import ModelBug
from shadowvm.events import Tracepoint, attached, kvm_faultin_pfn, kvm_flush_remote_tlbs, spte_cmpxchg
from shadowvm.kvm.mmu.spte import FROZEN_SPTE, SPTE_MMU_PRESENT, make_nonleaf_spte, spte_pfn
from shadowvm.kvm.mmu.tdp_mmu import (
    TIME_SLICE,
    kvm_tdp_mmu_invalidate_roots,
    kvm_tdp_mmu_unmap_gfn_range,
    kvm_tdp_mmu_zap_invalidated_roots,
)
from shadowvm.kvm.mmu.tdp_spte import tdp_mmu_alloc_sp, tdp_mmu_set_spte, tdp_mmu_set_spte_atomic
from shadowvm.kvm.mmu.zap_all import kvm_mmu_zap_all_fast
from shadowvm.kvm.vm import Kvm
from shadowvm.mm.mm_struct import exit_mmap, madvise_pageout, munmap
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm

PAGE = PAGE_SIZE
MODES = pytest.mark.parametrize("tdp_mmu", [1, 0])


def destroy(kvm: Kvm) -> None:
    """Take the VM down; nothing may be left of its tables."""
    kvm.destroy()
    assert not kvm.sp_by_pfn
    assert kvm.stat.pages_4k == 0
    assert kvm.mm.host.vmstat.nr_sec_page_table_pages == 0
    exit_mmap(kvm.mm)
    zone = kvm.mm.host.zone
    assert zone.nr_free == zone.managed


@MODES
def test_what_is_stored_is_loaded(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    for gpa in range(0, MIB, 0x3008):
        cpu.store(gpa, gpa + 1)
    assert [cpu.load(gpa) for gpa in range(0, MIB, 0x3008)] == [gpa + 1 for gpa in range(0, MIB, 0x3008)]
    assert cpu.stat.pf_fixed == kvm.stat.pages_4k
    destroy(kvm)


@MODES
def test_memory_comes_back_from_swap(tdp_mmu: int) -> None:
    kvm = make_vm(8 * MIB, host_memory=2 * MIB, tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    for gpa in range(0, 4 * MIB, PAGE):
        cpu.store(gpa, gpa + 1)
    assert kvm.mm.host.vmstat.pswpout > 0
    assert all(cpu.load(gpa) == gpa + 1 for gpa in range(0, 4 * MIB, PAGE))
    assert kvm.notifier.stat.sptes_zapped > 0
    destroy(kvm)


def test_vcpus_share_one_root_and_its_leaves() -> None:
    kvm = make_vm(cpus=3)
    first, *others = cpus_of(kvm)
    first.store(0x5000, 7)
    for cpu in others:
        assert cpu.load(0x5000) == 7
        assert cpu.stat.pf_taken == 0
    assert len(kvm.tdp_mmu_roots) == 1
    assert kvm.tdp_mmu_roots[0].root_count == 4
    assert kvm.tdp_mmu_pages == 3
    destroy(kvm)


def test_tables_do_not_count_against_the_limit_of_shadow_pages() -> None:
    kvm = make_vm()
    cpus_of(kvm)[0].store(0, 1)
    assert not kvm.active_mmu_pages
    assert len(kvm.sp_by_pfn) == 4
    destroy(kvm)


def test_the_zero_page_is_read_only_and_a_store_gets_a_page_of_its_own() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    assert cpu.load(0x5000) == 0
    assert spte_pfn(cpu.spte(0x5000)) == kvm.mm.host.zone.zero_page.pfn
    cpu.store(0x5000, 9)
    assert spte_pfn(cpu.spte(0x5000)) != kvm.mm.host.zone.zero_page.pfn
    assert cpu.load(0x5000) == 9
    destroy(kvm)


def test_two_faults_of_the_same_page_make_one_leaf() -> None:
    kvm = make_vm(cpus=2)
    one, two = cpus_of(kvm)
    one.store(0, 1)
    two.load(0)
    sched = kvm.mm.host.sched

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        sched.preempt()

    for number, cpu in enumerate((one, two)):
        sched.spawn(f"cpu {number}", lambda cpu=cpu, number=number: cpu.store(0x5000 + 8 * number, number + 1))
    with attached(sink, (kvm_faultin_pfn, spte_cmpxchg)):
        sched.run()
    assert [one.load(0x5000), one.load(0x5008)] == [1, 2]
    assert one.stat.pf_taken + two.stat.pf_taken >= 3
    assert kvm.stat.pages_4k == 2
    destroy(kvm)


def race(kvm: Kvm, at: Tracepoint, work: Callable[[], None]) -> Callable[[Callable[[], Any]], None]:
    """Run `work` in another task at the first hit of `at`; the result attaches it and runs a task."""
    sched = kvm.mm.host.sched
    armed = [True]

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        if armed and armed.pop():
            sched.spawn("racer", work)
            sched.preempt()

    def run_with(main: Callable[[], Any]) -> None:
        sched.spawn("main", main)
        with attached(sink, (at,)):
            sched.run()
        assert not armed

    return run_with


def test_a_fault_whose_page_is_taken_away_meanwhile_retries() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 7)
    madvise_pageout(kvm.mm, hva_of(kvm, 0x5000), PAGE)
    run = race(kvm, kvm_faultin_pfn, lambda: madvise_pageout(kvm.mm, hva_of(kvm, 0x5000), PAGE))
    run(lambda: cpu.store(0x5008, 8))
    assert (cpu.load(0x5000), cpu.load(0x5008)) == (7, 8)
    assert cpu.stat.pf_taken >= 3
    destroy(kvm)


def test_a_fault_in_a_root_that_is_invalidated_meanwhile_retries() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 7)
    old = kvm.tdp_mmu_roots[0]
    run = race(kvm, kvm_faultin_pfn, lambda: kvm_mmu_zap_all_fast(kvm))
    run(lambda: cpu.store(0x6000, 8))
    assert [cpu.load(0x5000), cpu.load(0x6000)] == [7, 8]
    assert old not in kvm.tdp_mmu_roots
    assert old.pfn not in kvm.sp_by_pfn
    destroy(kvm)


def test_an_invalid_root_stays_until_its_last_vcpu_lets_go_and_is_zapped_by_notifiers() -> None:
    kvm = make_vm(cpus=2)
    one, two = cpus_of(kvm)
    one.store(0x5000, 7)
    two.load(0x5000)
    old = kvm.tdp_mmu_roots[0]
    kvm.mmu_lock.acquire()
    kvm_tdp_mmu_invalidate_roots(kvm)
    kvm.request_free_obsolete_roots()
    kvm.mmu_lock.release()
    assert one.load(0x6000) == 0
    assert kvm.tdp_mmu_roots == [old, one.root.pages[0]]
    madvise_pageout(kvm.mm, hva_of(kvm, 0x5000), PAGE)
    assert two.spte(0x5000) == 0
    kvm_tdp_mmu_zap_invalidated_roots(kvm)
    assert old in kvm.tdp_mmu_roots
    two.enter()
    assert old not in kvm.tdp_mmu_roots
    assert one.root.hpa == two.root.hpa
    destroy(kvm)


def test_unmapping_zaps_just_the_range() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    for page in range(8):
        cpu.store(page * PAGE, page)
    before = kvm.stat.remote_tlb_flush
    munmap(kvm.mm, hva_of(kvm, 2 * PAGE), 4 * PAGE)
    assert [bool(cpu.spte(page * PAGE)) for page in range(8)] == [True] * 2 + [False] * 4 + [True] * 2
    assert kvm.stat.pages_4k == 4
    assert kvm.stat.remote_tlb_flush > before


def test_a_table_that_is_torn_down_is_frozen_and_freed_after_the_readers() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    for page in range(4):
        cpu.store(page * PAGE, page)
    link = kvm.q[kvm.tdp_mmu_roots[0].q]
    level2 = kvm.q[spte_pfn(link) << 9]
    sptep = spte_pfn(level2) << 9
    table = spte_pfn(kvm.q[sptep])
    kvm.mmu_lock.acquire()
    kvm.rcu.read_lock()
    tdp_mmu_set_spte(kvm, sptep, Gfn(0), 2, 0)
    assert kvm.q[table << 9] == FROZEN_SPTE
    assert kvm.stat.pages_4k == 0
    assert table in kvm.sp_by_pfn
    kvm.flush_remote_tlbs()
    kvm.rcu.read_unlock()
    assert table not in kvm.sp_by_pfn
    kvm.mmu_lock.release()
    assert [cpu.load(page * PAGE) for page in range(4)] == [0, 1, 2, 3]
    destroy(kvm)


def test_a_fault_that_meets_a_frozen_entry_retries() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0, 1)
    link = kvm.q[kvm.tdp_mmu_roots[0].q]
    sptep = (spte_pfn(kvm.q[spte_pfn(link) << 9]) << 9) + 1
    kvm.q[sptep] = FROZEN_SPTE
    sched = kvm.mm.host.sched

    def thaw() -> None:
        for _ in range(3):
            sched.preempt()
        kvm.q[sptep] = 0

    sched.spawn("thaw", thaw)
    sched.spawn("cpu", lambda: cpu.store(2 * MIB, 5))
    with attached(lambda tracepoint, args: sched.preempt(), (kvm_faultin_pfn,)):
        sched.run()
    assert cpu.load(2 * MIB) == 5
    assert cpu.stat.pf_taken > 2
    destroy(kvm)


def test_an_exchange_fails_if_somebody_was_there_first() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0, 1)
    spte = cpu.spte(0)
    sptep = (spte_pfn(kvm.q[(spte_pfn(kvm.q[spte_pfn(kvm.q[kvm.tdp_mmu_roots[0].q]) << 9]) << 9)])) << 9
    assert kvm.q[sptep] == spte
    assert not tdp_mmu_set_spte_atomic(kvm, sptep, Gfn(0), 1, spte ^ 0x20, 0)
    assert kvm.q[sptep] == spte
    assert tdp_mmu_set_spte_atomic(kvm, sptep, Gfn(0), 1, spte, 0)
    assert kvm.stat.pages_4k == 0


def test_a_present_leaf_never_changes_its_frame() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0, 1)
    sptep = (spte_pfn(kvm.q[(spte_pfn(kvm.q[spte_pfn(kvm.q[kvm.tdp_mmu_roots[0].q]) << 9]) << 9)])) << 9
    with pytest.raises(ModelBug, match="present leaf"):
        tdp_mmu_set_spte(kvm, sptep, Gfn(0), 1, kvm.q[sptep] ^ 0x1000)


def test_a_link_that_loses_the_race_is_not_counted() -> None:
    kvm = make_vm(cpus=2)
    one, two = cpus_of(kvm)
    one.store(0, 1)
    two.load(0)
    run = race(kvm, spte_cmpxchg, lambda: two.store(2 * MIB, 5))
    run(lambda: one.store(2 * MIB + 8, 6))
    assert [one.load(2 * MIB), two.load(2 * MIB + 8)] == [5, 6]
    assert kvm.tdp_mmu_pages == 4
    destroy(kvm)


def test_a_long_zap_lets_a_waiting_fault_in_and_flushes_first() -> None:
    kvm = make_vm(cpus=2)
    one, two = cpus_of(kvm)
    for page in range(600):
        one.store(page * PAGE % MIB + page // 256 * MIB, page)
    sched, lock = kvm.mm.host.sched, kvm.mmu_lock
    order: list[str] = []

    def zapper() -> None:
        lock.acquire()
        sched.preempt()
        flush = kvm_tdp_mmu_unmap_gfn_range(kvm, 0, Gfn(0), Gfn(0x400), may_yield=True)
        if flush:
            kvm.flush_remote_tlbs()
        lock.release()
        order.append("zapped")

    def faulter() -> None:
        two.store(3 * MIB + 0xFF000, 5)
        order.append("faulted")

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        order.append("flush")

    sched.spawn("zap", zapper)
    sched.spawn("fault", faulter)
    with attached(sink, (kvm_flush_remote_tlbs,)):
        sched.run()
    assert order.index("flush") < order.index("faulted") < order.index("zapped")


def test_a_long_zap_gives_way_to_who_does_not_want_the_lock_after_a_time_slice() -> None:
    kvm = make_vm(cpus=1)
    cpu = cpus_of(kvm)[0]
    for page in range(600):
        cpu.store(page * PAGE, page)
    sched, lock = kvm.mm.host.sched, kvm.mmu_lock
    turns = 0

    def zapper() -> None:
        lock.acquire()
        assert sched.need_resched
        kvm_tdp_mmu_unmap_gfn_range(kvm, 0, Gfn(0), Gfn(0x400), may_yield=True)
        lock.release()
        other.append("zapped")

    def idler() -> None:
        nonlocal turns
        while not other:
            turns += 1
            sched.preempt()

    other: list[str] = []
    sched.spawn("zap", zapper)
    sched.spawn("idle", idler)
    sched.run()
    assert turns == 1024 // TIME_SLICE
    assert kvm.stat.pages_4k == 0


def test_a_link_names_a_table_that_is_known() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.enter()
    sp = tdp_mmu_alloc_sp(kvm, cpu.mmu_shadow_page_cache, Gfn(0), 3, kvm.tdp_mmu_roots[0].role)
    assert kvm.sp_by_pfn[sp.pfn] is sp
    assert (sp.level, sp.gfn, sp.direct) == (3, 0, True)
    assert make_nonleaf_spte(sp.pfn) & SPTE_MMU_PRESENT


@MODES
def test_no_memory_is_no_fault_to_fix(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    with pytest.raises(IndexError):
        cpu.load(16 * MIB)
    assert cpu.walker.gfn == 16 * MIB >> 12


@MODES
def test_a_deleted_slot_leaves_nothing(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    kvm.mm.host.sched.spawn("vmm", lambda: kvm.set_user_memory_region(0, Gpa(0), 0, hva_of(kvm, 0)))
    kvm.mm.host.sched.run()
    assert kvm.stat.pages_4k == 0
    with pytest.raises(IndexError):
        cpu.load(0x5000)
    destroy(kvm)
