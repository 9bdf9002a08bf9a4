"""Sync: what the guest's TLB flushes do to unsync pages (kvm_mmu_sync_roots and kvm_mmu_invlpg of mmu.c).

MOV to CR3, a full flush by CR4, and every root that is loaded sync all pages below the root: they are write-protected,
TLBs are flushed so that nobody writes them any more, the sptes are compared with the guest's entries, and the pages are
in sync until the next store. INVLPG brings one spte up to date in every root of the vCPU, and the pages stay unsync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gva
from ...x86 import PT_ADDR_MASK, PT_PAGE_SIZE
from ..vm import KVM_REQ_MMU_SYNC
from .rmap import rmap_write_protect
from .role import ROLE_SMM_SHIFT
from .shadow import KvmMmuPage, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page, mmu_page_zap_pte
from .spte import SPTE_MMU_PRESENT
from .sync_spte import kvm_sync_page, sync_spte
from .unsync import kvm_unlink_unsync_page, mmu_unsync_walk

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from ..vm import Kvm
    from .root import Root

KVM_PAGE_ARRAY_NR = 16
"""Pages that are synced between two looks at who waits."""


def kvm_mmu_sync_roots(vcpu: Vcpu, root: Root | None) -> None:
    """Sync all that can be reached from `root`: the vCPU flushes its TLB with it loaded. May sleep."""
    kvm = vcpu.kvm
    if not kvm.stat.mmu_unsync or root is None:
        return
    kvm.mmu_lock.acquire()
    for page in root.pages:
        if page is not None and page.unsync_children:
            mmu_sync_children(vcpu, page, can_yield=True)
    kvm.mmu_lock.release()


def mmu_sync_children(vcpu: Vcpu, parent: KvmMmuPage, *, can_yield: bool = False) -> bool:
    """Sync all unsync pages below `parent`. Under mmu_lock, which `can_yield` allows to be dropped in between.

    False: somebody waits for the lock, and not all is done; the vCPU has a request to go on with it.
    """
    kvm = vcpu.kvm
    sched = kvm.mm.host.sched
    while parent.unsync_children:
        pages = mmu_unsync_walk(kvm, parent)[:KVM_PAGE_ARRAY_NR]
        _sync_pages(vcpu, pages)
        if not sched.need_resched or not parent.unsync_children:
            continue
        if not can_yield:
            vcpu.requests |= KVM_REQ_MMU_SYNC
            return False
        kvm.mmu_lock.release()
        sched.cond_resched()
        kvm.mmu_lock.acquire()
    return True


def _sync_pages(vcpu: Vcpu, pages: list[KvmMmuPage]) -> None:
    kvm = vcpu.kvm
    flush = False
    for sp in pages:
        if _write_protect_gfn(kvm, sp):
            flush = True
    if flush:
        kvm.flush_remote_tlbs()
    flush = False
    invalid_list: list[KvmMmuPage] = []
    for sp in pages:
        kvm_unlink_unsync_page(kvm, sp)
        ret = kvm_sync_page(vcpu, sp)
        if ret < 0:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
        flush = flush or ret > 0
    if invalid_list:
        kvm_mmu_commit_zap_page(kvm, invalid_list)
    elif flush:
        kvm.flush_remote_tlbs()


def _write_protect_gfn(kvm: Kvm, sp: KvmMmuPage) -> bool:
    """kvm_vcpu_write_protect_gfn(), for the guest table of a page."""
    slot = kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].find(sp.gfn)
    return slot is not None and rmap_write_protect(kvm, slot, sp.gfn)


def kvm_mmu_invlpg(vcpu: Vcpu, gva: Gva) -> None:
    """INVLPG: no root of the vCPU translates `gva` as the guest's tables once did. The caller flushes the page.

    Former roots too: the address may be a global one. Other vCPUs are flushed where a mapping went: the host must
    find whoever uses a frame in the rmap, or in no TLB.
    """
    vcpu.stat.invlpg += 1
    kvm = vcpu.kvm
    kvm.mmu_lock.acquire()
    flush = False
    for root in vcpu.roots:
        if _invalidate_addr(vcpu, root, gva):
            flush = True
    if flush:
        kvm.flush_remote_tlbs()
    kvm.mmu_lock.release()


def _invalidate_addr(vcpu: Vcpu, root: Root, gva: Gva) -> bool:
    """__kvm_mmu_invalidate_addr(). True: the caller flushes."""
    kvm = vcpu.kvm
    sp = root.pages[0 if root.pae_page is None else gva >> 30 & 3]
    while sp is not None and (sp.unsync or sp.unsync_children):
        index = gva >> 3 + 9 * sp.level & 511
        if sp.level == 1:
            ret = sync_spte(vcpu, sp, index)
            return mmu_page_zap_pte(kvm, sp, index) if ret < 0 else ret > 0
        spte = kvm.q[sp.q + index]
        if not spte & SPTE_MMU_PRESENT or spte & PT_PAGE_SIZE:
            return False
        sp = kvm.sp_by_pfn[(spte & PT_ADDR_MASK) >> PAGE_SHIFT]
    return False
