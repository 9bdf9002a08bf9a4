"""Roots: the shadow page that the CPU's walker starts from, and the few that it can switch to by itself.

The engine keeps the current root and KVM_MMU_NUM_PREV_ROOTS former ones, matched by CR3 (cached_root_find_*). Each
holds a count on its shadow page, so that a zapped one stays allocated until every vCPU has let go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Hpa, Pfn
from ...cpu.mailbox import ROOT
from .role import pack_role
from .shadow import (
    PT64_ROOT_LEVEL,
    KvmMmuPage,
    kvm_mmu_free_shadow_page,
    kvm_mmu_get_shadow_page,
    make_mmu_pages_available,
    mmu_topup_memory_caches,
)
from .spte import RetPf

if TYPE_CHECKING:
    from ..vcpu import Vcpu


def kvm_mmu_load(vcpu: Vcpu, root_gfn: Gfn) -> RetPf:
    """Give the CPU a root for the current CR3 and roles; CONTINUE or ENOMEM.

    A CR3 outside of memory gets a root of zeros, so that every walk faults (kvm_mmu_get_dummy_root).
    """
    kvm = vcpu.kvm
    engine = vcpu.engine
    if not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    kvm.mmu_lock.acquire()
    if not make_mmu_pages_available(vcpu):
        kvm.mmu_lock.release()
        return RetPf.ENOMEM
    root, _ = kvm_mmu_get_shadow_page(vcpu, root_gfn, pack_role(vcpu.cpu_role, PT64_ROOT_LEVEL))
    root.root_count += 1
    vcpu.root = root
    vcpu.roots.append(root)
    engine.load_root(Hpa(root.pfn << PAGE_SHIFT), vcpu.cr3, vcpu.cr0, vcpu.cr4, vcpu.efer)
    _drop_unreferenced(vcpu)
    kvm.mmu_lock.release()
    return RetPf.CONTINUE


def _drop_unreferenced(vcpu: Vcpu) -> None:
    """Let go of the roots that the engine no longer holds."""
    engine = vcpu.engine
    held = {Pfn(hpa >> PAGE_SHIFT) for hpa in (engine.box[ROOT], *(root for _, root in engine.kept_roots()))}
    gone = [root for root in vcpu.roots if root.pfn not in held]
    vcpu.roots = [root for root in vcpu.roots if root.pfn in held]
    for root in gone:
        _put_root(vcpu, root)


def _put_root(vcpu: Vcpu, root: KvmMmuPage) -> None:
    """mmu_free_root_page(): the last count on a zapped root frees it. Under mmu_lock."""
    root.root_count -= 1
    if root.invalid and not root.root_count:
        vcpu.kvm.flush_remote_tlbs()
        kvm_mmu_free_shadow_page(vcpu.kvm, root)


def kvm_mmu_free_roots(vcpu: Vcpu) -> None:
    """Drop the current and every former root; the next access exits and loads one."""
    vcpu.engine.drop_all_roots()
    vcpu.root = None
    roots, vcpu.roots = vcpu.roots, []
    if roots:
        vcpu.kvm.mmu_lock.acquire()
        for root in roots:
            _put_root(vcpu, root)
        vcpu.kvm.mmu_lock.release()


def free_obsolete_roots(vcpu: Vcpu) -> None:
    """kvm_mmu_free_obsolete_roots(): drop all if one was zapped; the others are found again in the hash."""
    if any(root.invalid for root in vcpu.roots):
        kvm_mmu_free_roots(vcpu)
