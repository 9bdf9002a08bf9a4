"""Laws of frames: freed only when unmapped everywhere (I4, I18), never written while free, swapped without loss."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Pfn
from ...events import (
    host_pte_change,
    kvm_flush_remote_tlbs,
    mm_page_alloc,
    mm_page_free,
    spte_change,
    swap_readpage,
    swap_writepage,
)
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, spte_pfn
from ...mm.pgtable import SWP_ENTRY
from ...phys import POISON_PAGE
from ...x86 import PT_ADDR_MASK, PT_PRESENT
from .rules import Handler, Rules
from .tlb import cached_frames, stale_tlb

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...mm.swap import SwapFile
    from .sanitizer import Sanitizer


def slot_checksum(swap: SwapFile, slot: int) -> int:
    """Of what is in a slot of the swap file."""
    return zlib.crc32(swap.read_slot(slot))


class FrameRules(Rules):
    """See the module.

    _written: slot -> checksum of what was last written there. _slot_of: frame -> slot of the swap entry that
    replaced its pte. _unlinked: shadow pages that lost a link and were not flushed since.
    """

    laws = frozenset(("I4", "I18", "FRAME", "POISON", "SWAP"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        machine = sanitizer.machine
        self.kvm = machine.kvm
        self.host = machine.host
        self.ram = machine.ram
        self._free: set[Pfn] = {page.pfn for page in self.host.zone.free_list}
        self._written = self._read_all_slots() if "SWAP" in sanitizer.laws else {}
        self._slot_of: dict[Pfn, int] = {}
        self._unlinked: set[Pfn] = set()

    def _read_all_slots(self) -> dict[int, int]:
        """What a host that swapped before anybody listened has in its file."""
        swap = self.host.swap
        written = {}
        for slot, count in enumerate(swap.swap_map):
            if count:
                written[slot] = slot_checksum(swap, slot)
        return written

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Allocation and freeing, swap I/O, and the changes that must come before."""
        return {
            mm_page_alloc: self._on_alloc,
            mm_page_free: self._on_free,
            swap_writepage: self._on_write,
            swap_readpage: self._on_read,
            host_pte_change: self._on_host_pte_change,
            spte_change: self._on_spte_change,
            kvm_flush_remote_tlbs: self._on_flush,
        }

    def validate(self) -> None:
        """Free frames are mapped nowhere, used by nobody, and hold poison."""
        self.shadow.adopt()
        zone = self.host.zone
        for vcpu in self.kvm.vcpus:
            for pfn in cached_frames(vcpu):
                if pfn in self._free:
                    self.sanitizer.fail("I4", f"pfn {pfn:#x} is free", f"the TLB of vcpu {vcpu.id} may map it")
        for page in zone.free_list:
            for sptep in self.shadow.by_pfn.get(page.pfn, ()):
                self.sanitizer.fail("I4", f"pfn {page.pfn:#x} is free", f"spte at {sptep * 8:#x} maps it")
            if page.refcount:
                self.sanitizer.fail("FRAME", f"pfn {page.pfn:#x} is free", f"it has {page.refcount} references")
            if "POISON" in self.sanitizer.laws:
                self._check_poison(page.pfn)

    def finish(self) -> None:
        """With the mm gone every frame is free, and still poisoned."""
        zone = self.host.zone
        if zone.nr_free != zone.managed:
            self.sanitizer.fail(
                "FRAME", f"{zone.managed - zone.nr_free} frames are in use", "nobody is left to use them"
            )
        if zone.zero_page.refcount != 1:
            self.sanitizer.fail(
                "FRAME", f"the zero page has {zone.zero_page.refcount} references", "it was born with one"
            )
        if self.host.swap.nr_free != self.host.swap.nr_slots:
            used = self.host.swap.nr_slots - self.host.swap.nr_free
            self.sanitizer.fail("FRAME", f"{used} swap slots are in use", "nobody is left to use them")
        for pfn in sorted(self._free):
            self._check_poison(pfn)

    def _on_alloc(self, first: Pfn, order: int) -> None:
        for pfn in map(Pfn, range(first, first + (1 << order))):
            if pfn in self._free:
                self._check_poison(pfn)
                self._free.discard(pfn)

    def _check_poison(self, pfn: Pfn) -> None:
        data = self.ram.read_page(pfn)
        if data != POISON_PAGE:
            at = next(n for n in range(len(data)) if data[n] != POISON_PAGE[n])
            self.sanitizer.fail("POISON", f"pfn {pfn:#x} was free", f"byte {at:#x} of it is {data[at]:#04x}")

    def _on_free(self, first: Pfn, order: int) -> None:
        for pfn in map(Pfn, range(first, first + (1 << order))):
            self._check_free(pfn)

    def _check_free(self, pfn: Pfn) -> None:
        if pfn in self._free:
            self.sanitizer.fail("FRAME", f"pfn {pfn:#x} is freed", "it is free already")
        for sptep in self.shadow.by_pfn.get(pfn, ()):
            spte = self.shadow.leaves[sptep].spte
            self.sanitizer.fail("I4", f"pfn {pfn:#x} is freed", f"spte {spte:#x} at {sptep * 8:#x} maps it")
        vcpu = stale_tlb(self.kvm.vcpus, pfn)
        if vcpu is not None:
            self.sanitizer.fail("I4", f"pfn {pfn:#x} is freed", f"the TLB of vcpu {vcpu.id} may map it")
        if pfn in self.kvm.sp_by_pfn or pfn in self._unlinked:
            self.sanitizer.fail("I18", f"shadow page {pfn:#x} is freed", "no flush followed its unlinking")
        self._check_not_lost(pfn)
        self._free.add(pfn)

    def _check_not_lost(self, pfn: Pfn) -> None:
        slot = self._slot_of.pop(pfn, None)
        if slot is None or not self.host.swap.count(slot):
            return
        if self._written.get(slot) != zlib.crc32(self.ram.read_page(pfn)):
            self.sanitizer.fail("SWAP", f"pfn {pfn:#x} is dropped with new data", f"slot {slot} has older data")

    def _on_write(self, slot: int, pfn: Pfn) -> None:
        self._written[slot] = zlib.crc32(self.ram.read_page(pfn))

    def _on_read(self, slot: int, pfn: Pfn) -> None:
        found, wanted = zlib.crc32(self.ram.read_page(pfn)), self._written.get(slot)
        if found != wanted:
            wrote = "nothing" if wanted is None else f"{wanted:#010x}"
            self.sanitizer.fail("SWAP", f"slot {slot} reads as {found:#010x}", f"{wrote} was written")

    def _on_host_pte_change(self, mm_id: int, vpn: int, old: int, new: int) -> None:
        if old & PT_PRESENT:
            pfn = Pfn((old & PT_ADDR_MASK) >> PAGE_SHIFT)
            if not new & PT_PRESENT and new & SWP_ENTRY:
                self._slot_of[pfn] = new >> PAGE_SHIFT
            elif not new & PT_PRESENT:
                self._slot_of.pop(pfn, None)
        elif new & PT_PRESENT:
            self._slot_of.pop(Pfn((new & PT_ADDR_MASK) >> PAGE_SHIFT), None)

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        if old & SPTE_MMU_PRESENT and not new & SPTE_MMU_PRESENT and spte_pfn(old) in self.kvm.sp_by_pfn:
            self._unlinked.add(spte_pfn(old))

    def _on_flush(self, vcpus: int) -> None:
        self._unlinked.clear()
