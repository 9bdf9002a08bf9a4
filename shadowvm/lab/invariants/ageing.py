"""Laws of ageing: I8, I9. A decision of the host's reclaim is compared with the marks that the CPUs have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Pfn
from ...events import (
    folio_referenced,
    host_pte_change,
    kvm_age_hva,
    kvm_page_fault,
    lock_acquired,
    lock_release,
    spte_change,
)
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, spte_pfn
from ...x86 import PT_ACCESSED, PT_ADDR_MASK, PT_PRESENT
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...sync import Task
    from .sanitizer import Sanitizer

_AD_MASK = 3 << 52
"""Sptes whose accesses are tracked by faults have another type here, and no A bit."""


class AgeingRules(Rules):
    """See the module.

    _taken: the last frame that a task took a mark from. _ageing: tasks inside of KVM's ageing, which takes no lock.
    """

    laws = frozenset(("I8", "I9"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        self.kvm = sanitizer.machine.kvm
        self.mm = sanitizer.machine.mm
        self._taken: dict[Task, Pfn] = {}
        self._ageing: dict[Task, None] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Marks that are taken, and what reclaim makes of them."""
        return {
            kvm_age_hva: self._on_age,
            kvm_page_fault: self._on_page_fault,
            spte_change: self._on_spte_change,
            host_pte_change: self._on_host_pte_change,
            folio_referenced: self._on_referenced,
            lock_acquired: self._on_lock,
            lock_release: self._on_lock,
        }

    def _task(self) -> Task:
        return self.sanitizer.machine.sched.current

    def _on_age(self, start: int, end: int) -> None:
        self._ageing[self._task()] = None

    def _on_page_fault(self, *_: Any) -> None:
        """Of a task that has aged before: a fast fault takes no lock either, and may change more than A."""
        if self._ageing:
            self._ageing.pop(self._task(), None)

    def _on_lock(self, lock: Any) -> None:
        if self._ageing:
            self._ageing.pop(self._task(), None)

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        if self._task() not in self._ageing or not old & SPTE_MMU_PRESENT:
            return
        self._taken[self._task()] = spte_pfn(old)
        if not (old | new) & _AD_MASK and (old ^ new) & ~PT_ACCESSED:
            self.sanitizer.fail("I9", f"ageing makes of spte {old:#x}", f"{new:#x}, which differs in more than A")

    def _on_host_pte_change(self, mm_id: int, vpn: int, old: int, new: int) -> None:
        if old & new & PT_PRESENT and old & ~new & PT_ACCESSED:
            self._taken[self._task()] = Pfn((old & PT_ADDR_MASK) >> PAGE_SHIFT)

    def _on_referenced(self, pfn: Pfn, referenced: int) -> None:
        order = self.mm.host.zone.mem_map[pfn].order
        taken = self._taken.pop(self._task(), None)
        used = taken is not None and taken >> order == pfn >> order
        if referenced:
            if not used and self.mm.notifiers.clear_flush_young == (self.kvm.notifier,):
                self.sanitizer.fail("I8", f"pfn {pfn:#x} is taken for young", "neither the host nor a vCPU has used it")
            return
        if used:
            self.sanitizer.fail("I8", f"pfn {pfn:#x} is taken for old", "a mark of its use was cleared")
        frames = range(pfn, pfn + (1 << order))
        for sptep in sorted({sptep for frame in frames for sptep in self.shadow.by_pfn.get(Pfn(frame), ())}):
            if self.kvm.q[sptep] & PT_ACCESSED:
                self.sanitizer.fail(
                    "I8", f"pfn {pfn:#x} is taken for old", f"a vCPU has used it: spte {self.kvm.q[sptep]:#x}"
                )
