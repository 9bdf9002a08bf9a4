"""Bugs of slot changes: what refers to a slot that is gone."""

from __future__ import annotations

from ...events import kvm_faultin_pfn
from ...kvm import memory_region
from ...kvm.mmu import page_fault
from ...machine import Machine
from . import host
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit, Swap
from .scenario import Meanwhile, Scenario

OTHER = PAGE + (2 << 20)
"""A page whose fault builds a shadow page."""

MOVED = Scenario(
    Code().store(host.EXTRA, 7).host(0).expect(host.ELSEWHERE, 7).exit(),
    prepare=host.add_slot,
    actions=(host.move_slot,),
)


def _is_first(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == PAGE >> 12


def _is_second(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == OTHER >> 12


ZAPPED_DURING_FAULT = Scenario(
    Code().store(host.EXTRA, 7).store(PAGE, 7).store(OTHER, 8).expect(OTHER, 8).exit(),
    prepare=host.add_slot,
    actors=(
        Meanwhile(kvm_faultin_pfn, host.delete_slot, when=_is_first),
        Meanwhile(kvm_faultin_pfn, lambda machine: None, when=_is_second),
    ),
)
"""A slot is deleted. That waits for the first fault, and zaps everything in the middle of the second."""

MUTATIONS = (
    Mutation(
        "move-without-invalid-step",
        "CVE-2013-4592",
        "a slot moves and is not made invalid first: translations of its old place survive",
        ("I34",),
        (
            Edit(
                memory_region._kvm_set_memslot,
                "change in (KvmMrChange.DELETE, KvmMrChange.MOVE)",
                "change is KvmMrChange.DELETE",
            ),
        ),
        MOVED,
    ),
    Mutation(
        "delete-without-zap",
        "",
        "a slot is deleted and nothing that maps it is zapped",
        ("I34",),
        (Edit(memory_region._invalidate_memslot, "    kvm_arch_flush_shadow_memslot(kvm, invalid)\n", ""),),
        Scenario(
            Code().store(host.EXTRA, 7).host(0).store(PAGE, 7).exit(),
            prepare=host.add_slot,
            actions=(host.delete_slot,),
        ),
    ),
    Mutation(
        "install-in-zapped-root",
        "a955cad84cda",
        "a fault does not look at its root again under mmu_lock, and installs into a tree that was zapped",
        ("I34",),
        (
            Swap(
                page_fault.is_page_fault_stale,
                lambda vcpu, fault: page_fault.mmu_invalidate_retry_gfn(vcpu.kvm, fault.mmu_seq, fault.gfn),
            ),
        ),
        ZAPPED_DURING_FAULT,
    ),
)
