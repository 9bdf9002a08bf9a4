"""KVM_PRE_FAULT_MEMORY: what is mapped before the guest asks, and how far it gets; MMIO sptes in nested tables."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from shadowvm.addr import PAGE_SIZE, Gfn, Gpa, Hva
from shadowvm.config import MIB
from shadowvm.errors import KvmError
from shadowvm.events import Tracepoint, attached, kvm_mmu_seq_sample
from shadowvm.kvm.memslot import KVM_MEMSLOT_INVALID
from shadowvm.kvm.mmu.mmio_spte import get_mmio_spte_gfn, is_mmio_spte
from shadowvm.kvm.pre_fault import kvm_vcpu_pre_fault_memory
from shadowvm.mm.mm_struct import mmap
from shadowvm.mm.mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm
from tests.kvm.test_memory_region import machine_for
from tests.tiny import EXIT

MODES = pytest.mark.parametrize("tdp_mmu", [1, 0])


def on_host(kvm: Any, act: Any) -> Any:
    """Run a task of the VMM and give what it returns or raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(act())
        except KvmError as error:
            results.append(error)

    kvm.mm.host.sched.spawn("vmm", run)
    kvm.mm.host.sched.run()
    return results[0]


@MODES
def test_what_was_mapped_beforehand_does_not_fault(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    assert on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpu, Gpa(0x10000), 16 * PAGE_SIZE)) == 16 * PAGE_SIZE
    faults = cpu.stat.pf_taken
    assert faults == 16
    on_host(kvm, lambda: [cpu.load(0x10000 + n * PAGE_SIZE) for n in range(16)])
    assert cpu.stat.pf_taken == faults
    assert kvm.stat.pages_4k == 16


@MODES
def test_it_goes_as_far_as_there_is_memory(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    assert on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpu, Gpa(4 * MIB - 0x3000), 0x10000)) == 0x3000
    refused = on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpu, Gpa(4 * MIB), 0x1000))
    assert refused.errno == errno.ENOENT


@MODES
def test_whoever_holds_it_off_comes_on_meanwhile(tdp_mmu: int) -> None:
    """The page is being invalidated by a task that has given way."""
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    start = hva_of(kvm, 0x10000)

    def invalidate() -> None:
        range_ = MmuNotifierRange(kvm.mm, start, Hva(start + PAGE_SIZE), MmuNotifierEvent.CLEAR)
        mmu_notifier_invalidate_range_start(range_)
        kvm.mm.host.sched.preempt()
        mmu_notifier_invalidate_range_end(range_)

    def give_up(_tracepoint: Tracepoint, _args: tuple[Any, ...]) -> None:
        assert cpu.stat.pf_taken < 100, "it never lets go of the CPU"

    kvm.mm.host.sched.spawn("invalidate", invalidate)
    with attached(give_up, (kvm_mmu_seq_sample,)):
        assert on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpu, Gpa(0x10000), PAGE_SIZE)) == PAGE_SIZE
    assert cpu.stat.pf_taken == 2


def test_a_slot_that_is_going_is_asked_for_again_later() -> None:
    kvm = make_vm()
    slot = kvm.memslots.slots[0]
    slot.flags |= KVM_MEMSLOT_INVALID
    refused = on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpus_of(kvm)[0], Gpa(0), 0x1000))
    assert refused.errno == errno.EAGAIN


@pytest.mark.parametrize(
    ("gpa", "size", "flags"), [(1, 0x1000, 0), (0, 0x800, 0), (0, 0, 0), (-4096, 4096, 0), (0, 4096, 1)]
)
def test_what_is_no_range_of_pages_is_einval(gpa: int, size: int, flags: int) -> None:
    kvm = make_vm()
    refused = on_host(kvm, lambda: kvm_vcpu_pre_fault_memory(cpus_of(kvm)[0], Gpa(gpa), size, flags))
    assert refused.errno == errno.EINVAL


def test_shadow_paging_has_no_tables_by_gpa(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, EXIT)
    with pytest.raises(KvmError) as refused:
        kvm_vcpu_pre_fault_memory(machine.vcpu, Gpa(0), PAGE_SIZE)
    assert refused.value.errno == errno.EOPNOTSUPP
    machine.close()


@MODES
def test_no_memory_leaves_an_mmio_spte_until_there_is_some(tdp_mmu: int) -> None:
    kvm = make_vm(tdp_mmu=tdp_mmu)
    cpu = cpus_of(kvm)[0]
    gpa = 16 * MIB
    on_host(kvm, cpu.enter)
    with pytest.raises(IndexError):
        cpu.load(gpa)
    assert cpu.stat.pf_mmio_spte_created == 1
    sptes = [spte for sp in kvm.sp_by_pfn.values() if sp.level == 1 for spte in kvm.q[sp.q : sp.q + 512] if spte]
    assert [get_mmio_spte_gfn(spte) for spte in sptes if is_mmio_spte(spte)] == [Gfn(gpa >> 12)]
    assert kvm.stat.pages_4k == 0
    on_host(kvm, lambda: kvm.set_user_memory_region(1, Gpa(gpa), PAGE_SIZE, mmap(kvm.mm, PAGE_SIZE)))
    on_host(kvm, lambda: cpu.store(gpa, 7))
    assert on_host(kvm, lambda: cpu.load(gpa)) == 7
