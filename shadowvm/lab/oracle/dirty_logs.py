"""What the VMM does to learn which pages were written, in each of the ways that KVM offers."""

from __future__ import annotations

from ...kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from ...kvm.dirty_ring import kvm_enable_dirty_log_ring
from ...kvm.dirty_ring_reset import dirty_ring_entries, reset_dirty_rings
from ...kvm.vm import Kvm
from . import layout as at

_RING_BYTES = 4096
"""The smallest ring, so that it gets full."""


class DirtyLogs:
    """Slots are named as in the ioctls, pages as everywhere in the oracle. kind: one of setup.DIRTY_LOGS."""

    def __init__(self, kvm: Kvm, kind: str) -> None:
        self._kvm = kvm
        self._in_rings: dict[int, set[int]] = {}
        self.is_ring = kind == "ring"
        self.is_manual = kind in ("manual", "initially-set")
        if self.is_ring:
            kvm_enable_dirty_log_ring(kvm, _RING_BYTES)
        elif self.is_manual:
            initially = ManualProtect.INITIALLY_SET if kind == "initially-set" else ManualProtect.OFF
            kvm.manual_dirty_log_protect = ManualProtect.ENABLE | initially

    def harvest(self, slot: int) -> dict[int, set[int]]:
        """By slot: the pages that its log has. The rings are those of all slots."""
        if self.is_ring:
            self.empty_rings()
            found, self._in_rings = self._in_rings, {}
            return found
        bits = kvm_get_dirty_log(self._kvm, slot)
        return {slot: {page_of(slot, n) for n in range(8 * len(bits)) if bits[n >> 3] >> (n & 7) & 1}}

    def empty_rings(self) -> None:
        """What a full one asks for, whoever harvests next."""
        for vcpu in self._kvm.vcpus:
            for entry in dirty_ring_entries(vcpu):
                self._in_rings.setdefault(entry.slot, set()).add(page_of(entry.slot, entry.offset))
        reset_dirty_rings(self._kvm)

    def clear(self, slot: int, first: int, pages: int) -> set[int]:
        """KVM_CLEAR_DIRTY_LOG of all these pages of the slot; which they are."""
        kvm_clear_dirty_log(self._kvm, slot, first, pages, b"\xff" * (pages + 7 >> 3))
        return {page_of(slot, n) for n in range(first, first + pages)}


def page_of(slot: int, number: int) -> int:
    """A page of a slot."""
    offset = at.SMM_OFFSET if slot == at.IN_SMM | at.MOVING else 0
    return (slot & 0xFFFF) << 16 | number + offset
