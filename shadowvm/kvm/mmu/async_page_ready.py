"""The end of an asynchronous page fault: the page is mapped as by a prefetch, then the guest is told (mmu.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gpa, Gva
from ..apf import kvm_arch_async_page_present, kvm_arch_can_dequeue_async_page_present
from .direct_page_fault import kvm_tdp_page_fault
from .page_fault import kvm_mmu_page_fault

if TYPE_CHECKING:
    from ..async_pf import AsyncPfWork
    from ..vcpu import Vcpu


def kvm_check_async_pf_completion(vcpu: Vcpu) -> None:
    """KVM_REQ_APF_READY: deal with pages that have come, as far as the guest can be told of them. May sleep."""
    apf = vcpu.apf
    while apf.done and kvm_arch_can_dequeue_async_page_present(vcpu):
        work = apf.done.popleft()
        kvm_arch_async_page_ready(vcpu, work)
        kvm_arch_async_page_present(vcpu, work)
        if work in apf.queue:
            apf.queue.remove(work)


def kvm_arch_async_page_ready(vcpu: Vcpu, work: AsyncPfWork) -> None:
    """Make the fault again that found no page, now as a prefetch: it is the guest's affair to run into the rest.

    Nothing of the first time is used: the walk is made anew, the sequence sampled anew. Of the outcomes only `fixed`
    counts, as the first time had none.
    """
    stat = vcpu.stat
    if work.wakeup_all or vcpu.root is None or not _is_same_space(vcpu, work):
        return
    counts = stat.pf_taken, stat.pf_emulate, stat.pf_spurious
    vcpu.link_generation, vcpu.smap_active = -1, work.smap_active
    vcpu.fault.prefetch = True
    if vcpu.kvm.tdp_enabled:
        kvm_tdp_page_fault(vcpu, Gpa(work.cr2_or_gpa), work.error_code)
    else:
        kvm_mmu_page_fault(vcpu, Gva(work.cr2_or_gpa), work.error_code)
    vcpu.fault.prefetch = False
    stat.pf_taken, stat.pf_emulate, stat.pf_spurious = counts


def _is_same_space(vcpu: Vcpu, work: AsyncPfWork) -> bool:
    """The address means now what it meant then. A gpa always does."""
    if vcpu.kvm.tdp_enabled:
        return True
    return work.cr3 == vcpu.engine.cr3 == vcpu.cr3 and work.cpu_role == vcpu.cpu_role
