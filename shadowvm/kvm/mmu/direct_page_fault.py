"""Faults of two-dimensional paging: the CPU's walk of the nested tables failed at a gpa (direct_page_fault of mmu.c).

    gpa -> memslot -> fast_page_fault -> sample, get_user_pages as in page_fault.py
        -> mmu_lock for read -> still valid? -> TDP MMU        (tdp_mmu=1)
        -> mmu_lock for write -> still valid? -> direct shadow pages, with an rmap        (tdp_mmu=0)

What the guest's own tables say is none of our business: the CPU walks them itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gpa, Gva
from ...cpu.engine import FETCH, CpuExit
from ...cpu.mailbox import EXIT, EXIT_ACCESS, EXIT_FETCH, EXIT_FINAL, EXIT_STORE, EXIT_USER, EXIT_WHY
from ...mm.page_alloc import put_page
from ...x86 import (
    CR4_PAE,
    CR4_SMEP,
    EFER_NX,
    PFERR_FETCH,
    PFERR_GUEST_FINAL,
    PFERR_GUEST_PAGE,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_PAGE_SIZE,
)
from ..memslot import KVM_MEM_UNCACHED, KVM_MEMSLOT_INVALID
from .fast_page_fault import fast_page_fault
from .large_spte import mmu_set_large_spte, wants_large_spte
from .lpage import PG_LEVEL_2M
from .nx_huge_page import account_nx_huge_page
from .page_fault import NO_PAGE, is_page_fault_stale, kvm_mmu_faultin_pfn, mmu_set_spte
from .prefetch import pte_prefetch
from .role import ROLE_LEVEL
from .shadow import (
    CACHE_OBJECTS,
    kvm_mmu_get_shadow_page,
    link_shadow_page,
    make_mmu_pages_available,
    mmu_page_zap_pte,
    mmu_topup_memory_caches,
)
from .spte import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    RET_PF_CONTINUE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    SPTE_MMU_PRESENT,
    RetPf,
)
from .tdp_mmu import kvm_tdp_mmu_map

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vcpu import Vcpu
    from .page_fault import KvmPageFault


def ept_error_code(box: memoryview[int]) -> int:
    """The error code of the last exit, as handle_ept_violation() makes it: W or F, P, RSVD, and what the gpa is."""
    error_code = PFERR_USER | (PFERR_GUEST_FINAL if box[EXIT_FINAL] else PFERR_GUEST_PAGE)
    access = box[EXIT_ACCESS]
    if access:
        error_code |= PFERR_FETCH if access == FETCH else PFERR_WRITE
    if box[EXIT] == CpuExit.EPT_MISCONFIG:
        return error_code | PFERR_RSVD | PFERR_PRESENT
    return error_code | PFERR_PRESENT if box[EXIT_WHY] else error_code


def no_table_error_code(vcpu: Vcpu) -> int:
    """Of the guest's #PF, when the last exit was for a table of its own where no memory is: that reads as absent."""
    engine = vcpu.engine
    box = engine.box
    error_code = PFERR_USER if box[EXIT_USER] else 0
    if box[EXIT_STORE]:
        error_code |= PFERR_WRITE
    if box[EXIT_FETCH] and (engine.cr4 & CR4_SMEP or (engine.cr4 & CR4_PAE and engine.efer & EFER_NX)):
        error_code |= PFERR_FETCH
    return error_code


def kvm_tdp_page_fault(vcpu: Vcpu, gpa: Gpa, error_code: int) -> RetPf:
    """Handle the CPU's nested page fault.

    FIXED, SPURIOUS or RETRY: run the instruction again. EMULATE: no memory behind the gpa, whose frame is
    vcpu.walker.gfn, or a store to ROM. WRITE_PROTECTED: a store to be emulated. ENOMEM/EFAULT: the host failed.
    """
    stat = vcpu.stat
    stat.pf_taken += 1
    gfn = Gfn(gpa >> PAGE_SHIFT)
    vcpu.walker.gfn = gfn
    slot = vcpu.slot
    if not slot.base_gfn <= gfn < slot.end_gfn:
        found = vcpu.memslots.find(gfn)
        if found is None:
            stat.pf_emulate += 1
            return _handle_noslot_fault(vcpu, gpa, error_code)
        if found.flags & KVM_MEM_UNCACHED:
            if found.flags & KVM_MEMSLOT_INVALID:
                return RET_PF_RETRY
            if error_code & PFERR_WRITE:
                stat.pf_emulate += 1
                return RetPf.EMULATE
            slot = found
        else:
            slot = vcpu.slot = found
    ret = _direct_page_fault(vcpu, gpa, error_code, gfn, slot)
    if ret is RET_PF_FIXED:
        stat.pf_fixed += 1
    elif ret is RET_PF_SPURIOUS:
        stat.pf_spurious += 1
    elif ret is RET_PF_WRITE_PROTECTED:
        stat.pf_emulate += 1
    return ret


