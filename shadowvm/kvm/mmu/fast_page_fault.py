"""Faults that need neither the page nor mmu_lock (fast_page_fault of mmu.c): only direct pages have them.

A present leaf lacks a right that KVM itself took: W for dirty logging, while MMU_WRITABLE says that it may come back,
or all rights for access tracking. One compare-and-exchange of the entry gives them back. That the root may have become
invalid meanwhile makes no difference: what is present in it is still to be zapped, and flushed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...events import fast_page_fault as trace_fast_page_fault
from ...events import spte_change, spte_cmpxchg
from ...x86 import PFERR_PRESENT, PFERR_RSVD, PFERR_WRITE, PT_WRITABLE
from .access_track import is_access_track_spte, restore_acc_track_spte
from .spte import RET_PF_FIXED, RET_PF_SPURIOUS, SPTE_MMU_WRITABLE, RetPf, is_access_allowed
from .tdp_iter import tdp_leaf

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .page_fault import KvmPageFault

MAX_RETRIES = 4


def page_fault_can_be_fast(vcpu: Vcpu, error_code: int) -> bool:
    """A store to something present, or with access tracking any access to what is not."""
    if not vcpu.kvm.params.fast_page_fault or error_code & PFERR_RSVD:
        return False
    if not error_code & PFERR_PRESENT:
        return vcpu.kvm.ad_disabled
    return bool(error_code & PFERR_WRITE)


def fast_page_fault(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """FIXED or SPURIOUS if it was that simple, else INVALID: take the slow way."""
    if not page_fault_can_be_fast(vcpu, fault.error_code):
        return RetPf.INVALID
    kvm = vcpu.kvm
    root = vcpu.root
    top = None if root is None else root.pages[0]
    if top is None:
        return RetPf.INVALID
    kvm.rcu.read_lock()
    ret = RetPf.INVALID
    sptep, old = -1, 0
    for _ in range(MAX_RETRIES):
        sptep = tdp_leaf(kvm, top, fault.gfn)
        if sptep < 0:
            break
        old = kvm.q[sptep]
        if is_access_allowed(old, fault.error_code):
            ret = RET_PF_SPURIOUS
            break
        new = _with_rights(vcpu, fault, sptep, old)
        if new == old or not is_access_allowed(new, fault.error_code):
            break
        if _fix_direct_spte(vcpu, fault, sptep, old, new):
            ret = RET_PF_FIXED
            break
    if trace_fast_page_fault.on:
        spte = kvm.q[sptep] if sptep >= 0 else 0
        trace_fast_page_fault(vcpu.id, fault.addr, fault.error_code, max(sptep, 0) * 8, old, spte, int(ret))
    kvm.rcu.read_unlock()
    if ret is not RetPf.INVALID:
        vcpu.stat.pf_fast += 1
    return ret


def _with_rights(vcpu: Vcpu, fault: KvmPageFault, sptep: int, spte: int) -> int:
    """The entry with what may be given back. A large page of a logged slot stays read-only, so that it is split."""
    new = restore_acc_track_spte(spte) if is_access_track_spte(spte) else spte
    if fault.error_code & PFERR_WRITE and spte & SPTE_MMU_WRITABLE:
        if vcpu.kvm.sp_by_pfn[sptep >> 9].level > 1 and fault.slot.dirty_bitmap is not None:
            return spte
        new |= PT_WRITABLE
    return new


def _fix_direct_spte(vcpu: Vcpu, fault: KvmPageFault, sptep: int, old: int, new: int) -> bool:
    """fast_pf_fix_direct_spte(): False if the entry is not `old` any more. Then the page is dirty."""
    kvm = vcpu.kvm
    if spte_cmpxchg.on:
        spte_cmpxchg(sptep * 8, old, new)
    if kvm.q[sptep] != old:
        return False
    if spte_change.on:
        spte_change(sptep * 8, old, new)
    kvm.q[sptep] = new
    if new & ~old & PT_WRITABLE and fault.slot.dirty_bitmap is not None:
        fault.slot.dirty_bitmap.add(fault.gfn)
    return True
