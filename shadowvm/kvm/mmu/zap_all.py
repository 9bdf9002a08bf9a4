"""Zapping every shadow page: by generation while vCPUs go on, or all at once when the VM ends (mmu.c).

A page belongs to the generation it was made in. kvm_mmu_zap_all_fast() begins the next one: from then on no fault finds
or uses a page of the former (is_obsolete_sp), every vCPU loads a new root before it runs again, and what is obsolete is
freed in small batches with mmu_lock dropped in between, so that faults go on meanwhile. Roots of the TDP MMU are made
invalid instead, and emptied with mmu_lock held for read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import events
from .shadow import KvmMmuPage, is_obsolete_sp, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from .tdp_mmu import kvm_tdp_mmu_invalidate_roots, kvm_tdp_mmu_zap_all, kvm_tdp_mmu_zap_invalidated_roots

if TYPE_CHECKING:
    from ..vm import Kvm

BATCH_ZAP_PAGES = 10


def kvm_mmu_zap_all(kvm: Kvm) -> None:
    """Zap every shadow page (kvm_arch_flush_shadow_all). Under mmu_lock."""
    invalid_list: list[KvmMmuPage] = []
    for sp in list(kvm.active_mmu_pages.values()):
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    kvm_tdp_mmu_zap_all(kvm)


def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Zap every shadow page that is there now. May sleep.

    The caller holds slots_lock: there are two generations only.
    """
    kvm.mmu_lock.acquire()
    kvm.mmu_valid_gen ^= 1
    if events.kvm_mmu_zap_all_fast.on:
        events.kvm_mmu_zap_all_fast(kvm.mmu_valid_gen, len(kvm.active_mmu_pages))
    # After the generation: a vCPU that serves the request at once must see its root to be obsolete.
    kvm.request_free_obsolete_roots()
    kvm_tdp_mmu_invalidate_roots(kvm)
    _kvm_zap_obsolete_pages(kvm)
    kvm.mmu_lock.release()
    if kvm.tdp_mmu_enabled:
        kvm_tdp_mmu_zap_invalidated_roots(kvm)


def _kvm_zap_obsolete_pages(kvm: Kvm) -> None:
    """kvm_zap_obsolete_pages(): the list is a FIFO, so none is left behind the first page of the new generation.

    KVM flushes at the end only; here before mmu_lock is dropped, as everywhere.
    """
    invalid_list: list[KvmMmuPage] = []
    batch = 0
    while kvm.active_mmu_pages:
        sp = next(iter(kvm.active_mmu_pages.values()))
        if not is_obsolete_sp(kvm, sp):
            break
        if batch >= BATCH_ZAP_PAGES:
            kvm_mmu_commit_zap_page(kvm, invalid_list)
            kvm.mmu_lock.release()
            kvm.mm.host.sched.cond_resched()
            kvm.mmu_lock.acquire()
            batch = 0
            continue
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        batch += 1
    kvm_mmu_commit_zap_page(kvm, invalid_list)
