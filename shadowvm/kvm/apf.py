"""Asynchronous page faults as the guest sees them (arch/x86/kvm/x86.c; Documentation/virt/kvm/x86/msr.rst).

A guest that has said so by MSR_KVM_ASYNC_PF_EN gets a #PF whose CR2 is a token instead of a wait, with
KVM_PV_REASON_PAGE_NOT_PRESENT in `flags` of an area in its memory; when the page is there, the token is stored in
`token` of that area and a vector of its choice interrupts it. It clears the word and writes MSR_KVM_ASYNC_PF_ACK.
The vCPU of a guest that has not, or cannot take a #PF now, halts until the page is there or an interrupt comes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Gfn, Gpa, Hva
from ..cpu.engine import Event, EventKind
from ..cpu.mailbox import VECTORING
from ..errors import ModelBug
from ..events import kvm_async_pf_not_present, kvm_async_pf_ready
from ..mm.uaccess import copy_from_user, copy_to_user
from ..x86 import PF_VECTOR
from .inject import inject
from .memslot import KVM_MEMSLOT_INVALID
from .mmu.guest_walker import kvm_vcpu_mark_page_dirty
from .mp_state import RUNNABLE, has_events
from .vm import KVM_REQ_APF_HALT

if TYPE_CHECKING:
    from .async_pf import AsyncPfWork
    from .irq import IrqState
    from .vcpu import Vcpu

KVM_ASYNC_PF_ENABLED, KVM_ASYNC_PF_SEND_ALWAYS = 1 << 0, 1 << 1
KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT, KVM_ASYNC_PF_DELIVERY_AS_INT = 1 << 2, 1 << 3
KVM_PV_REASON_PAGE_NOT_PRESENT = 1
APF_AREA = 64
"""Bytes, and the alignment, of the area that the guest shares."""
WAKEUP_ALL_TOKEN = 0xFFFFFFFF
"""Whoever waits for any page is to look again."""
_FLAGS, _TOKEN = 0, 4
_ENABLED = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT


class AsyncPf:
    """What a vCPU has to do with pages that are on their way (kvm_vcpu.async_pf and kvm_vcpu.arch.apf).

    msr_en, msr_int: the guest's two MSRs. id: of the next token. gfns: those in flight, each with its work. queue: work
    that the guest has not heard the end of; done: the part of it whose page is there. halted: the vCPU waits for a
    page. pageready_pending: the guest has been interrupted for a token and not yet written MSR_KVM_ASYNC_PF_ACK.
    """

    __slots__ = ("done", "gfns", "halted", "id", "msr_en", "msr_int", "pageready_pending", "queue")

    def __init__(self) -> None:
        self.msr_en = self.msr_int = 0
        self.id = 1
        self.gfns: dict[Gfn, AsyncPfWork] = {}
        self.queue: list[AsyncPfWork] = []
        self.done: deque[AsyncPfWork] = deque()
        self.halted = self.pageready_pending = False

    def clear_completion_queue(self) -> None:
        """Forget everything that is on its way. Workers go on to the end of what they have begun, unheard."""
        for work in self.queue:
            work.cancelled = True
        self.queue.clear()
        self.done.clear()
        self.gfns.clear()

    def reset(self) -> None:
        """What INIT does: the guest starts without any of this."""
        self.clear_completion_queue()
        self.msr_en = self.msr_int = 0
        self.halted = self.pageready_pending = False


def kvm_pv_async_pf_enabled(vcpu: Vcpu) -> bool:
    """The guest has asked for events; `page ready` by #PF is a thing of the past."""
    return vcpu.apf.msr_en & _ENABLED == _ENABLED


def kvm_can_do_async_pf(vcpu: Vcpu) -> bool:
    """Whether the vCPU may leave a fault unfinished: nothing is being delivered, and an interrupt could end a halt."""
    if vcpu.irq is None or not vcpu.kvm.params.async_pf or vcpu.event is not None or vcpu.mp_state is not RUNNABLE:
        return False
    return not vcpu.engine.box[VECTORING] and vcpu.engine.irq_window_open


