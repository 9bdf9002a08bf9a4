"""Bugs of the TDP MMU: roots, tables, exchanges, its ageing and its log. All runs have two-dimensional paging."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...addr import PAGE_SIZE
from ...events import kvm_faultin_pfn, kvm_tdp_mmu_spte_changed, lock_release, spte_cmpxchg
from ...kvm import dirty
from ...kvm.mmu import (
    access_track,
    direct_page_fault,
    fast_page_fault,
    page_fault,
    tdp_age,
    tdp_dirty,
    tdp_mmu,
    tdp_spte,
    zap_all,
)
from ...kvm.mmu.spte import SPTE_MMU_PRESENT
from ...machine import Machine
from ...mm.mm_struct import madvise_dontneed
from ...params import KvmParams
from ...x86 import PT_WRITABLE
from . import ageing, host
from . import dirty as shadow_dirty
from . import notifier as shadow_notifier
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit, Swap
from .scenario import Meanwhile, Scenario


def _nested(scenario: Scenario, **params: int) -> Scenario:
    """The same run with two-dimensional paging."""
    return replace(scenario, config={**scenario.config, "mmu": "tdp", "kvm_params": KvmParams(**params)})


PAGED_OUT = _nested(shadow_notifier.PAGED_OUT)
LOGGED = _nested(shadow_dirty.LOGGED)
LOGGED_PML = _nested(shadow_dirty.LOGGED, pml=1)
PAGES = 600
"""More than one table maps."""


def _drop_all(machine: Machine) -> None:
    """MADV_DONTNEED of all pages from PAGE on."""
    start = host.hva_of(machine, PAGE)
    madvise_dontneed(machine.mm, start, PAGES * PAGE_SIZE)


def _wait_for_mmu_lock(machine: Machine) -> None:
    machine.kvm.mmu_lock.acquire()
    machine.kvm.mmu_lock.release()


def _is_zap_halfway(machine: Machine, as_id: int, gfn: int, level: int, old: int, new: int) -> bool:
    return gfn == (PAGE >> 12) + PAGES // 2 and not new


LONG_ZAP = _nested(
    Scenario(
        Code().fill(PAGE, PAGES).host(0).expect(PAGE, 0).exit(),
        config={"memory": 16 << 20, "host_memory": 8 << 20},
        actions=(_drop_all,),
        actors=(Meanwhile(kvm_tdp_mmu_spte_changed, _wait_for_mmu_lock, when=_is_zap_halfway),),
    )
)
"""Somebody waits for mmu_lock while many pages are zapped."""


def _has_invalid_root(machine: Machine, lock: object) -> bool:
    kvm = machine.kvm
    return lock is kvm.mmu_lock and any(root.scheduled_to_zap for root in kvm.tdp_mmu_roots)


NOTIFIED_DURING_ZAP = _nested(
    Scenario(
        Code().store(host.EXTRA, 7).store(PAGE, 7).host(0).expect(PAGE, 7).exit(),
        prepare=host.add_slot,
        actions=(host.delete_slot,),
        actors=(Meanwhile(lock_release, partial(host.page_out, gpa=PAGE), when=_has_invalid_root),),
    )
)
"""A page goes out between the moment at which its root becomes invalid and the root's zap."""

SLOT_DELETED = _nested(
    Scenario(
        Code().store(host.EXTRA, 7).store(PAGE, 7).host(0).expect(PAGE, 7).exit(),
        prepare=host.add_slot,
        actions=(host.delete_slot,),
    )
)


def _zap_all(machine: Machine) -> None:
    """What a change of memory slots does to the roots."""
    machine.kvm.slots_lock.acquire()
    zap_all.kvm_mmu_zap_all_fast(machine.kvm)
    machine.kvm.slots_lock.release()


