"""Bugs for the oracle to find by itself, without the sanitizer: what to break and with which seed it shows."""

from __future__ import annotations

from typing import NamedTuple

from shadowvm.kvm import dirty, dirty_ring_reset, emulate, intercept, notifier
from shadowvm.kvm import memslot as slots
from shadowvm.kvm.mmu import (
    access_track,
    direct_page_fault,
    fast_page_fault,
    guest_walker,
    lpage,
    page_fault,
    page_track,
    permission,
    role,
    shadow,
    split,
    sync,
    tdp_dirty,
)
from tests.lab.broken import Edit


class Bug(NamedTuple):
    """`edits` break shadowvm; random operations of this seed show it, on machines that are drawn."""

    name: str
    edits: list[Edit]
    seed: int = 1
    mmu: str = "shadow"
    smp: int = 1


BUGS = [
    Bug("no retry check", [(page_fault._map, "is_page_fault_stale(vcpu, fault)", "False")], seed=37),
    Bug(
        "shadowed page not write-protected",
        [(page_track.account_shadowed, "rmap_write_protect(kvm, slot, sp.gfn)", "0")],
        seed=7,
    ),
    Bug(
        "rights of the upper levels forgotten",
        [(page_fault._child_role, "level, access, direct", "level, 7, direct")],
        seed=2,
    ),
    Bug(
        "notifier does not flush",
        [(notifier.KvmMmuNotifier.invalidate_range_start, "kvm.flush_remote_tlbs()", "pass")],
        seed=8,
    ),
    Bug(
        "notifier does not zap",
        [
            (
                notifier.KvmMmuNotifier.invalidate_range_start,
                "if kvm_unmap_gfn_range(kvm, slot, first, last, may_yield=range_.blockable):",
                "if False:",
            )
        ],
        seed=8,
    ),
    Bug(
        "stores to tables are not tracked",
        [(emulate._track_writes, "for offset, length in changes:", "for offset, length in ():")],
        seed=2,
    ),
    Bug("quadrants forgotten", [(page_fault._child_role, "sptep & 1 if", "0 if")], seed=5),
    Bug(
        "CR4.PSE is not in the role", [(role.kvm_calc_cpu_role, "1 << _CR4_PSE if cr4 & CR4_PSE else 0", "0")], seed=31
    ),
    Bug("CR0.WP = 0 keeps U", [(page_fault._cr0_wp_clear_access, "& ~ACC_USER_MASK", "")], seed=65),
    Bug(
        "D is not set by stores", [(guest_walker._finish_walk, "pferr & PFERR_WRITE and not", "False and not")], seed=4
    ),
    Bug(
        "a clean page is writable at once",
        [(page_fault.kvm_mmu_page_fault, "protect_clean_gpte(walker)", "walker.pte_access")],
        seed=3,
    ),
    Bug("SMEP forgotten", [(permission._rights_refuse, "vcpu.cr4 & CR4_SMEP", "0")], seed=5),
    Bug("SMAP forgotten", [(permission._rights_refuse, "vcpu.cr4 & CR4_SMAP", "0")], seed=3),
    Bug("no I bit in the error code", [(guest_walker._walk_error, "error_code |= PFERR_FETCH", "pass")], seed=4),
    Bug(
        "reserved bits of large pages pass",
        [(guest_walker._walk_addr64, "if pte & vcpu.rsvd_large[level]:", "if False:")],
        seed=2,
    ),
    Bug("PAE pointers are not reloaded", [(intercept._load_pdptrs, "register == 3 or", "False or")], seed=12),
    Bug(
        "the dirty log is not protected again",
        [(dirty.kvm_get_dirty_log, "kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, dirty)", "pass")],
        seed=19,
    ),
    Bug(
        "an emulated store is not dirty",
        [(emulate._track_writes, "kvm_vcpu_mark_page_dirty(vcpu, window.gfn)", "pass")],
        seed=6,
    ),
    Bug(
        "a zapped page keeps its parents",
        [(shadow.kvm_mmu_prepare_zap_page, "mmu_spte_clear(kvm, sptep)", "pass")],
        seed=4,
    ),
    Bug(
        "an entry that has changed since the walk is shadowed",
        [(page_fault.gpte_changed, "if level == NONPAGING_LEVEL:", "if True:")],
        smp=2,
        seed=4,
    ),
    Bug("CR0.WP is not in the role", [(role.kvm_calc_cpu_role, "role | 1 << _CR0_WP", "role")], seed=11),
    Bug("a new root is not synced", [(sync.kvm_mmu_sync_roots, "page.unsync_children:", "False:")], seed=6),
    Bug("INVLPG does not sync", [(sync.kvm_mmu_invlpg, "_invalidate_addr(vcpu, root, gva)", "False")], seed=17),
    Bug(
        "what is linked is not synced before",
        [(page_fault.fetch, "child.unsync_children and not mmu_sync_children(vcpu, child)", "False")],
        seed=6,
    ),
    Bug(
        "no retry check in the TDP MMU",
        [(direct_page_fault._map_by_tdp_mmu, "is_page_fault_stale(vcpu, fault)", "False")],
        mmu="tdp",
        seed=17,
    ),
    Bug(
        "no retry check for direct pages",
        [(direct_page_fault._map_by_shadow_pages, "is_page_fault_stale(vcpu, fault)", "False")],
        mmu="tdp",
        seed=26,
    ),
    Bug(
        "a cleared log does not protect",
        [(dirty.kvm_clear_dirty_log, "kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, cleared)", "pass")],
    ),
    Bug("a log that is full at first is empty", [(dirty.kvm_alloc_dirty_bitmap, "if full", "if False")], seed=14),
    Bug(
        "a reset ring does not protect",
        [
            (
                dirty_ring_reset._kvm_reset_dirty_gfn,
                "kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, gfns)",
                "pass",
            )
        ],
        mmu="tdp",
        seed=2,
    ),
    Bug(
        "a reset ring does not flush", [(dirty_ring_reset.reset_dirty_rings, "kvm.flush_remote_tlbs()", "pass")], seed=2
    ),
    Bug(
        "the log by D bits is not read",
        [(tdp_dirty.kvm_arch_sync_dirty_log, "if not kvm.pml or", "if True or")],
        mmu="tdp",
    ),
    Bug(
        "a fast fault is not dirty",
        [(fast_page_fault._fix_direct_spte, "fault.slot.dirty_bitmap.add(fault.gfn)", "pass")],
        mmu="tdp",
        seed=4,
    ),
    Bug(
        "ROM is writable",
        [(slots.MemSlot.__init__, "0 if flags & KVM_MEM_READONLY else PT_WRITABLE", "PT_WRITABLE")],
        seed=5,
    ),
    Bug("SMM is not in the role", [(role.kvm_calc_tdp_mmu_root_page_role, "smm << _SMM", "0")], mmu="tdp", seed=4),
    Bug(
        "a large spte covers page tables",
        [(lpage.is_lpage_disallowed, " or gfn >> 9 in slot.disallow_lpage", "")],
        seed=38,
    ),
    Bug(
        "the notifier leaves large sptes",
        [(notifier.kvm_unmap_gfn_range, "if slot.rmap_large:", "if False:")],
        seed=8,
    ),
    Bug(
        "a split maps one page everywhere",
        [(split._shadow_mmu_split_huge_page, "(i << PAGE_SHIFT)", "0")],
        seed=18,
    ),
    Bug(
        "a fetch gets a large leaf in spite of nx_huge_pages",
        [
            (
                lpage.kvm_mmu_hugepage_adjust,
                "fault.error_code & PFERR_FETCH != 0 and kvm.params.nx_huge_pages != 0",
                "False",
            )
        ],
        mmu="tdp",
        seed=8,
    ),
    Bug(
        "recovery of NX huge pages does not flush",
        [(shadow.kvm_mmu_commit_zap_page, "kvm.flush_remote_tlbs()", "pass")],
        seed=4,
    ),
    Bug(
        "a store to an aged page is not dirty",
        [
            (
                fast_page_fault._fix_direct_spte,
                "if new & ~old & PT_WRITABLE and",
                "if new & ~old & PT_WRITABLE and not is_access_track_spte(old) and",
            )
        ],
        mmu="tdp",
        seed=2,
    ),
    Bug(
        "an aged spte comes back without U",
        [(access_track.restore_acc_track_spte, "spte >> SAVED_SHIFT & _SAVED", "1")],
        mmu="tdp",
        seed=2,
    ),
]
