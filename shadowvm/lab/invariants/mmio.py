"""Laws of MMIO sptes: I32, I33. An entry that says that no memory is there is right as long as it is believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...addr import PAGE_SHIFT
from ...events import handle_mmio_page_fault, lock_release, spte_change, vcpu_match_mmio
from ...kvm.memslot import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
from ...kvm.mmu.mmio_spte import MMIO_SPTE_GEN_MASK, get_mmio_spte_generation, get_mmio_spte_gfn, is_mmio_spte
from ...kvm.mmu.role import ROLE_SMM_SHIFT
from ...kvm.mmu.spte import SPTE_MMIO, SPTE_MMU_PRESENT
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from .sanitizer import Sanitizer


class MmioRules(Rules):
    """See the module."""

    laws = frozenset(("I32", "I33"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.kvm = sanitizer.machine.kvm

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Stores of such entries, their use, and new generations."""
        return {
            spte_change: self._on_spte_change,
            handle_mmio_page_fault: lambda addr, gfn, access: self._on_use(gfn),
            vcpu_match_mmio: lambda gva, gpa, write, gpa_match: self._on_use(gpa >> PAGE_SHIFT),
            lock_release: self._on_lock_release,
        }

    def validate(self) -> None:
        """No entry of the current generation names a frame that is in a slot."""
        table_of = np.frombuffer(self.kvm.mm.host.ram.b, np.uint64)
        for sp in self.kvm.sp_by_pfn.values():
            slots = self.kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT]
            if sp.level != 1 or slots.generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
                continue
            for index in np.flatnonzero(table_of[sp.q : sp.q + 512] & np.uint64(SPTE_MMIO)).tolist():
                spte = self.kvm.q[sp.q + index]
                gfn, generation = get_mmio_spte_gfn(spte), slots.generation & MMIO_SPTE_GEN_MASK
                if get_mmio_spte_generation(spte) == generation and slots.find(gfn) is not None:
                    where = f"mmio spte {spte:#x} at {(sp.q + index) * 8:#x} is of generation {generation:#x}"
                    self.sanitizer.fail("I32", where, f"gfn {gfn:#x} is in a slot")

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        if old & SPTE_MMU_PRESENT and is_mmio_spte(new):
            self.sanitizer.fail("I33", f"spte {old:#x} at {hpa:#x}", f"becomes mmio spte {new:#x}")

    def _on_use(self, gfn: int) -> None:
        vcpu = self.kvm.loaded
        if vcpu is None:
            return
        generation = vcpu.memslots.generation
        if generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
            self.sanitizer.fail("I32", f"vcpu {vcpu.id} takes gfn {gfn:#x} for mmio", "an update is in progress")
        if any(slot.base_gfn <= gfn < slot.end_gfn for slot in vcpu.memslots.slots):
            self.sanitizer.fail("I32", f"vcpu {vcpu.id} takes gfn {gfn:#x} for mmio", "a slot has it")

    def _on_lock_release(self, lock: Any) -> None:
        if lock is self.kvm.slots_lock:
            self.validate()
