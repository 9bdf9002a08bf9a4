"""Laws of contents: whatever way a page takes, the process finds at an address what was last there.

Kept by address (mm, vpn), not by swap slot or struct page, so that it does not share the mistakes of either.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Pfn, Vpn
from ...events import host_pte_change, lock_release, memory_failure_event, mm_page_free, swap_writepage
from ...mm.gup import host_pte
from ...mm.pgtable import PTE_SPECIAL, SWP_ENTRY
from ...phys import ZERO_PAGE
from ...sync import LockRank
from ...x86 import PT_ADDR_MASK, PT_PRESENT, PT_WRITABLE
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from .sanitizer import Sanitizer

Address = tuple[int, int]
"""(mm, vpn)."""


class ContentRules(Rules):
    """See the module.

    _cleared: addresses whose pte became none under the page table lock that is still held, and the frame it had.
    _frame_of, _left: swapped-out addresses whose frame is still in memory, and the addresses of such a frame.
    _away: checksum of the frame of a swapped-out address when it was freed. _slot_of, _refs: swap entries.
    """

    laws = frozenset(("SWAP", "CONTENT", "HOST-TLB"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.mm = sanitizer.machine.mm
        self.ram = sanitizer.machine.ram
        self._cleared: dict[Address, Pfn] = {}
        self._frame_of: dict[Address, Pfn] = {}
        self._left: dict[Pfn, set[Address]] = {}
        self._away: dict[Address, int] = {}
        self._slot_of: dict[Address, int] = {}
        self._refs: dict[int, set[Address]] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Changes of host ptes, the end of their critical section, frames that go, slots that are written."""
        return {
            host_pte_change: self._on_host_pte_change,
            lock_release: self._on_lock_release,
            mm_page_free: self._on_free,
            memory_failure_event: self._on_memory_failure,
            swap_writepage: self._on_write,
        }

    def validate(self) -> None:
        """The host's TLB agrees with the page table."""
        for vpn in self.mm.tlb:
            self._check_host_tlb((self.mm.id, vpn), host_pte(self.mm, Vpn(vpn)))

    def _on_host_pte_change(self, mm_id: int, vpn: int, old: int, new: int) -> None:
        at = (mm_id, vpn)
        self._check_host_tlb(at, new)
        if old & PT_PRESENT:
            if not new & PT_PRESENT:
                self._cleared[at] = _pfn(old)
                if new:
                    self._swapped_out(at, new)
        elif new & PT_PRESENT:
            if not new & PTE_SPECIAL:
                self._mapped(at, old, _pfn(new))
        elif new & SWP_ENTRY:
            self._swapped_out(at, new)
        else:
            self._forget(at)

    def _check_host_tlb(self, at: Address, new: int) -> None:
        if at[0] != self.mm.id:
            return
        for tlb, needs in ((self.mm.tlb, PT_PRESENT), (self.mm.tlb_w, PT_PRESENT | PT_WRITABLE)):
            cached = tlb.get(at[1])
            if cached is not None and (new & needs != needs or cached >> 9 != _pfn(new)):
                self.sanitizer.fail(
                    "HOST-TLB", f"pte of vpn {at[1]:#x} becomes {new:#x}", f"the host's TLB has pfn {cached >> 9:#x}"
                )

    def _swapped_out(self, at: Address, entry: int) -> None:
        slot = entry >> PAGE_SHIFT
        pfn = self._cleared.pop(at, None)
        if pfn is None:
            self.sanitizer.fail("SWAP", f"vpn {at[1]:#x} gets swap entry {slot}", "no page was there")
            return
        self._frame_of[at] = pfn
        self._left.setdefault(pfn, set()).add(at)
        self._slot_of[at] = slot
        self._refs.setdefault(slot, set()).add(at)

    def _mapped(self, at: Address, old: int, pfn: Pfn) -> None:
        if old & SWP_ENTRY:
            stayed, away = self._frame_of.get(at), self._away.get(at)
            self._forget(at)
            if stayed is not None and stayed != pfn:
                self.sanitizer.fail("SWAP", f"pfn {pfn:#x} is mapped at vpn {at[1]:#x}", f"pfn {stayed:#x} is its page")
            if away is not None and away != self._checksum(pfn):
                self.sanitizer.fail(
                    "SWAP", f"vpn {at[1]:#x} comes back as {self._checksum(pfn):#010x}", f"it left as {away:#010x}"
                )
            return
        before = self._cleared.pop(at, None)
        data = self.ram.read_page(pfn)
        if before is None and data != ZERO_PAGE:
            self.sanitizer.fail("CONTENT", f"pfn {pfn:#x}, new at vpn {at[1]:#x}, holds data", "it must be zeros")
        if before is not None and data != self.ram.read_page(before):
            self.sanitizer.fail("CONTENT", f"vpn {at[1]:#x} gets pfn {pfn:#x}", f"pfn {before:#x} holds other data")

    def _forget(self, at: Address) -> None:
        pfn = self._frame_of.pop(at, None)
        if pfn is not None:
            self._left[pfn].discard(at)
        self._away.pop(at, None)
        slot = self._slot_of.pop(at, None)
        if slot is not None:
            self._refs[slot].discard(at)

    def _on_lock_release(self, lock: Any) -> None:
        if self._cleared and lock.rank == LockRank.PAGE_TABLE_LOCK:
            self._cleared.clear()

    def _on_free(self, first: Pfn, order: int) -> None:
        for pfn in map(Pfn, range(first, first + (1 << order))):
            for at in self._left.pop(pfn, ()):
                del self._frame_of[at]
                self._away[at] = self._checksum(pfn)

    def _on_memory_failure(self, pfn: Pfn, result: str) -> None:
        """A page whose slot holds the same comes back in another frame."""
        if result in ("Recovered", "Delayed"):
            self._on_free(pfn, 0)

    def _on_write(self, slot: int, pfn: Pfn) -> None:
        mine, refs = self._left.get(pfn, set()), self._refs.get(slot, set())
        if mine ^ refs:
            strangers = ", ".join(f"vpn {vpn:#x}" for _, vpn in sorted(mine ^ refs))
            self.sanitizer.fail("SWAP", f"pfn {pfn:#x} is written to slot {slot}", f"not both belong to {strangers}")

    def _checksum(self, pfn: Pfn) -> int:
        return zlib.crc32(self.ram.read_page(pfn))


def _pfn(pte: int) -> Pfn:
    return Pfn((pte & PT_ADDR_MASK) >> PAGE_SHIFT)
