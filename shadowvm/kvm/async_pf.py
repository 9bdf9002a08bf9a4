"""Pages that a vCPU needs and does not wait for: they are brought by a worker (virt/kvm/async_pf.c).

    fault -> get_user_pages would wait -> kvm_setup_async_pf: the guest hears of it, or the vCPU halts
    worker -> async_pf_execute: get_user_pages, waiting -> done
    vCPU -> kvm_check_async_pf_completion (mmu/async_page_ready.py): map the page, tell the guest

The worker only makes the page present in the VM's process. What it saw is not used: the vCPU maps the page by a fault
of its own, which samples the invalidation sequence anew.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Vpn
from ..events import kvm_async_pf_completed, kvm_async_pf_repeated_fault, kvm_try_async_get_page
from ..mm.fault import VmFault
from ..mm.gup import get_user_page
from ..mm.page_alloc import put_page
from .apf import WAKEUP_ALL_TOKEN, kvm_arch_async_page_not_present
from .vm import KVM_REQ_APF_HALT, KVM_REQ_APF_READY

if TYPE_CHECKING:
    from .mmu.page_fault import KvmPageFault
    from .vcpu import Vcpu

ASYNC_PF_PER_VCPU = 64


class AsyncPfWork:
    """One page on its way (struct kvm_async_pf).

    cr2_or_gpa, error_code, cr3, cpu_role, smap_active: of the fault that needs it. notpresent_injected: the guest knows
    the token. wakeup_all: no page, but word for all who wait. cancelled: nobody wants to hear of it any more.
    """

    __slots__ = (
        *("cancelled", "cpu_role", "cr2_or_gpa", "cr3", "error_code", "gfn", "notpresent_injected", "smap_active"),
        *("token", "vpn", "wakeup_all"),
    )

    def __init__(self, vcpu: Vcpu, token: int) -> None:
        fault = vcpu.fault
        self.token = token
        self.gfn = fault.gfn
        self.vpn: Vpn = fault.slot.vpn(fault.gfn)
        self.cr2_or_gpa = fault.addr
        self.error_code = fault.error_code
        self.cr3 = vcpu.cr3
        self.cpu_role = vcpu.cpu_role
        self.smap_active = vcpu.smap_active
        self.notpresent_injected = self.wakeup_all = self.cancelled = False


def kvm_try_async_pf(vcpu: Vcpu, fault: KvmPageFault) -> bool:
    """The page needs I/O: leave the fault unfinished. False: wait for it after all.

    A page that is on its way already is not worth a second event: the guest has run into it again, and halts.
    """
    if kvm_try_async_get_page.on:
        kvm_try_async_get_page(fault.addr, fault.gfn)
    if fault.gfn in vcpu.apf.gfns:
        if kvm_async_pf_repeated_fault.on:
            kvm_async_pf_repeated_fault(fault.addr, fault.gfn)
        vcpu.requests |= KVM_REQ_APF_HALT
        return True
    return kvm_setup_async_pf(vcpu)


def kvm_setup_async_pf(vcpu: Vcpu) -> bool:
    """Have a worker bring the page of vcpu.fault. False: too many are under way."""
    apf = vcpu.apf
    if len(apf.queue) >= ASYNC_PF_PER_VCPU:
        return False
    work = AsyncPfWork(vcpu, _alloc_token(vcpu))
    apf.queue.append(work)
    work.notpresent_injected = kvm_arch_async_page_not_present(vcpu, work)
    vcpu.kvm.async_pf_wq.queue_work(partial(async_pf_execute, vcpu, work))
    return True


def _alloc_token(vcpu: Vcpu) -> int:
    """A number that no other page in flight has, on any vCPU. Never 0, which is no token, nor that of all."""
    apf = vcpu.apf
    number, apf.id = apf.id, apf.id + 1 & 0x7FFFF or 1
    return number << 12 | vcpu.id


def async_pf_execute(vcpu: Vcpu, work: AsyncPfWork) -> None:
    """In the worker: make the page present, and let the vCPU know. What fails, the guest's next access finds too."""
    page = get_user_page(vcpu.kvm.mm, work.vpn, True)
    if not isinstance(page, VmFault):
        put_page(vcpu.kvm.mm.host, page)
    if work.cancelled:
        return
    if kvm_async_pf_completed.on:
        kvm_async_pf_completed(work.vpn << PAGE_SHIFT, work.cr2_or_gpa)
    _done(vcpu, work)


def _done(vcpu: Vcpu, work: AsyncPfWork) -> None:
    vcpu.apf.done.append(work)
    vcpu.requests |= KVM_REQ_APF_READY
    vcpu.wake_up()


def kvm_async_pf_wakeup_all(vcpu: Vcpu) -> None:
    """The guest has enabled the events: what it may have missed it should look at again."""
    apf = vcpu.apf
    if apf.done:
        return
    work = AsyncPfWork(vcpu, WAKEUP_ALL_TOKEN)
    work.wakeup_all = True
    apf.queue.append(work)
    _done(vcpu, work)
