"""Laws of the TLBs: I16, I18, I25, and that a requested flush happens before the guest runs on.

The walker notes for every frame the flush epoch of its last fill; a frame may be cached while that epoch is the
current one. A vCPU that has a flush pending and is not in the guest caches nothing that it could use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...addr import Pfn
from ...cpu.mailbox import EPOCH, NO_WINDOW, WINDOW1_VA, WINDOW_VA
from ...events import kvm_entry, kvm_flush_remote_tlbs, lock_release, spte_change
from ...kvm.mmu.root import is_obsolete_root
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from ...kvm.vm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, KVM_REQ_TLB_FLUSH
from ...x86 import PT_PAGE_SIZE
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.vcpu import Vcpu
    from ...sync import Task
    from .sanitizer import Sanitizer


class TlbRules(Rules):
    """See the module. _unflushed: what a task has taken from an spte since the last flush."""

    laws = frozenset(("I16", "I18", "I25", "LOCKDEP"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        self.kvm = sanitizer.machine.kvm
        self._unflushed: dict[Task, str] = {}
        self._epoch_to_pass: dict[int, int] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Removals, flush requests, the end of the critical section, entries."""
        return {
            spte_change: self._on_spte_change,
            kvm_flush_remote_tlbs: self._on_flush,
            lock_release: self._on_lock_release,
            kvm_entry: self._on_entry,
        }

    def validate(self) -> None:
        """What a TLB may hold is mapped by an spte, as widely; no root in use was zapped."""
        self.shadow.adopt()
        leaves = self.shadow.leaves.values()
        mapped = {pfn for leaf in leaves for pfn in leaf.pfns()}
        writable = {pfn for leaf in leaves if leaf.spte & SPTE_MMU_WRITABLE for pfn in leaf.pfns()}
        for vcpu in self.kvm.vcpus:
            obsolete = any(is_obsolete_root(self.kvm, root) for root in vcpu.roots)
            if obsolete and not vcpu.requests & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS:
                self.sanitizer.fail("I18", f"vcpu {vcpu.id} goes on with its roots", "one of them was zapped")
            for pfn in cached_frames(vcpu):
                if pfn not in mapped:
                    self.sanitizer.fail("I16", f"vcpu {vcpu.id} caches pfn {pfn:#x}", "no spte maps it")
            for pfn in cached_frames(vcpu, writable=True):
                if pfn not in writable:
                    self.sanitizer.fail("I16", f"vcpu {vcpu.id} caches pfn {pfn:#x} writable", "no spte allows that")

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        removed = old & SPTE_MMU_PRESENT and not new & SPTE_MMU_PRESENT
        is_split = old & PT_PAGE_SIZE and new & SPTE_MMU_PRESENT and not new & PT_PAGE_SIZE
        narrowed = old & SPTE_MMU_WRITABLE and not new & SPTE_MMU_WRITABLE and not is_split
        if removed or narrowed:
            self._unflushed[self.sanitizer.machine.sched.current] = f"spte at {hpa:#x}: {old:#x} became {new:#x}"
        if removed and not self.kvm.mmu_lock.held:
            self.sanitizer.fail("LOCKDEP", f"spte at {hpa:#x} is removed", "nobody holds mmu_lock")

    def _on_flush(self, vcpus: int) -> None:
        self._unflushed.clear()
        for vcpu in self.kvm.vcpus:
            if not vcpu.requests & KVM_REQ_TLB_FLUSH:
                self.sanitizer.fail("I16", f"vcpu {vcpu.id} has no flush pending", "a remote flush was requested")
            self._epoch_to_pass[vcpu.id] = vcpu.engine.box[EPOCH]

    def _on_lock_release(self, lock: Any) -> None:
        if lock is self.kvm.mmu_lock and self._unflushed:
            what = self._unflushed.pop(self.sanitizer.machine.sched.current, None)
            if what is not None:
                self.sanitizer.fail("I16", what, "mmu_lock is dropped without a flush")

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


def cached_frames(vcpu: Vcpu, *, writable: bool = False) -> list[Pfn]:
    """Frames that a vCPU's TLB may map, unless it will flush before it runs on."""
    if vcpu.requests & KVM_REQ_TLB_FLUSH:
        return []
    engine = vcpu.engine
    epochs = np.frombuffer(engine.write_epoch if writable else engine.fill_epoch, np.uint32)
    found: list[Pfn] = np.flatnonzero(epochs == engine.box[EPOCH]).tolist()
    return found


def stale_tlb(vcpus: list[Vcpu], pfn: Pfn, *, writable: bool = False) -> Vcpu | None:
    """A vCPU whose TLB may still map the frame and that will not flush before it runs on."""
    for vcpu in vcpus:
        cached = vcpu.engine.may_cache_writable(pfn) if writable else vcpu.engine.may_cache(pfn)
        if cached and not vcpu.requests & KVM_REQ_TLB_FLUSH:
            return vcpu
    return None
