"""Laws of memory slots: I34. Nothing is left of a slot that was deleted or moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...events import kvm_set_memslot, lock_release
from .rules import Handler, Rules
from .spaces import all_slots, booked_of, find_slot, space_of

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.memslot import MemSlot
    from ...sync import Task
    from .sanitizer import Sanitizer


class SlotRules(Rules):
    """_going: the slot that a task is deleting or moving."""

    laws = frozenset(("I34",))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        self.kvm = sanitizer.machine.kvm
        self._going: dict[Task, MemSlot] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Changes of slots: their beginning, and their end."""
        return {kvm_set_memslot: self._on_set_memslot, lock_release: self._on_lock_release}

    def validate(self) -> None:
        """Every leaf and every rmap entry is of a slot that is there."""
        self.shadow.adopt()
        for gfn, spteps in sorted(self.shadow.by_gfn.items()):
            if spteps and find_slot(self.kvm, gfn) is None:
                self.sanitizer.fail("I34", f"gfn {gfn:#x} is mapped", "no slot has it")
        for slot in all_slots(self.kvm):
            for gfn in (*slot.rmap, *slot.rmap_large):
                if not slot.base_gfn <= gfn < slot.end_gfn:
                    self.sanitizer.fail("I34", f"slot {slot.id} has an rmap of gfn {gfn:#x}", "it is outside of it")

    def _on_set_memslot(self, slot_id: int, change: str, *_rest: int) -> None:
        old = self.kvm.id_to_memslot(slot_id)
        if old is not None and change in ("delete", "move"):
            self._going[self.sanitizer.machine.sched.current] = old

    def _on_lock_release(self, lock: Any) -> None:
        if lock is not self.kvm.slots_lock:
            return
        gone = self._going.pop(self.sanitizer.machine.sched.current, None)
        if gone is None:
            return
        for gfn in (*gone.rmap, *gone.rmap_large):
            self.sanitizer.fail("I34", f"slot {gone.id} is gone", f"its gfn {gfn:#x} is mapped")
        for gfn in gone.gfn_write_track:
            self.sanitizer.fail("I34", f"slot {gone.id} is gone", f"gfn {gfn:#x} of it is write-tracked")
        for sp in self.kvm.active_mmu_pages.values():
            # A CR3 that names no memory has a root all the same.
            gfn = booked_of(sp, sp.gfn)
            was_in = space_of(gfn) == gone.as_id and gone.base_gfn <= sp.gfn < gone.end_gfn
            if was_in and find_slot(self.kvm, gfn) is None and not sp.direct and not sp.root_count:
                self.sanitizer.fail("I34", f"slot {gone.id} is gone", f"gfn {sp.gfn:#x} of it has a shadow page")
        for gfn, spteps in self.shadow.by_gfn.items():
            if spteps and find_slot(self.kvm, gfn) is None:
                self.sanitizer.fail("I34", f"slot {gone.id} is gone", f"gfn {gfn:#x} is mapped, and in no slot")
