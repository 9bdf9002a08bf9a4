"""Laws of large pages: I20, I28, I29. What forbids a large spte is counted here anew, from the shadow pages."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ...addr import Pfn
from ...events import kvm_flush_remote_tlbs, kvm_mmu_get_page, kvm_mmu_prepare_zap_page, lock_release, spte_change
from ...kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from ...kvm.mmu.role import ROLE_SMM_SHIFT
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, spte_pfn
from ...mm.gup import host_pte
from ...x86 import PT_PAGE_SIZE, PT_WRITABLE
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.memslot import MemSlot
    from ...kvm.mmu.shadow import KvmMmuPage
    from .sanitizer import Sanitizer

_LARGE = SPTE_MMU_PRESENT | PT_PAGE_SIZE


class LpageRules(Rules):
    """_sizes: PT_PAGE_SIZE of entries that have become non-present since the last flush.

    _recount: a shadow page has come or gone.
    """

    laws = frozenset(("I20", "I28", "I29"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.kvm = sanitizer.machine.kvm
        self._sizes: dict[int, int] = {}
        self._recount = False

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Stores to tables above the lowest level, flushes, and shadow pages that come and go."""
        return {
            spte_change: self._on_spte_change,
            kvm_flush_remote_tlbs: self._on_flush,
            kvm_mmu_get_page: self._on_get_page,
            kvm_mmu_prepare_zap_page: self._on_zap_page,
            lock_release: self._on_lock_release,
        }

    def validate(self) -> None:
        """Every count, and every large spte."""
        self._check_counts()
        for sp in self.kvm.sp_by_pfn.values():
            for sptep in range(sp.q, sp.q + 512) if sp.level > 1 else ():
                if self.kvm.q[sptep] & _LARGE == _LARGE:
                    self._check_large(sp, sptep, self.kvm.q[sptep], installed=False)

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        sptep = hpa >> 3
        sp = self.kvm.sp_by_pfn.get(Pfn(sptep >> 9))
        if sp is None or sp.level == 1:
            return
        self._check_size(sptep, old, new)
        if new & _LARGE == _LARGE:
            self._check_large(sp, sptep, new, installed=old & _LARGE != _LARGE)

    def _check_size(self, sptep: int, old: int, new: int) -> None:
        """The TDP MMU may put a table in the place of a large leaf: its small ones map the same."""
        was, will_be = old & SPTE_MMU_PRESENT, new & SPTE_MMU_PRESENT
        if was and will_be:
            if (old ^ new) & PT_PAGE_SIZE and not (self.kvm.tdp_mmu_enabled and old & PT_PAGE_SIZE):
                self.sanitizer.fail("I20", f"spte {old:#x} at {sptep * 8:#x}", f"becomes {new:#x}, of another size")
        elif was:
            self._sizes.setdefault(sptep, old & PT_PAGE_SIZE)
        elif will_be and self._sizes.get(sptep, new & PT_PAGE_SIZE) != new & PT_PAGE_SIZE:
            self.sanitizer.fail(
                "I20", f"spte {new:#x} at {sptep * 8:#x} is of another size than before", "no flush was between"
            )

    def _on_flush(self, vcpus: int) -> None:
        self._sizes.clear()

    def _check_large(self, sp: KvmMmuPage, sptep: int, spte: int, *, installed: bool) -> None:
        """What forbids a large spte also forbids to write through one that is there already."""
        gfn, pfn = sp.gfn_of(sptep & 511), spte_pfn(spte)
        where = f"large spte {spte:#x} of gfn {gfn:#x}"
        slots = self.kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].slots
        slot = next((each for each in slots if each.base_gfn <= gfn and gfn + 512 <= each.end_gfn), None)
        if slot is None:
            self.sanitizer.fail("I29", where, "no slot has all of its gfns")
            return
        vpn = slot.vpn(gfn)
        if (gfn | pfn | vpn) % 512:
            self.sanitizer.fail("I29", where, f"pfn {pfn:#x} and vpn {vpn:#x} are not alike modulo 2 MiB")
        if not host_pte(self.kvm.mm, vpn) & PT_PAGE_SIZE:
            self.sanitizer.fail("I29", where, f"the host has small pages at vpn {vpn:#x}")
        if not installed and not spte & (PT_WRITABLE | SPTE_MMU_WRITABLE):
            return
        shadowed = self._reasons(slot)[gfn >> 9]
        if shadowed:
            self.sanitizer.fail("I29", where, f"{shadowed} shadow pages of guest tables are in it")
        if slot.flags & KVM_MEM_LOG_DIRTY_PAGES and (installed or spte & PT_WRITABLE):
            self.sanitizer.fail("I29", where, f"memory slot {slot.id} has a dirty log")

    def _reasons(self, slot: MemSlot) -> Counter[int]:
        """What forbids large sptes, by gfn >> 9: shadow pages of guest tables, and the ragged ends of the slot."""
        found = Counter({gfn >> 9: 1 for gfn in (slot.base_gfn, slot.end_gfn) if gfn % 512})
        found.update(
            sp.gfn >> 9
            for sp in self.kvm.sp_by_pfn.values()
            if not sp.direct
            and not sp.invalid
            and slot.base_gfn <= sp.gfn < slot.end_gfn
            and sp.role >> ROLE_SMM_SHIFT == slot.as_id
        )
        return found

    def _on_get_page(self, gen: int, gfn: int, role: str, root_count: int, unsync: int, created: bool) -> None:
        self._recount |= created

    def _on_zap_page(self, *_: Any) -> None:
        self._recount = True

    def _on_lock_release(self, lock: Any) -> None:
        if self._recount and lock is self.kvm.mmu_lock:
            self._recount = False
            self._check_counts()

    def _check_counts(self) -> None:
        for slots in self.kvm.address_spaces:
            for slot in slots.slots:
                wanted = self._reasons(slot)
                for block in sorted(wanted.keys() | slot.disallow_lpage.keys()):
                    count = slot.disallow_lpage.get(block, 0)
                    if count != wanted[block]:
                        self.sanitizer.fail(
                            "I28",
                            f"disallow_lpage of gfn {block << 9:#x} + 512 is {count}",
                            f"{wanted[block]} reasons are there",
                        )
