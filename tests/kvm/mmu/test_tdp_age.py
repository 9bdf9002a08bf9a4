"""Ageing by A bits: without a lock, in every root, and never at the cost of rights."""

from __future__ import annotations

from typing import Any

import pytest

from shadowvm.addr import PAGE_SIZE, Gfn
from shadowvm.events import Tracepoint, attached, kvm_tdp_mmu_spte_changed, lock_acquire, spte_cmpxchg
from shadowvm.kvm.mmu.tdp_age import kvm_tdp_mmu_age_gfn_range
from shadowvm.x86 import PT_ACCESSED
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm

PAGE = PAGE_SIZE


def test_ageing_clears_a_and_nothing_else() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    spte = cpu.spte(0x5000)
    changes: list[tuple[Any, ...]] = []
    taken: list[str] = []
    with (
        attached(lambda tracepoint, args: changes.append(args), (kvm_tdp_mmu_spte_changed,)),
        attached(lambda tracepoint, args: taken.append(args[0].name), (lock_acquire,)),
    ):
        assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(5), Gfn(6), clear=True)
    assert cpu.spte(0x5000) == spte & ~PT_ACCESSED
    assert changes == [(0, 5, 1, spte, spte & ~PT_ACCESSED)]
    assert not taken
    assert not kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(5), Gfn(6), clear=True)


def test_looking_changes_nothing() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)
    for _ in range(2):
        assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(0), Gfn(0x400), clear=False)
        assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(5), Gfn(6), clear=False)
    assert not kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(6), Gfn(7), clear=False)


def test_a_range_is_young_if_one_page_is() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    for page in range(8):
        cpu.store(page * PAGE, page)
    assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(0), Gfn(8), clear=True)
    assert not kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(0), Gfn(8), clear=True)
    cpu.engine.flush_tlb()
    cpu.load(6 * PAGE)
    assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(0), Gfn(8), clear=True)
    assert not any(cpu.spte(page * PAGE) & PT_ACCESSED for page in range(8))


@pytest.mark.parametrize("tdp_mmu", [1, 0])
def test_a_page_that_is_used_again_is_young_again_whatever_the_tlb_has(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    start = hva_of(kvm, 0x5000)
    cpu.store(0x5000, 5)
    for _ in range(2):
        assert kvm.notifier.clear_young(kvm.mm, start, start + PAGE)
        assert not kvm.notifier.clear_young(kvm.mm, start, start + PAGE)
        cpu.load(0x5000)


def test_who_changes_the_entry_meanwhile_wins() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(0x5000, 5)

    def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        kvm.q[args[0] >> 3] = 0

    with attached(sink, (spte_cmpxchg,)):
        assert kvm_tdp_mmu_age_gfn_range(kvm, 0, Gfn(5), Gfn(6), clear=True)
    assert cpu.spte(0x5000) == 0