def kvm_can_deliver_async_pf(vcpu: Vcpu) -> bool:
    """Whether the guest takes the #PF: its kernel does so only if it has asked for that."""
    if not kvm_pv_async_pf_enabled(vcpu):
        return False
    return bool(vcpu.apf.msr_en & KVM_ASYNC_PF_SEND_ALWAYS) or vcpu.engine.cpl != 0


def kvm_arch_async_page_not_present(vcpu: Vcpu, work: AsyncPfWork) -> bool:
    """Tell the guest with a #PF, which is True, or have the vCPU halt."""
    vcpu.apf.gfns[work.gfn] = work
    if kvm_async_pf_not_present.on:
        kvm_async_pf_not_present(work.token, work.cr2_or_gpa)
    if kvm_can_deliver_async_pf(vcpu) and _put_user(vcpu, _FLAGS, KVM_PV_REASON_PAGE_NOT_PRESENT):
        inject(vcpu, None, Event(EventKind.EXCEPTION, PF_VECTOR, 0, work.token))
        return True
    vcpu.requests |= KVM_REQ_APF_HALT
    return False


def kvm_arch_can_dequeue_async_page_present(vcpu: Vcpu) -> bool:
    """The guest can be told of another page: it has cleared the last token. One that is told nothing always can."""
    if not kvm_pv_async_pf_enabled(vcpu):
        return True
    return vcpu.irq is not None and vcpu.irq.chip.apic_software_enabled and _get_user(vcpu, _TOKEN) == 0


def kvm_arch_async_page_present(vcpu: Vcpu, work: AsyncPfWork) -> None:
    """The page is there. A vCPU that halted for it goes on; a guest that got a #PF for it gets the token back."""
    apf = vcpu.apf
    if not work.wakeup_all:
        apf.gfns.pop(work.gfn, None)
    if kvm_async_pf_ready.on:
        kvm_async_pf_ready(work.token, work.cr2_or_gpa)
    tell = work.wakeup_all or work.notpresent_injected
    if tell and kvm_pv_async_pf_enabled(vcpu) and _put_user(vcpu, _TOKEN, work.token):
        apf.pageready_pending = True
        assert vcpu.irq is not None, "the MSR was written with a local APIC"
        vcpu.irq.chip.request_irq(apf.msr_int & 0xFF)
    apf.halted = False


def kvm_apf_block(vcpu: Vcpu, irq: IrqState) -> None:
    """KVM_REQ_APF_HALT: sleep until a page has come, something else wants the guest to run, or the VM is paused."""
    apf = vcpu.apf
    apf.halted = True
    while apf.halted and not apf.done and not vcpu.kvm.paused and not has_events(vcpu, irq):
        if vcpu.kvm.all_asleep:
            raise ModelBug(f"vcpu {vcpu.id} waits for a page that nobody brings")
        vcpu.quiesce()
        vcpu.sched.wait(vcpu)
    apf.halted = False


def apf_area_hva(vcpu: Vcpu, gpa: Gpa) -> Hva | None:
    """Where the area that the guest names is in the VM process; None outside of its memory."""
    slot = vcpu.memslots.find(Gfn(gpa >> PAGE_SHIFT))
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        return None
    return Hva(slot.vpn(Gfn(gpa >> PAGE_SHIFT)) << PAGE_SHIFT | gpa & 0xFFF)


def _area(vcpu: Vcpu) -> Gpa:
    return Gpa(vcpu.apf.msr_en & -APF_AREA)


def _put_user(vcpu: Vcpu, offset: int, value: int) -> bool:
    gpa = _area(vcpu)
    hva = apf_area_hva(vcpu, gpa)
    if hva is None or copy_to_user(vcpu.kvm.mm, Hva(hva + offset), value.to_bytes(4, "little")) is not None:
        return False
    kvm_vcpu_mark_page_dirty(vcpu, Gfn(gpa >> PAGE_SHIFT))
    return True


def _get_user(vcpu: Vcpu, offset: int) -> int | None:
    hva = apf_area_hva(vcpu, _area(vcpu))
    word = None if hva is None else copy_from_user(vcpu.kvm.mm, Hva(hva + offset), 4)
    return int.from_bytes(word, "little") if isinstance(word, bytes) else None
