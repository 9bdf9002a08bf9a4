"""Laws of the TDP MMU's tables: those of shadow.py that hold for them too, I18 for RCU, and links and counts.

Sptes are keyed by gpa and there is no rmap, so what a leaf maps is its place in the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Gfn, Pfn
from ...events import mm_page_free
from ...kvm.mmu.role import ROLE_LEVEL
from ...kvm.mmu.shadow import KvmMmuPage
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, is_last_spte, spte_pfn
from .rules import Handler
from .shadow import ShadowRules
from .spaces import booked_of, find_slot

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...sync import Task
    from .sanitizer import Sanitizer


class TdpRules(ShadowRules):
    """See the module. laws: besides those that are the same as for shadow pages. _linked: tables
    that have a link. _seen_by: unlinked tables, and the RCU readers of that moment with their sections.
    """

    laws = frozenset("I18 I22 I23 I35".split())

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self._linked: set[Pfn] = set()
        self._seen_by: dict[Pfn, dict[Task, int]] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Those of shadow.py, and frames that are freed."""
        return {**super().handlers(), mm_page_free: self._on_free}

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        sp = self.kvm.sp_by_pfn.get(Pfn(hpa >> PAGE_SHIFT))
        if sp is not None and sp.level > 1:
            self._note_unlinked(sp, old)
        super()._on_spte_change(hpa, old, new)

    def _note_unlinked(self, sp: KvmMmuPage, old: int) -> None:
        """A table that goes is remembered with those who may look at it."""
        if not old & SPTE_MMU_PRESENT or is_last_spte(old, sp.level):
            return
        self._linked.discard(spte_pfn(old))
        self._seen_by[spte_pfn(old)] = dict(self.kvm.rcu.readers)

    def _on_free(self, first: Pfn, order: int) -> None:
        for pfn in range(first, first + (1 << order)):
            readers = self._seen_by.pop(Pfn(pfn), {})
            for task, section in readers.items():
                if self.kvm.rcu.readers.get(task) == section:
                    self.fail("I18", f"table {pfn:#x} is freed", f"{task.name} may still look at it")

    def _check_link(self, sp: KvmMmuPage, sptep: int, spte: int) -> None:
        where = f"link {spte:#x} at {sptep * 8:#x}, level {sp.level}"
        child = self.kvm.sp_by_pfn.get(spte_pfn(spte))
        if child is None or child.invalid:
            self.fail("I22", where, "no live table is there")
            return
        if child.level != sp.level - 1 or (child.role ^ sp.role) & ~ROLE_LEVEL:
            self.fail("I22", where, f"the table is of level {child.level} and role {child.role:#x}")
        if child.gfn != sp.gfn_of(sptep & 511):
            self.fail("I22", f"{where} is for gfn {sp.gfn_of(sptep & 511):#x}", f"the table is of gfn {child.gfn:#x}")
        self._linked.add(child.pfn)
        if self.kvm.tdp_mmu_pages < len(self._linked):
            self.fail("I35", f"{where} publishes table {len(self._linked)}", f"{self.kvm.tdp_mmu_pages} are counted")

    def _check_rights(self, sp: KvmMmuPage, index: int, spte: int, where: str) -> None:
        super()._check_rights(sp, index, spte, where)
        slot = find_slot(self.kvm, booked_of(sp, sp.gfn_of(index)))
        if slot is not None and not slot.write_mask and spte & SPTE_MMU_WRITABLE:
            self.fail("I23", f"{where} is writable", f"slot {slot.id} is read-only")

    def _check_rmap(self, gfn: Gfn) -> None:
        """There is none."""

    def _check_tracking(self) -> None:
        """Nothing is shadowed."""

    def _on_lock_release(self, lock: Any) -> None:
        """While others hold mmu_lock for read, their tables are linked or not, and counted or not."""
        if lock is self.kvm.mmu_lock and not lock.held:
            super()._on_lock_release(lock)

    def _check_pages(self) -> None:
        kvm = self.kvm
        live = sum(not sp.invalid for sp in kvm.sp_by_pfn.values() if sp not in kvm.tdp_mmu_roots)
        if live != kvm.tdp_mmu_pages:
            self.fail("I35", f"{kvm.tdp_mmu_pages} tables are counted", f"{live} are live, besides the roots")
