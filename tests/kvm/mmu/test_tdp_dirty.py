"""The dirty log over the TDP MMU: by write protection and, with PML, by D bits."""

from __future__ import annotations

import pytest

from shadowvm.addr import PAGE_SIZE, Gfn, Gpa, Hva
from shadowvm.config import MIB
from shadowvm.kvm.dirty import kvm_clear_dirty_log, kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES as LOG
from shadowvm.kvm.mmu.spte import SPTE_MMU_WRITABLE
from shadowvm.kvm.mmu.tdp_dirty import kvm_tdp_mmu_write_protect_gfn
from shadowvm.kvm.vm import Kvm
from shadowvm.mm.mm_struct import madvise_pageout
from shadowvm.mm.mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from shadowvm.x86 import PT_DIRTY, PT_WRITABLE
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm

PAGE = PAGE_SIZE
PARAMS = ({}, {"pml": 1}, {"eptad": 0}, {"tdp_mmu": 0}, {"eptad": 0, "pml": 1})
ALL = pytest.mark.parametrize("params", PARAMS, ids=str)


def log_on(kvm: Kvm) -> None:
    kvm.set_user_memory_region(0, Gpa(0), 4 * MIB, hva_of(kvm, 0), LOG)


def harvest(kvm: Kvm) -> list[int]:
    bitmap = kvm_get_dirty_log(kvm, 0)
    return [page for page in range(8 * len(bitmap)) if bitmap[page >> 3] >> (page & 7) & 1]


@ALL
def test_each_harvest_has_what_was_stored_since_the_last(params: dict[str, int]) -> None:
    kvm = make_vm(**params)
    cpu = cpus_of(kvm)[0]
    for page in range(16):
        cpu.store(page * PAGE, page)
    log_on(kvm)
    for first in (1, 2, 1, 3):
        for page in range(first, 16, 4):
            cpu.store(page * PAGE, page)
        for page in range(16):
            cpu.load(page * PAGE)
        assert harvest(kvm) == list(range(first, 16, 4))
    assert harvest(kvm) == []


@ALL
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_store_after_a_load_that_has_mapped_the_page_is_in_the_log(params: dict[str, int], prefetch: int) -> None:
    """The load's fault finds a page that may be written, and need not be asked again."""
    kvm = make_vm(**{**params, "prefetch": prefetch})
    cpu = cpus_of(kvm)[0]
    for page in range(8):
        cpu.store(page * PAGE, page)
    log_on(kvm)
    start = hva_of(kvm, 0)
    range_ = MmuNotifierRange(kvm.mm, start, Hva(start + MIB), MmuNotifierEvent.CLEAR)
    mmu_notifier_invalidate_range_start(range_)
    mmu_notifier_invalidate_range_end(range_)
    harvest(kvm)
    cpu.load(3 * PAGE)
    cpu.store(3 * PAGE, 4)
    cpu.store(4 * PAGE, 4)
    assert {3, 4} <= set(harvest(kvm))


@ALL
def test_a_page_that_goes_to_swap_stays_in_the_log(params: dict[str, int]) -> None:
    kvm = make_vm(**params)
    cpu = cpus_of(kvm)[0]
    log_on(kvm)
    for page in (3, 5):
        cpu.store(page * PAGE, page)
    harvest(kvm)
    cpu.store(3 * PAGE, 4)
    madvise_pageout(kvm.mm, hva_of(kvm, 0), 8 * PAGE)
    assert cpu.load(5 * PAGE) == 5
    assert 3 in harvest(kvm)


@ALL
def test_the_flush_at_the_start_does_not_depend_on_what_the_sptes_say(params: dict[str, int]) -> None:
    kvm = make_vm(**params)
    cpu = cpus_of(kvm)[0]
    cpu.store(5 * PAGE, 5)
    start = hva_of(kvm, 5 * PAGE)
    kvm.notifier._age(start, start + PAGE, clear=True)  # without the flush that follows
    log_on(kvm)
    cpu.store(5 * PAGE, 6)
    assert harvest(kvm) == [5]


def test_with_pml_a_store_needs_no_fault() -> None:
    kvm = make_vm(pml=1)
    cpu = cpus_of(kvm)[0]
    cpu.store(5 * PAGE, 5)
    log_on(kvm)
    assert cpu.spte(5 * PAGE) & (PT_WRITABLE | PT_DIRTY) == PT_WRITABLE
    faults = cpu.stat.pf_taken
    cpu.store(5 * PAGE, 6)
    assert cpu.stat.pf_taken == faults
    assert cpu.spte(5 * PAGE) & PT_DIRTY
    assert harvest(kvm) == [5]
    assert not cpu.spte(5 * PAGE) & PT_DIRTY


def test_with_pml_a_manual_clear_asks_the_d_bits_too() -> None:
    kvm = make_vm(pml=1)
    cpu = cpus_of(kvm)[0]
    cpu.store(5 * PAGE, 5)
    log_on(kvm)
    cpu.store(5 * PAGE, 6)
    kvm_clear_dirty_log(kvm, 0, 0, 64, b"\xff" * 8)
    assert harvest(kvm) == []
    cpu.store(5 * PAGE, 7)
    assert harvest(kvm) == [5]


def test_write_protection_for_good_looks_at_mmu_writable() -> None:
    kvm = make_vm()
    cpu = cpus_of(kvm)[0]
    cpu.store(5 * PAGE, 5)
    log_on(kvm)
    assert cpu.spte(5 * PAGE) & (PT_WRITABLE | SPTE_MMU_WRITABLE) == SPTE_MMU_WRITABLE
    kvm.mmu_lock.acquire()
    assert kvm_tdp_mmu_write_protect_gfn(kvm, kvm.memslots.slots[0], Gfn(5))
    assert not kvm_tdp_mmu_write_protect_gfn(kvm, kvm.memslots.slots[0], Gfn(5))
    assert not kvm_tdp_mmu_write_protect_gfn(kvm, kvm.memslots.slots[0], Gfn(6))
    kvm.flush_remote_tlbs()
    kvm.mmu_lock.release()
    assert not cpu.spte(5 * PAGE) & SPTE_MMU_WRITABLE
