"""The law of asynchronous page faults, APF: who was told to wait for a page is told, once, that it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...addr import PAGE_SHIFT, Gpa, Vpn
from ...events import kvm_async_pf_completed, kvm_async_pf_not_present, kvm_async_pf_ready, kvm_entry
from ...kvm.apf import APF_AREA, WAKEUP_ALL_TOKEN, apf_area_hva, kvm_pv_async_pf_enabled
from ...kvm.async_pf import ASYNC_PF_PER_VCPU, AsyncPfWork
from ...kvm.vm import KVM_REQ_APF_READY
from ...mm.gup import host_pte
from ...x86 import PT_PRESENT
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.vcpu import Vcpu
    from .sanitizer import Sanitizer


class AsyncPfRules(Rules):
    """See the module. _owed: what each token in use is for. _brought: those whose worker is done."""

    laws: ClassVar[frozenset[str]] = frozenset({"APF"})

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.vcpus = sanitizer.machine.kvm.vcpus
        self._owed: dict[int, AsyncPfWork] = {}
        self._brought: set[int] = set()

    def handlers(self) -> dict[Tracepoint, Handler]:
        """The steps of such a fault, and the entries between them."""
        return {
            kvm_async_pf_not_present: self._on_not_present,
            kvm_async_pf_completed: self._on_completed,
            kvm_async_pf_ready: self._on_ready,
            kvm_entry: self._on_entry,
        }

    def _on_not_present(self, token: int, gva: int) -> None:
        what = f"token {token:#x} is given for gva {gva:#x}"
        queue = next(vcpu.apf.queue for vcpu in self.vcpus if any(work.token == token for work in vcpu.apf.queue))
        work = queue[-1]
        if len(queue) > ASYNC_PF_PER_VCPU:
            self.sanitizer.fail("APF", what, f"{len(queue)} pages are on their way")
        for other in queue[:-1]:
            if other.token == token or (other.gfn == work.gfn and not other.wakeup_all and other.token in self._owed):
                self.sanitizer.fail("APF", what, f"token {other.token:#x} for gfn {other.gfn:#x} is on its way")
        self._owed[token] = work

    def _on_completed(self, address: int, gva: int) -> None:
        self._brought.update(token for token, work in self._owed.items() if work.vpn == address >> PAGE_SHIFT)

    def _on_ready(self, token: int, gva: int) -> None:
        if token == WAKEUP_ALL_TOKEN:
            return
        if self._owed.pop(token, None) is None:
            self.sanitizer.fail("APF", f"token {token:#x} comes back", "nobody waits for it")
        if token not in self._brought:
            self.sanitizer.fail("APF", f"token {token:#x} comes back", "its page has not been brought")
        self._brought.discard(token)

    def _on_entry(self, vcpu_id: int, rip: int) -> None:
        vcpu = self.vcpus[vcpu_id]
        apf = vcpu.apf
        if apf.done and not vcpu.requests & KVM_REQ_APF_READY and not self._holds_token(vcpu):
            self.sanitizer.fail(
                "APF", f"vcpu {vcpu_id} enters the guest", f"nobody will tell it of token {apf.done[0].token:#x}"
            )

    def _holds_token(self, vcpu: Vcpu) -> bool:
        """The guest has a token that it has yet to clear, or to acknowledge after that."""
        if not kvm_pv_async_pf_enabled(vcpu):
            return False
        if vcpu.apf.pageready_pending:
            return True
        hva = apf_area_hva(vcpu, Gpa(vcpu.apf.msr_en & -APF_AREA))
        pte = 0 if hva is None else host_pte(self.sanitizer.machine.mm, Vpn(hva >> PAGE_SHIFT))
        if hva is None or not pte & PT_PRESENT:
            return True
        return bool(self.sanitizer.machine.ram.q[pte >> PAGE_SHIFT << 9 | hva >> 3 & 511] >> 32)
