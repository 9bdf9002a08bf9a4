"""Laws of dirty logging: I17, I30. A page that the log calls clean holds what it held when its bit was cleared."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Pfn
from ...events import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_set_memslot
from ...kvm.mmu.rmap import rmap_sptes
from ...kvm.mmu.spte import spte_pfn
from ...mm.gup import host_pte
from ...phys import ZERO_PAGE
from ...x86 import PT_ADDR_MASK, PT_PRESENT, PT_WRITABLE
from .frames import slot_checksum
from .tlb import stale_tlb

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.memslot import MemSlot
    from .sanitizer import Handler, Sanitizer

NO_PAGE = zlib.crc32(ZERO_PAGE)


class DirtyRules:
    """_clean: for each slot with a log, checksum of each page when its bit was last cleared."""

    def __init__(self, sanitizer: Sanitizer) -> None:
        self.sanitizer = sanitizer
        self.kvm = sanitizer.machine.kvm
        self.host = sanitizer.machine.host
        self._clean: dict[int, dict[Gfn, int]] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Harvests, and slots that lose their log."""
        return {
            kvm_get_dirty_log: self._on_get,
            kvm_clear_dirty_log: self._on_clear,
            kvm_set_memslot: self._on_set_memslot,
        }

    def finish(self) -> None:
        """Nothing is left to check."""

    def _on_set_memslot(self, slot_id: int, change: str, *_rest: int) -> None:
        self._clean.pop(slot_id, None)

    def _on_get(self, slot_id: int, dirty: list[Gfn], cleared: bool) -> None:
        slot = self.kvm.memslots.by_id(slot_id)
        assert slot is not None
        # What was written while the caller flushed is in the bitmap again already.
        known, found = self._clean.setdefault(slot_id, {}), {*dirty, *(slot.dirty_bitmap or ())}
        for gfn, checksum in known.items():
            if gfn not in found and self._checksum(slot, gfn) != checksum:
                self.sanitizer.fail("I30", f"gfn {gfn:#x} was written", f"the log of slot {slot_id} does not have it")
        if cleared:
            clean = self._pages(slot)
            known.update((gfn, self._checksum(slot, gfn)) for gfn in clean)
            self._check_protected(slot, clean)

    def _on_clear(self, slot_id: int, gfns: list[Gfn]) -> None:
        slot = self.kvm.memslots.by_id(slot_id)
        assert slot is not None
        self._clean.setdefault(slot_id, {}).update((gfn, self._checksum(slot, gfn)) for gfn in gfns)
        self._check_protected(slot, gfns)

    def _pages(self, slot: MemSlot) -> Iterable[Gfn]:
        """Those that are clean now: another vCPU may have written some while the caller waited for a lock."""
        dirty = slot.dirty_bitmap or set()
        return [gfn for gfn in map(Gfn, range(slot.base_gfn, slot.end_gfn)) if gfn not in dirty]

    def _check_protected(self, slot: MemSlot, gfns: Iterable[Gfn]) -> None:
        """No store to a clean page passes unseen: not by its sptes, and not by a TLB."""
        for gfn in gfns:
            if gfn in (slot.dirty_bitmap or ()):
                continue
            for sptep in rmap_sptes(slot, gfn):
                spte = self.kvm.q[sptep]
                vcpu = stale_tlb(self.kvm.vcpus, spte_pfn(spte), writable=True)
                if spte & PT_WRITABLE or vcpu is not None:
                    who = f"spte {spte:#x}" if vcpu is None else f"the TLB of vcpu {vcpu.id}"
                    self.sanitizer.fail("I17", f"gfn {gfn:#x} is clean in the log", f"{who} lets stores pass")

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
