"""Bugs of slot changes: what refers to a slot that is gone."""

from __future__ import annotations

from ...events import kvm_faultin_pfn
from ...kvm import memory_region
from ...kvm.mmu import mmio_fault, page_fault, zap_memslot
from ...machine import Machine
from ...params import KvmParams
from . import host
from .guest import DATA, KERNEL, PAGE, PAGE_PDE, Code
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

TABLE_IN_SLOT = Scenario(
    Code().store(host.EXTRA, PAGE | DATA).store(PAGE_PDE, host.EXTRA | KERNEL).reload_cr3().load(PAGE).host(0).exit(),
    prepare=host.add_slot,
    actions=(host.delete_slot,),
    config={"kvm_params": KvmParams(slot_zap_all=0)},
)
"""A page table of the guest is in the slot that goes; a frame that it maps is not."""

MEMORY_WHERE_NONE_WAS = Scenario(
    Code().load(host.EXTRA).load(host.EXTRA).host(0).store(host.EXTRA, 7).expect(host.EXTRA, 7).exit(),
    actions=(host.add_slot,),
)


def _is_extra(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == host.EXTRA >> 12


DELETED_DURING_FAULT = Scenario(
    Code().store(PAGE, 1).load(host.EXTRA).exit(),
    config={"kvm_params": KvmParams(slot_zap_all=0)},
    prepare=host.add_slot,
    actors=(Meanwhile(kvm_faultin_pfn, host.delete_slot, when=_is_extra),),
)
"""A fault has looked its slot and page up, and goes on when the slot has gone."""

DELETED_ALONE = Scenario(
    Code().store(host.EXTRA, 7).host(0).exit(),
    config={"kvm_params": KvmParams(slot_zap_all=0), "mmu": "tdp"},
    prepare=host.add_slot,
    actions=(host.delete_slot,),
)

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
        "only-leaves-of-slot-zapped",
        "4e103134b862",
        "a slot is deleted and its frames are unmapped, but shadow pages of the page tables in it stay",
        ("I34",),
        (
            Edit(
                zap_memslot._kvm_mmu_zap_memslot,
                "            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)\n",
                "            pass\n",
            ),
        ),
        TABLE_IN_SLOT,
    ),
    Mutation(
        "mmio-generation-ignored",
        "",
        "an spte that says that no memory is there is believed after a slot was put there",
        ("I32",),
        (Swap(mmio_fault.check_mmio_spte, lambda vcpu, spte: True),),
        MEMORY_WHERE_NONE_WAS,
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
    Mutation(
        "slot-gone-while-in-use",
        "",
        "an update of the slots neither waits for vCPUs that have looked the old ones up, nor tells them",
        ("I34",),
        (
            Edit(memory_region._swap_active_memslots, "    kvm.synchronize_srcu()\n", ""),
            Edit(memory_region._swap_active_memslots, "    kvm.request_free_obsolete_roots()\n", ""),
        ),
        DELETED_DURING_FAULT,
    ),
    Mutation(
        "slot-zap-without-flush",
        "",
        "a slot goes, of which only leaf sptes are zapped, and TLBs keep them",
        ("I16", "I34"),
        (Edit(zap_memslot._kvm_mmu_zap_memslot, "        kvm.flush_remote_tlbs()\n", "        pass\n"),),
        DELETED_ALONE,
    ),
)
