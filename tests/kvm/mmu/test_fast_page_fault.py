"""Faults without mmu_lock: rights that KVM itself took come back by one exchange, or not at all."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from shadowvm.addr import PAGE_SIZE, Gfn, Gpa
from shadowvm.config import MIB
from shadowvm.events import Tracepoint, attached, fast_page_fault, lock_acquire, spte_cmpxchg
from shadowvm.kvm.dirty import kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES as LOG
from shadowvm.kvm.mmu.access_track import is_access_track_spte
from shadowvm.kvm.mmu.spte import RetPf
from shadowvm.kvm.mmu.tdp_dirty import kvm_tdp_mmu_write_protect_gfn
from shadowvm.kvm.mmu.tdp_iter import tdp_leaf
from shadowvm.kvm.vm import Kvm
from shadowvm.x86 import PT_ACCESSED, PT_WRITABLE
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm

PAGE = PAGE_SIZE
MODES = pytest.mark.parametrize("tdp_mmu", [1, 0])


def log_on(kvm: Kvm) -> None:
    kvm.set_user_memory_region(0, Gpa(0), 4 * MIB, hva_of(kvm, 0), LOG)


def age(kvm: Kvm, gpa: int) -> bool:
    start = hva_of(kvm, gpa)
    return kvm.notifier.clear_flush_young(kvm.mm, start, start + PAGE)


def logged(**params: int) -> tuple[Kvm, Any]:
    """A page that the log has made read-only."""
    kvm = make_vm(**params)
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    log_on(kvm)
    return kvm, cpu


@MODES
def test_a_store_to_a_logged_page_is_fast_and_logged(tdp_mmu: int) -> None:
    kvm, cpu = logged(tdp_mmu=tdp_mmu)
    assert not cpu.spte(0x5000) & PT_WRITABLE
    taken: list[str] = []
    calls: list[tuple[Any, ...]] = []
    with (
        attached(lambda tracepoint, args: taken.append(args[0].name), (lock_acquire,)),
        attached(lambda tracepoint, args: calls.append(args), (fast_page_fault,)),
    ):
        cpu.store(0x5000, 6)
    assert not taken
    assert [args[-1] for args in calls] == [RetPf.FIXED]
    assert "fixed 1" in fast_page_fault.format(calls[0])
    assert (cpu.stat.pf_fast, cpu.stat.pf_fixed) == (1, 2)
    assert cpu.spte(0x5000) & PT_WRITABLE
    assert kvm_get_dirty_log(kvm, 0)[0] == 1 << 5


def test_without_the_knob_the_slow_way_does_the_same() -> None:
    kvm, cpu = logged(fast_page_fault=0)
    cpu.store(0x5000, 6)
    assert cpu.stat.pf_fast == 0
    assert kvm_get_dirty_log(kvm, 0)[0] == 1 << 5


def test_a_page_that_is_not_mmu_writable_is_refused() -> None:
    kvm, cpu = logged()
    kvm.mmu_lock.acquire()
    assert kvm_tdp_mmu_write_protect_gfn(kvm, kvm.memslots.slots[0], Gfn(5))
    kvm.flush_remote_tlbs()
    kvm.mmu_lock.release()
    cpu.store(0x5000, 6)
    assert cpu.stat.pf_fast == 0
    assert cpu.load(0x5000) == 6


def test_who_loses_the_race_looks_again() -> None:
    kvm, cpu = logged()
    sptep = tdp_leaf(kvm, cpu.root.pages[0], 5)
    turns = count()

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        if next(turns) < 2:
            kvm.q[sptep] ^= PT_ACCESSED

    with attached(sink, (spte_cmpxchg,)):
        cpu.store(0x5000, 6)
    assert next(turns) == 3
    assert cpu.stat.pf_fast == 1


def test_after_four_lost_races_it_takes_the_slow_way() -> None:
    kvm, cpu = logged()
    sptep = tdp_leaf(kvm, cpu.root.pages[0], 5)
    turns = count()

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        if next(turns) < 4:
            kvm.q[sptep] ^= PT_ACCESSED

    with attached(sink, (spte_cmpxchg,)):
        cpu.store(0x5000, 6)
    assert cpu.stat.pf_fast == 0
    assert cpu.stat.pf_fixed == 2


def test_another_vcpu_may_have_been_as_fast() -> None:
    kvm = make_vm(cpus=2)
    one, two = cpus_of(kvm)
    one.store(0x5000, 5)
    two.load(0x5000)
    log_on(kvm)
    one.store(0x5000, 6)
    assert two.stat.pf_taken == 0
    two.store(0x5008, 7)
    assert two.stat.pf_taken == 0, "the walk itself finds W again"


@MODES
@pytest.mark.parametrize("write", [True, False])
def test_without_a_bits_the_next_access_is_a_fast_fault(write: bool, tdp_mmu: int) -> None:
    kvm = make_vm(eptad=0, tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    assert age(kvm, 0x5000)
    assert not age(kvm, 0x5000)
    assert is_access_track_spte(cpu.spte(0x5000))
    fixed = cpu.stat.pf_fixed
    if write:
        cpu.store(0x5000, 6)
    else:
        assert cpu.load(0x5000) == 5
    assert (cpu.stat.pf_fast, cpu.stat.pf_fixed) == (1, fixed + 1)
    assert bool(cpu.spte(0x5000) & PT_WRITABLE) == write
    assert age(kvm, 0x5000)


def test_without_a_bits_the_slow_way_restores_too() -> None:
    kvm = make_vm(eptad=0, fast_page_fault=0)
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    age(kvm, 0x5000)
    assert cpu.load(0x5000) == 5
    assert cpu.stat.pf_fast == 0
    assert not is_access_track_spte(cpu.spte(0x5000))
    cpu.store(0x5000, 6)
    assert kvm.stat.pages_4k == 1


def test_a_first_touch_is_not_fast() -> None:
    for eptad in (0, 1):
        kvm = make_vm(eptad=eptad)
        cpu = cpus_of(kvm)[0]
        cpu.store(0x5000, 5)
        assert cpu.stat.pf_fast == 0
