"""Bugs of two-dimensional tables that go while somebody else is in them: several roots, frozen entries, NX recovery."""

from __future__ import annotations

from typing import Any

from ...events import kvm_flush_remote_tlbs, lock_release, spte_cmpxchg
from ...kvm.mmu import nx_huge_page, tdp_mmu, tdp_spte
from ...kvm.mmu.nx_huge_page import kvm_recover_nx_huge_pages
from ...kvm.mmu.root import kvm_mmu_load
from ...kvm.mmu.spte import FROZEN_SPTE
from ...kvm.pre_fault import kvm_vcpu_pre_fault_memory
from ...machine import Machine
from ...mm.mm_struct import madvise_dontneed
from ...params import KvmParams
from . import host, lpage
from .guest import PAGE, RET, Code
from .host import EXTRA
from .mutation import Mutation
from .patch import Edit
from .scenario import Meanwhile, Scenario

CONFIG: dict[str, Any] = {**lpage.CONFIG, "mmu": "tdp", "smp": 2}
PAGES = 4


def _second_root_and_drop(machine: Machine) -> None:
    """The other vCPU loads a root, a new one; then pages go of which only the old one has leaves."""
    kvm_mmu_load(machine.vcpus[1])
    madvise_dontneed(machine.mm, host.hva_of(machine, PAGE), PAGES << 12)


def _has_invalid_root(machine: Machine, lock: object) -> bool:
    kvm = machine.kvm
    return lock is kvm.mmu_lock and any(root.scheduled_to_zap for root in kvm.tdp_mmu_roots)


TWO_ROOTS = Scenario(
    Code().store(EXTRA, 7).fill(PAGE, PAGES).host(0).expect(PAGE, 0).exit(),
    config={"mmu": "tdp", "smp": 2},
    prepare=host.add_slot,
    actions=(host.delete_slot,),
    actors=(Meanwhile(lock_release, _second_root_and_drop, when=_has_invalid_root),),
)
"""An invalid root has leaves that are to go, the valid one behind it has none."""


def _recover(machine: Machine) -> None:
    """A pass of kvm-nx-lpage-recovery."""
    kvm_recover_nx_huge_pages(machine.kvm)


SPLIT_BY_FETCH = Scenario(
    Code().store(EXTRA, RET).call(EXTRA).host(0).store(EXTRA + 8, 7).exit(),
    config={**CONFIG, "smp": 1, "kvm_params": KvmParams(nx_huge_pages=1)},
    prepare=lpage.add_slot,
    actions=(_recover,),
)
"""Code is executed in a large page, which falls into small ones for it, until the worker comes by."""


def _pre_fault(machine: Machine) -> None:
    """Another vCPU's thread asks for the page, as a load would."""
    kvm_vcpu_pre_fault_memory(machine.vcpus[1], EXTRA, 1 << 12)


def _sets_leaf(machine: Machine, sptep: int, old: int, new: int) -> bool:
    vcpu = machine.vcpus[0]
    return vcpu.fault.huge_page_disallowed and vcpu.fault.gfn == EXTRA >> 12 and old == 0


FETCHED_WHILE_LARGE = Scenario(
    Code().store(EXTRA + 0x1000, 1).store(EXTRA, RET).host(0).call(EXTRA).call(EXTRA).exit(),
    config={**CONFIG, "kvm_params": KvmParams(nx_huge_pages=1)},
    prepare=lpage.add_slot_of_small_pages,
    actions=(lpage.collapse,),
    actors=(Meanwhile(spte_cmpxchg, _pre_fault, when=_sets_leaf),),
)
"""A fetch is about to set a small leaf when another vCPU zaps the table, for a large one in its place."""


def _collapse(machine: Machine) -> None:
    """The other vCPU has a root, and khugepaged comes by."""
    kvm_mmu_load(machine.vcpus[1])
    lpage.collapse(machine)


def _is_frozen(machine: Machine, vcpus: int) -> bool:
    kvm = machine.kvm
    return any(FROZEN_SPTE in kvm.q[sp.q : sp.q + 512] for sp in kvm.sp_by_pfn.values() if sp.level == 2)


FAULT_MEETS_FROZEN = Scenario(
    Code().store(EXTRA, 1).host(0).store(EXTRA, 2).expect(EXTRA, 2).exit(),
    config=CONFIG,
    prepare=lpage.add_slot_of_small_pages,
    actions=(_collapse,),
    actors=(Meanwhile(kvm_flush_remote_tlbs, _pre_fault, when=_is_frozen, pause=lock_release),),
)
"""Another vCPU needs an entry while a table is being replaced there by a large leaf."""

MUTATIONS = (
    Mutation(
        "tdp-flush-forgotten-at-next-root",
        "a835429cda91",
        "a notifier forgets that it owes a flush for one root when it goes on to the next",
        ("I16", "I3"),
        (Edit(tdp_mmu.kvm_tdp_mmu_unmap_gfn_range, "flush=flush)", "flush=False)"),),
        TWO_ROOTS,
    ),
    Mutation(
        "nx-recovery-without-flush",
        "048f49809c52",
        "the worker of NX huge pages zaps a table and flushes nothing",
        ("I18", "I16"),
        (Edit(nx_huge_page.kvm_tdp_mmu_zap_possible_nx_huge_page, "kvm.flush_remote_tlbs()", "pass"),),
        SPLIT_BY_FETCH,
    ),
    Mutation(
        "tdp-removed-table-not-frozen",
        "",
        "entries of a table that goes are not frozen where they are empty: a fault that is in it maps a page there",
        ("I34", "I35"),
        (Edit(tdp_spte._handle_removed_pt, "not shared and not old", "not old"),),
        FETCHED_WHILE_LARGE,
    ),
    Mutation(
        "tdp-frozen-entry-overwritten",
        "",
        "a fault sets a leaf in an entry that somebody has frozen, who then takes it away without a flush",
        ("I16", "I20", "I3"),
        (Edit(tdp_mmu.kvm_tdp_mmu_map, "spte == FROZEN_SPTE", "False"),),
        FAULT_MEETS_FROZEN,
    ),
)
