"""Prefetch: a fault maps its resident neighbours too (FNAME(pte_prefetch) and direct_pte_prefetch() of mmu.c).

The window is the 8 entries around the faulting one. Only what costs nothing is mapped: the guest has used it (A), the
host has it mapped, writable, dirty and young, so that no bit of the host's changes and no page is read or written for a
guess. What is mapped is not accessed yet: the A bit of the spte is clear. No shadow page becomes unsync for it.

Under mmu_lock from the look at the host page table to the spte, and not while any invalidation is in progress; so
no sequence is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn
from ...events import kvm_mmu_set_spte
from ...mm.gup import get_user_page_fast, host_pte
from ...mm.page_alloc import put_page
from ...x86 import PT_ACCESSED, PT_ADDR_MASK, PT_DIRTY, PT_PKEY_MASK, PT_PRESENT, PT_WRITABLE
from ..memslot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_UNCACHED
from .paging_mode import PT32
from .rmap import rmap_add
from .spte import ACC_WRITE_MASK, make_spte, mmu_spte_set
from .sync_spte import gpte_access, gpte_of, guest_table, prefetch_invalid_gpte
from .unsync import mmu_try_to_unsync_pages

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .shadow import KvmMmuPage

PTE_PREFETCH_NUM = 8
_FREE = PT_PRESENT | PT_WRITABLE | PT_ACCESSED | PT_DIRTY
"""A host pte that a writable mapping in a guest changes nothing of."""


def pte_prefetch(vcpu: Vcpu, sp: KvmMmuPage, index: int) -> None:
    """After the fault on entry `index` of a level 1 page: map what is free of charge around it."""
    if vcpu.kvm.mmu_invalidate_in_progress:
        return
    first = index & -PTE_PREFETCH_NUM
    sptes = vcpu.kvm.q[sp.q + first : sp.q + first + PTE_PREFETCH_NUM].tolist()
    if 0 not in sptes:
        return
    if sp.direct:
        _direct(vcpu, sp, first, sptes)
    else:
        _indirect(vcpu, sp, first, sptes)


def _direct(vcpu: Vcpu, sp: KvmMmuPage, first: int, sptes: list[int]) -> None:
    """Runs of empty entries; the first that cannot be mapped ends its run. Without A bits it would be a wild guess."""
    if vcpu.kvm.ad_disabled or sp.gfns:
        return
    run_ended = False
    for index, spte in enumerate(sptes, first):
        if spte:
            run_ended = False
        elif not run_ended:
            run_ended = not _map(vcpu, sp, index, Gfn(sp.gfn + index), sp.access, sp.pkey)


def _indirect(vcpu: Vcpu, sp: KvmMmuPage, first: int, sptes: list[int]) -> None:
    frame = guest_table(vcpu, sp)
    if frame < 0:
        return
    if vcpu.mode is PT32:
        gptes = [gpte_of(vcpu, sp, frame, index) for index in range(first, first + PTE_PREFETCH_NUM)]
    else:
        gptes = vcpu.kvm.q[frame + first : frame + first + PTE_PREFETCH_NUM].tolist()
    for index, (spte, gpte) in enumerate(zip(sptes, gptes, strict=True), first):
        if spte or prefetch_invalid_gpte(vcpu, gpte):
            continue
        gfn = Gfn((gpte & PT_ADDR_MASK) >> PAGE_SHIFT)
        if not _map(vcpu, sp, index, gfn, gpte_access(sp, gpte), gpte & PT_PKEY_MASK):
            return


def _map(vcpu: Vcpu, sp: KvmMmuPage, index: int, gfn: Gfn, access: int, pkey: int) -> bool:
    """Set one spte, unless something would have to be done for it."""
    kvm = vcpu.kvm
    slot = vcpu.slot
    if not slot.base_gfn <= gfn < slot.end_gfn:
        found = vcpu.memslots.find(gfn)
        if found is None or found.flags & KVM_MEM_UNCACHED:
            return False
        slot = found
    if access & ACC_WRITE_MASK and slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return False
    vpn = slot.vpn(gfn)
    if host_pte(kvm.mm, vpn) & _FREE != _FREE:
        return False
    page = get_user_page_fast(kvm.mm, vpn, True)
    if page is None:
        return False
    if access & ACC_WRITE_MASK and gfn in kvm.page_hash and not mmu_try_to_unsync_pages(kvm, slot, gfn, prefetch=True):
        access &= ~ACC_WRITE_MASK
    spte = make_spte(slot, access, gfn, page.pfn, True, pkey) & ~PT_ACCESSED | kvm.tdp_ad_bits
    sptep = sp.q + index
    if sp.gfns:
        sp.gfns[index] = gfn
    mmu_spte_set(kvm, sptep, spte)
    kvm.stat.pages_4k += 1
    if rmap_add(kvm, slot, gfn, sptep):
        kvm.flush_remote_tlbs()
    if kvm_mmu_set_spte.on:
        kvm_mmu_set_spte(gfn, spte, sptep * 8, 1)
    put_page(kvm.mm.host, page)
    return True
