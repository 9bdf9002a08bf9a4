"""Laws of the TLBs: I16, I18, and that a requested flush happens before the guest runs on.

The walker notes for every frame the flush epoch of its last fill; a frame may be cached while that epoch is the
current one. A vCPU that has a flush pending and is not in the guest caches nothing that it could use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...addr import Pfn
from ...cpu.mailbox import EPOCH, NO_WINDOW, WINDOW1_VA, WINDOW_VA
from ...events import kvm_entry, kvm_flush_remote_tlbs, lock_release, spte_change
from ...kvm.mmu.root import is_obsolete_root
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from ...kvm.vm import KVM_REQ_TLB_FLUSH

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.vcpu import Vcpu
    from .sanitizer import Handler, Sanitizer
    from .shadow import ShadowRules


class TlbRules:
    """See the module."""

    def __init__(self, sanitizer: Sanitizer, shadow: ShadowRules) -> None:
        self.sanitizer = sanitizer
        self.shadow = shadow
        self.kvm = sanitizer.machine.kvm
        self._unflushed: str | None = None
        self._epoch_to_pass: dict[int, int] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Removals, flush requests, the end of the critical section, entries."""
        return {
            spte_change: self._on_spte_change,
            kvm_flush_remote_tlbs: self._on_flush,
            lock_release: self._on_lock_release,
            kvm_entry: self._on_entry,
        }

    def finish(self) -> None:
        """Nothing is left to check."""

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        removed = old & SPTE_MMU_PRESENT and not new & SPTE_MMU_PRESENT
        narrowed = old & SPTE_MMU_WRITABLE and not new & SPTE_MMU_WRITABLE
        if removed or narrowed:
            self._unflushed = f"spte at {hpa:#x}: {old:#x} became {new:#x}"

    def _on_flush(self, vcpus: int) -> None:
        self._unflushed = None
        for vcpu in self.kvm.vcpus:
            if not vcpu.requests & KVM_REQ_TLB_FLUSH:
                self.sanitizer.fail("I16", f"vcpu {vcpu.id} has no flush pending", "a remote flush was requested")
            self._epoch_to_pass[vcpu.id] = vcpu.engine.box[EPOCH]

    def _on_lock_release(self, lock: Any) -> None:
        if lock is self.kvm.mmu_lock and self._unflushed is not None:
            self.sanitizer.fail("I16", self._unflushed, "mmu_lock is dropped without a flush")

    def _on_entry(self, vcpu_id: int, rip: int) -> None:
        wanted = self._epoch_to_pass.pop(vcpu_id, None)
        vcpu = self.kvm.vcpus[vcpu_id]
        box = vcpu.engine.box
        epoch = box[EPOCH]
        if wanted is not None and epoch <= wanted:
            self.sanitizer.fail("I16", f"vcpu {vcpu_id} enters the guest with TLB epoch {epoch}", "a flush is owed")
        if any(is_obsolete_root(self.kvm, root) for root in vcpu.roots):
            self.sanitizer.fail("I18", f"vcpu {vcpu_id} enters the guest", "one of its roots was zapped")
        if box[WINDOW_VA] != NO_WINDOW or box[WINDOW1_VA] != NO_WINDOW:
            self.sanitizer.fail("I25", f"vcpu {vcpu_id} enters the guest", "a page table is open for an emulated store")


def stale_tlb(vcpus: list[Vcpu], pfn: Pfn, *, writable: bool = False) -> Vcpu | None:
    """A vCPU whose TLB may still map the frame and that will not flush before it runs on."""
    for vcpu in vcpus:
        cached = vcpu.engine.may_cache_writable(pfn) if writable else vcpu.engine.may_cache(pfn)
        if cached and not vcpu.requests & KVM_REQ_TLB_FLUSH:
            return vcpu
    return None