def _is_page(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == PAGE >> 12


ZAPPED_DURING_FAULT = _nested(
    Scenario(
        Code().store(PAGE, 7).expect(PAGE, 7).exit(),
        actors=(Meanwhile(kvm_faultin_pfn, _zap_all, when=_is_page),),
    )
)


def _gives_w_back(machine: Machine, sptep: int, old: int, new: int) -> bool:
    return bool(old & SPTE_MMU_PRESENT and new & ~old & PT_WRITABLE)


FAST_FAULT_RACED = _nested(
    Scenario(
        Code().store(PAGE, 1).host(0).store(PAGE, 2).expect(PAGE, 2).exit(),
        actions=(shadow_dirty.LOG,),
        actors=(Meanwhile(spte_cmpxchg, partial(host.page_out, gpa=PAGE), when=_gives_w_back),),
    )
)
"""The page goes out while a fault gives W back to its spte, without a lock."""

HARVEST_AFTER_PAGEOUT = _nested(
    Scenario(
        Code().store(PAGE, 1).host(0).host(1).store(PAGE, 2).host(2).host(1).exit(),
        actions=(shadow_dirty.LOG, shadow_dirty.HARVEST, partial(host.page_out, gpa=PAGE)),
    ),
    pml=1,
)


def _age(machine: Machine) -> None:
    """What reclaim does to find out whether a page is in use."""
    start = host.hva_of(machine, PAGE)
    machine.kvm.notifier.clear_flush_young(machine.mm, start, start + PAGE_SIZE)


TRACKED = _nested(
    Scenario(Code().store(PAGE, 7).host(0).expect(PAGE, 7).store(PAGE, 8).expect(PAGE, 8).exit(), actions=(_age,)),
    eptad=0,
    fast_page_fault=0,
)
"""A page whose accesses are tracked by faults is aged, and used again."""


TRACKED_READ_ONLY = _nested(Scenario(Code().load(PAGE).host(0).load(PAGE).exit(), actions=(_age,)), eptad=0)
"""As TRACKED, with the zero page, which nobody may write."""


def _store_far_apart() -> Code:
    """Stores so far from each other that each needs a table of its own."""
    code = Code()
    for number in range(70):
        code.store(PAGE + (number << 21), number)
    return code.exit()


RECYCLED = _nested(Scenario(_store_far_apart(), config={"memory": 160 << 20}), tdp_mmu=0, nr_mmu_pages=64)
"""More direct shadow pages than there may be."""

MUTATIONS = (
    Mutation(
        "tdp-yield-without-flush",
        "a835429cda91",
        "a zap that lets others have mmu_lock forgets that it owes a flush for what it has zapped so far",
        ("I16",),
        (Edit(tdp_mmu.tdp_mmu_iter_cond_resched, "        kvm.flush_remote_tlbs()\n", "        pass\n"),),
        LONG_ZAP,
    ),
    Mutation(
        "tdp-zap-valid-roots-only",
        "d62007edf01f",
        "a notifier passes by roots that are invalid, whose leaves then outlive their pages",
        ("I3", "I4"),
        (Edit(tdp_mmu.tdp_mmu_roots, "if root.role", "if not root.invalid and root.role"),),
        NOTIFIED_DURING_ZAP,
    ),
    Mutation(
        "tdp-install-in-zapped-root",
        "a955cad84cda",
        "a fault does not look at its root again under mmu_lock, and installs into a root that was emptied",
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
        "tdp-no-retry",
        "",
        "a fault installs the page that it looked up, whatever was invalidated meanwhile",
        ("I23", "I10"),
        (Edit(direct_page_fault._map_by_tdp_mmu, "is_page_fault_stale(vcpu, fault)", "False"),),
        _nested(shadow_notifier.RACED),
    ),
    Mutation(
        "tdp-zap-without-flush",
        "",
        "a leaf is zapped and nobody is told that a flush is owed",
        ("I16",),
        (Edit(tdp_mmu.tdp_mmu_zap_leafs, "return True", "return flush"),),
        PAGED_OUT,
    ),
    Mutation(
        "tdp-wrong-gfn",
        "",
        "a page is mapped at the gpa beside its own",
        ("I23",),
        (Edit(tdp_mmu.kvm_tdp_mmu_map, "gfn = fault.gfn", "gfn = fault.gfn ^ 1"),),
        PAGED_OUT,
    ),
    Mutation(
        "tdp-leaf-changes-pfn",
        "",
        "a present leaf gets another frame, which TLBs do not know of",
        ("I19",),
        (Edit(tdp_mmu._map_target_level, "pfn = fault.page.pfn", "pfn = fault.page.pfn ^ bool(old)"),),
        TRACKED,
    ),
    Mutation(
        "recycle-under-read-lock",
        "47b0c2e4c220",
        "a fault that recycles shadow pages holds mmu_lock for read only",
        ("LOCKDEP",),
        (
            Edit(direct_page_fault._map_by_shadow_pages, "lock.acquire()", "lock.acquire_read()"),
            Edit(direct_page_fault._map_by_shadow_pages, "lock.release()", "lock.release_read()"),
        ),
        RECYCLED,
    ),
    Mutation(
        "tdp-publish-before-accounting",
        "Z48",
        "a table is linked before it is counted: a task that unlinks it at once finds it in no book",
        ("I35",),
        (
            Edit(tdp_spte.tdp_mmu_link_sp, "    kvm.tdp_mmu_pages += 1\n", ""),
            Edit(
                tdp_spte.tdp_mmu_link_sp, "        return True", "        kvm.tdp_mmu_pages += 1\n        return True"
            ),
        ),
        PAGED_OUT,
    ),
    Mutation(
        "tdp-free-table-under-reader",
        "",
        "an unlinked table is freed at once, though others may stand in it",
        ("I18",),
        (
            Edit(
                tdp_spte._handle_removed_pt,
                "kvm.rcu.call_rcu(lambda: tdp_mmu_free_sp(kvm, sp))",
                "tdp_mmu_free_sp(kvm, sp)",
            ),
        ),
        SLOT_DELETED,
    ),
    Mutation(
        "fast-fault-without-compare",
        "",
        "a fast fault stores its entry over whatever stands there by then",
        ("I35",),
        (Edit(fast_page_fault._fix_direct_spte, "kvm.q[sptep] != old", "False"),),
        FAST_FAULT_RACED,
    ),
    Mutation(
        "fast-fault-not-logged",
        "",
        "a fast fault gives W back to a page of a dirty log, which does not hear of it",
        ("I17", "I30"),
        (Edit(fast_page_fault._fix_direct_spte, "fault.slot.dirty_bitmap.add(fault.gfn)", "pass"),),
        LOGGED,
    ),
    Mutation(
        "tdp-enable-log-no-flush",
        "b64d740ea7dd",
        "a log is turned on and no TLB is flushed, as no leaf of the slot had W",
        ("I31", "I17"),
        (Edit(dirty.kvm_mmu_slot_apply_flags, "    kvm.flush_remote_tlbs()", "    pass"),),
        _nested(shadow_dirty.LOGGED, eptad=0),
    ),
    Mutation(
        "tdp-clear-log-keeps-w",
        "",
        "a harvest clears the bitmap and takes nothing from the leaves",
        ("I17",),
        (Edit(tdp_dirty.kvm_tdp_mmu_clear_dirty_pt_masked, "if spte & mask:", "if False:"),),
        LOGGED,
    ),
    Mutation(
        "pml-harvest-without-d-bits",
        "",
        "a harvest does not ask for what the CPU has noted",
        ("I30",),
        (Edit(tdp_dirty.kvm_arch_sync_dirty_log, "slot.dirty_bitmap.add(walk.gfn)", "pass"),),
        LOGGED_PML,
    ),
    Mutation(
        "pml-zap-drops-d-bit",
        "",
        "a leaf that the CPU has marked dirty is zapped, and the log does not hear of it",
        ("I30",),
        (Edit(tdp_spte.handle_changed_spte, "_log_dirty(kvm, sptep, gfn)", "pass"),),
        HARVEST_AFTER_PAGEOUT,
    ),
    Mutation(
        "tdp-age-not-young",
        "6316e1c8c6af",
        "the TDP MMU says that no page was used, and the host swaps out what the guest works on",
        ("I8",),
        (Edit(tdp_age.kvm_tdp_mmu_age_gfn_range, "return young", "return False"),),
        _nested(ageing.SCANNED),
    ),
    Mutation(
        "access-track-restores-w",
        "",
        "an aged leaf gets W back, whether or not it may have it",
        ("I24", "I23"),
        (Edit(access_track.restore_acc_track_spte, "| PT_ACCESSED", "| PT_ACCESSED | PT_WRITABLE"),),
        TRACKED_READ_ONLY,
    ),
)
