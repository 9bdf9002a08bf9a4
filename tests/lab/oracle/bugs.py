"""Bugs for the oracle to find by itself, without the sanitizer: what to break and with which seed it shows."""

from __future__ import annotations

from typing import NamedTuple

from shadowvm.kvm import dirty, emulate, intercept, notifier
from shadowvm.kvm.mmu import guest_walker, page_fault, page_track, permission, role, shadow
from tests.lab.broken import Edit


class Bug(NamedTuple):
    """`edits` break shadowvm; one of the seeds from `seed` on shows it."""

    name: str
    edits: list[Edit]
    seed: int = 1


BUGS = [
    Bug("no retry check", [(page_fault._map, "is_page_fault_stale(vcpu, fault)", "False")]),
    Bug(
        "shadowed page not write-protected",
        [(page_track.account_shadowed, "rmap_write_protect(kvm, slot, sp.gfn)", "0")],
        seed=4,
    ),
    Bug(
        "rights of the upper levels forgotten", [(page_fault._child_role, "level, access, direct", "level, 7, direct")]
    ),
    Bug(
        "notifier does not flush", [(notifier.KvmMmuNotifier.invalidate_range_start, "kvm.flush_remote_tlbs()", "pass")]
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
    ),
    Bug(
        "stores to tables are not tracked",
        [(emulate._track_writes, "for offset, length in changes:", "for offset, length in ():")],
    ),
    Bug("quadrants forgotten", [(page_fault._child_role, "sptep & 1 if", "0 if")]),
    Bug("CR4.PSE is not in the role", [(role.kvm_calc_cpu_role, "1 << _CR4_PSE if cr4 & CR4_PSE else 0", "0")], 2),
    Bug("CR0.WP = 0 keeps U", [(page_fault._cr0_wp_clear_access, "& ~ACC_USER_MASK", "")]),
    Bug("D is not set by stores", [(guest_walker._finish_walk, "pferr & PFERR_WRITE and not", "False and not")]),
    Bug(
        "a clean page is writable at once",
        [(page_fault.kvm_mmu_page_fault, "protect_clean_gpte(walker)", "walker.pte_access")],
    ),
    Bug("SMEP forgotten", [(permission._rights_refuse, "vcpu.cr4 & CR4_SMEP", "0")]),
    Bug("SMAP forgotten", [(permission._rights_refuse, "vcpu.cr4 & CR4_SMAP", "0")]),
    Bug("no I bit in the error code", [(guest_walker._walk_error, "error_code |= PFERR_FETCH", "pass")]),
    Bug(
        "reserved bits of large pages pass",
        [(guest_walker._walk_addr64, "if pte & vcpu.rsvd_large[level]:", "if False:")],
    ),
    Bug("PAE pointers are not reloaded", [(intercept._load_pdptrs, "register == 3 or", "False or")]),
    Bug(
        "the dirty log is not protected again",
        [(dirty.kvm_get_dirty_log, "kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, dirty)", "pass")],
    ),
    Bug(
        "an emulated store is not dirty",
        [(emulate._track_writes, "kvm_vcpu_mark_page_dirty(vcpu, window.gfn)", "pass")],
    ),
    Bug("a zapped page keeps its parents", [(shadow.kvm_mmu_prepare_zap_page, "mmu_spte_clear(kvm, sptep)", "pass")]),
]