def _handle_noslot_fault(vcpu: Vcpu, gpa: Gpa, error_code: int) -> RetPf:
    """No memory there: EMULATE, and remember it in an MMIO spte. RETRY, ENOMEM as for any fault."""
    kvm, fault = vcpu.kvm, vcpu.fault
    if not kvm.params.mmio_caching:
        return RetPf.EMULATE
    fault.addr, fault.error_code, fault.gfn, fault.access = Gva(gpa), error_code, vcpu.walker.gfn, ACC_ALL
    fault.page, fault.mmu_seq = NO_PAGE, kvm.mmu_invalidate_seq
    if len(vcpu.mmu_shadow_page_cache) < CACHE_OBJECTS and not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    return _map_by_tdp_mmu(vcpu, fault) if kvm.tdp_mmu_enabled else _map_by_shadow_pages(vcpu, fault)


def _direct_page_fault(vcpu: Vcpu, gpa: Gpa, error_code: int, gfn: Gfn, slot: MemSlot) -> RetPf:
    fault = vcpu.fault
    fault.addr = Gva(gpa)
    fault.error_code = error_code
    fault.access = ACC_EXEC_MASK | ACC_USER_MASK | slot.write_mask
    fault.gfn = gfn
    fault.slot = slot
    kvm = vcpu.kvm
    if error_code & PFERR_PRESENT or kvm.ad_disabled:
        ret = fast_page_fault(vcpu, fault)
        if ret is not RetPf.INVALID:
            return ret
    if len(vcpu.mmu_shadow_page_cache) < CACHE_OBJECTS and not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    ret = kvm_mmu_faultin_pfn(vcpu, fault)
    if ret is not RET_PF_CONTINUE:
        return ret
    ret = _map_by_tdp_mmu(vcpu, fault) if kvm.tdp_mmu_enabled else _map_by_shadow_pages(vcpu, fault)
    put_page(kvm.mm.host, fault.page)
    return ret


def _map_by_tdp_mmu(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    lock = vcpu.kvm.mmu_lock
    lock.acquire_read()
    ret = RET_PF_RETRY if is_page_fault_stale(vcpu, fault) else kvm_tdp_mmu_map(vcpu, fault)
    lock.release_read()
    return ret


def _map_by_shadow_pages(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    lock = vcpu.kvm.mmu_lock
    lock.acquire()
    if is_page_fault_stale(vcpu, fault):
        ret = RET_PF_RETRY
    else:
        ret = direct_map(vcpu, fault) if make_mmu_pages_available(vcpu) else RetPf.ENOMEM
    lock.release()
    return ret


def direct_map(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """Build direct shadow pages down to the leaf's and set it. mmu_lock is held for write."""
    kvm = vcpu.kvm
    assert vcpu.root is not None, "is_page_fault_stale has seen a root"
    sp = vcpu.root.pages[0]
    assert sp is not None, "a nested root is a shadow page"
    gfn = fault.gfn
    while sp.level > 1:
        sptep = sp.q + (gfn >> 9 * (sp.level - 1) & 511)
        spte = kvm.q[sptep]
        may_be_large = sp.level == PG_LEVEL_2M and kvm.mm.huge_pmds
        if may_be_large and wants_large_spte(vcpu, fault, spte):
            return mmu_set_large_spte(vcpu, fault, sp)
        if spte & (SPTE_MMU_PRESENT | PT_PAGE_SIZE) == SPTE_MMU_PRESENT:
            sp = kvm.sp_by_pfn[spte >> PAGE_SHIFT]
            continue
        if mmu_page_zap_pte(kvm, sp, sptep & 511):
            kvm.flush_remote_tlbs()
        first = Gfn(gfn & -1 << 9 * (sp.level - 1))
        child, _ = kvm_mmu_get_shadow_page(vcpu, first, sp.role & ~ROLE_LEVEL | sp.level - 1)
        link_shadow_page(kvm, sptep, child)
        if may_be_large and fault.huge_page_disallowed:
            account_nx_huge_page(kvm, child, fault.req_level == PG_LEVEL_2M)
        sp = child
    ret = mmu_set_spte(vcpu, fault, sp)
    if ret is RET_PF_FIXED and kvm.params.prefetch:
        pte_prefetch(vcpu, sp, gfn & 511)
    return ret
