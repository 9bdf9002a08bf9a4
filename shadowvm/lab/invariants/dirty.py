"""Laws of dirty logging: I17, I30, I31. A page that the log calls clean holds what it held when its bit was cleared."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Gfn, Pfn
from ...events import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_set_memslot, lock_release
from ...kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from ...kvm.mmu.rmap import rmap_sptes
from ...kvm.mmu.tdp_mmu import tdp_leaves
from ...mm.gup import host_pte
from ...phys import ZERO_PAGE
from ...x86 import PT_ADDR_MASK, PT_DIRTY, PT_PRESENT, PT_WRITABLE
from .frames import slot_checksum
from .rules import Handler, Rules
from .spaces import all_slots
from .tlb import cached_frames, stale_tlb

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.memslot import MemSlot
    from ...sync import Task
    from .sanitizer import Sanitizer

NO_PAGE = zlib.crc32(ZERO_PAGE)


class DirtyRules(Rules):
    """_clean: for each slot with a log, checksum of each page when its bit was last cleared, or the log turned on.

    _enabling: tasks that turn a log on, and the slot.
    """

    laws = frozenset(("I17", "I30", "I31"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.kvm = sanitizer.machine.kvm
        self.host = sanitizer.machine.host
        self._clean: dict[int, dict[Gfn, int]] = {}
        self._enabling: dict[Task, int] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Harvests, and slots that lose their log."""
        return {
            kvm_get_dirty_log: self._on_get,
            kvm_clear_dirty_log: self._on_clear,
            kvm_set_memslot: self._on_set_memslot,
            lock_release: self._on_lock_release,
        }

    def validate(self) -> None:
        """No store to a page that is clean in a log passes; while somebody changes slots it still may."""
        if self.kvm.slots_lock.owner is not None:
            return
        for slot in all_slots(self.kvm):
            if slot.dirty_bitmap is not None:
                self._check_protected(slot, self._pages(slot))

    def _on_set_memslot(self, slot_id: int, change: str, flags: int, *_rest: int) -> None:
        self._clean.pop(slot_id, None)
        if change == "flags-only" and flags & KVM_MEM_LOG_DIRTY_PAGES:
            self._enabling[self.sanitizer.machine.sched.current] = slot_id

    def _on_lock_release(self, lock: Any) -> None:
        """The log is on when the call returns: no TLB may know a page as writable that no fault has made so since."""
        if not self._enabling or lock is not self.kvm.slots_lock:
            return
        slot_id = self._enabling.pop(self.sanitizer.machine.sched.current, None)
        slot = None if slot_id is None else self.kvm.id_to_memslot(slot_id)
        if slot_id is None or slot is None or slot.dirty_bitmap is None:
            return
        pages = self._pages(slot)
        self._clean[slot_id] = {gfn: self._checksum(slot, gfn) for gfn in pages}
        clean = {self._frame(slot, gfn): gfn for gfn in pages}
        for vcpu in self.kvm.vcpus:
            for pfn in cached_frames(vcpu, writable=True):
                if pfn in clean and not self._has_alias(slot, clean[pfn]):
                    self.sanitizer.fail(
                        "I31", f"the log of slot {slot_id} is on", f"vcpu {vcpu.id} caches gfn {clean[pfn]:#x} writable"
                    )

    def _frame(self, slot: MemSlot, gfn: Gfn) -> int:
        """The frame of a page, 0 if it has none."""
        pte = host_pte(self.kvm.mm, slot.vpn(gfn))
        return (pte & PT_ADDR_MASK) >> PAGE_SHIFT if pte & PT_PRESENT else 0

    def _on_get(self, slot_id: int, dirty: list[Gfn], cleared: bool) -> None:
        slot = self.kvm.id_to_memslot(slot_id)
        assert slot is not None
        self._check_rings(slot_id, slot)
        # What was written while the caller flushed is in the bitmap again already.
        known, found = self._clean.setdefault(slot_id, {}), {*dirty, *(slot.dirty_bitmap or ())}
        for gfn, checksum in known.items():
            written = gfn not in found and self._checksum(slot, gfn) != checksum
            if written and not self._has_alias(slot, gfn):
                self.sanitizer.fail("I30", f"gfn {gfn:#x} was written", f"the log of slot {slot_id} does not have it")
        if cleared:
            clean = self._pages(slot)
            known.update((gfn, self._checksum(slot, gfn)) for gfn in clean)
            self._check_protected(slot, clean)

    def _has_alias(self, slot: MemSlot, gfn: Gfn) -> bool:
        """Whether another slot has the same memory: who stored through that is no affair of this slot's log."""
        vpn = slot.vpn(gfn)
        others = (each for each in all_slots(self.kvm) if (each.as_id, each.id) != (slot.as_id, slot.id))
        return any(each.base_gfn <= vpn - each.vpn_delta < each.end_gfn for each in others)

    def _check_rings(self, slot_id: int, slot: MemSlot) -> None:
        """With dirty rings the log is what is in them: pushed, and not reset yet."""
        rings = [vcpu.dirty_ring for vcpu in self.kvm.vcpus if vcpu.dirty_ring is not None]
        if not rings:
            return
        entries = (entry for ring in rings for entry in ring.entries())
        pushed = {slot.base_gfn + entry.offset for entry in entries if entry.slot == slot_id}
        for gfn in sorted(slot.dirty_bitmap or ()):
            if gfn not in pushed:
                self.sanitizer.fail("I30", f"gfn {gfn:#x} of slot {slot_id} was written", "it is in no ring")

    def _on_clear(self, slot_id: int, gfns: list[Gfn]) -> None:
        slot = self.kvm.id_to_memslot(slot_id)
        assert slot is not None
        self._clean.setdefault(slot_id, {}).update((gfn, self._checksum(slot, gfn)) for gfn in gfns)
        self._check_protected(slot, gfns)

    def _pages(self, slot: MemSlot) -> Iterable[Gfn]:
        """Those that are clean now: another vCPU may have written some while the caller waited for a lock."""
        return [gfn for gfn in map(Gfn, range(slot.base_gfn, slot.end_gfn)) if not self._is_noted(slot, gfn)]

    def _is_noted(self, slot: MemSlot, gfn: Gfn) -> bool:
        """The log has it, or with PML the CPU has."""
        if gfn in (slot.dirty_bitmap or ()):
            return True
        return self.kvm.pml and any(spte & PT_DIRTY for spte in self._sptes(slot, gfn))

    def _check_protected(self, slot: MemSlot, gfns: Iterable[Gfn]) -> None:
        """No store to a clean page passes unseen: not by its sptes, and not by a TLB."""
        for gfn in gfns:
            if self._is_noted(slot, gfn):
                continue
            for spte in self._sptes(slot, gfn):
                vcpu = stale_tlb(self.kvm.vcpus, Pfn(self._frame(slot, gfn)), writable=True)
                if vcpu is not None and self._has_alias(slot, gfn):
                    vcpu = None
                if (spte & PT_WRITABLE and not self.kvm.pml) or vcpu is not None:
                    who = f"spte {spte:#x}" if vcpu is None else f"the TLB of vcpu {vcpu.id}"
                    self.sanitizer.fail("I17", f"gfn {gfn:#x} is clean in the log", f"{who} lets stores pass")

    def _sptes(self, slot: MemSlot, gfn: Gfn) -> list[int]:
        spteps = tdp_leaves(self.kvm, slot.as_id, gfn) if self.kvm.tdp_mmu_enabled else rmap_sptes(slot, gfn)
        return [self.kvm.q[sptep] for sptep in spteps]

    def _checksum(self, slot: MemSlot, gfn: Gfn) -> int:
        """Of the page, wherever it is, without touching it."""
        pte = host_pte(self.kvm.mm, slot.vpn(gfn))
        if pte & PT_PRESENT:
            return zlib.crc32(self.host.ram.read_page(Pfn((pte & PT_ADDR_MASK) >> PAGE_SHIFT)))
        if not pte:
            return NO_PAGE
        number, swap = pte >> PAGE_SHIFT, self.host.swap
        page = swap.cache.get(number)
        if page is not None:
            return zlib.crc32(self.host.ram.read_page(page.pfn))
        return slot_checksum(swap, number)
