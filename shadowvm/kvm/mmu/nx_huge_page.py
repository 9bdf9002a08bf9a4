"""NX huge pages: nothing is executed from a large spte (CVE-2018-12207; account_nx_huge_page and its kin in mmu.c).

With the knob on a large spte never has X. A fetch from one gets 4 KiB sptes in a page that is noted here; since that
costs, a worker zaps the oldest of them now and then, so that data gets its large spte back, and code is split anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from .role import ROLE_SMM_SHIFT
from .shadow import KvmMmuPage, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page, unaccount_nx_huge_page
from .spte import SPTE_MMU_PRESENT, spte_pfn
from .tdp_iter import TdpIter
from .tdp_spte import tdp_mmu_set_spte

if TYPE_CHECKING:
    from ..vm import Kvm

NX_RECOVERY_BATCH = 10
"""Pages to zap before mmu_lock is dropped, should somebody wait for it."""


def account_nx_huge_page(kvm: Kvm, sp: KvmMmuPage, nx_huge_page_possible: bool) -> None:
    """A fetch has linked `sp` in the place of a large spte; or, if not possible, of what cannot be one now anyway."""
    sp.nx_huge_page_disallowed = True
    if nx_huge_page_possible and sp.pfn not in kvm.possible_nx_huge_pages:
        kvm.possible_nx_huge_pages[sp.pfn] = sp
        kvm.stat.nx_lpage_splits += 1
        kvm.on_nx_huge_page()


def nx_huge_page_recovery_period_ms(kvm: Kvm) -> int:
    """Virtual time between two passes, 0 for no recovery (calc_nx_huge_pages_recovery_period)."""
    params = kvm.params
    if not params.nx_huge_pages or not params.nx_huge_pages_recovery_ratio:
        return 0
    hour = 60 * 60 * 1000
    return params.nx_huge_pages_recovery_period_ms or hour // min(params.nx_huge_pages_recovery_ratio, hour)


def kvm_tdp_mmu_zap_possible_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Zap a table of the TDP MMU, and flush. mmu_lock is held for write."""
    kvm.rcu.read_lock()
    for root in kvm.tdp_mmu_roots:
        walk = TdpIter(kvm, root, sp.gfn, Gfn(sp.gfn + 1), min_level=sp.level + 1)
        while walk.next():
            if walk.level > sp.level and spte_pfn(walk.old_spte) == sp.pfn and walk.old_spte & SPTE_MMU_PRESENT:
                tdp_mmu_set_spte(kvm, walk.sptep, walk.gfn, walk.level, 0)
    kvm.flush_remote_tlbs()
    kvm.rcu.read_unlock()


def kvm_recover_nx_huge_pages(kvm: Kvm) -> int:
    """One pass of the recovery worker: zap 1/ratio of the noted pages; returns how many. May sleep.

    Every flush that is owed is made before mmu_lock is dropped.
    """
    ratio = kvm.params.nx_huge_pages_recovery_ratio
    kvm.mmu_lock.acquire()
    pages = kvm.possible_nx_huge_pages
    left = -(-len(pages) // ratio) if ratio else 0
    zapped = 0
    invalid_list: list[KvmMmuPage] = []
    while left and pages:
        left -= 1
        sp = next(iter(pages.values()))
        slot = kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].find(sp.gfn)
        if slot is not None and slot.dirty_bitmap is not None:
            # It would come back as small pages all the same, until the log is turned off.
            unaccount_nx_huge_page(kvm, sp)
            continue
        zapped += 1
        if kvm.tdp_mmu_enabled:
            kvm_tdp_mmu_zap_possible_nx_huge_page(kvm, sp)
            continue
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        if len(invalid_list) == NX_RECOVERY_BATCH:
            kvm_mmu_commit_zap_page(kvm, invalid_list)
            kvm.mmu_lock.release()
            kvm.mm.host.sched.cond_resched()
            kvm.mmu_lock.acquire()
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    kvm.mmu_lock.release()
    return zapped
