"""Emptying the dirty rings: user space harvests entries, and KVM protects their pages anew (virt/kvm/dirty_ring.c).

Between the two the pages are writable still: what is stored there is in the harvest, if user space copies the pages
after the reset. When reset_dirty_rings() returns, every further store is pushed again (invariants I17, I30).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..addr import Gfn
from ..errors import KvmError
from ..events import kvm_clear_dirty_log, kvm_dirty_ring_reset, kvm_get_dirty_log
from .dirty import kvm_arch_mmu_enable_log_dirty_pt_masked
from .dirty_ring import KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET, KvmDirtyRing

if TYPE_CHECKING:
    from .memslot import MemSlot
    from .vcpu import Vcpu
    from .vm import Kvm

BITS_PER_LONG = 64


class DirtyEntry(NamedTuple):
    """What user space reads: the slot as in the ioctls, and the page's number in it."""

    slot: int
    offset: int


def dirty_ring_entries(vcpu: Vcpu) -> list[DirtyEntry]:
    """User space's part of a harvest: what the vCPU has pushed since the last one, oldest first; marked for the reset.

    Raises:
        KvmError: ENXIO, there are no rings.
    """
    ring = _ring_of(vcpu)
    found = []
    for entry in ring.entries():
        if entry.flags & KVM_DIRTY_GFN_F_DIRTY:
            entry.flags = KVM_DIRTY_GFN_F_RESET
            found.append(DirtyEntry(entry.slot, entry.offset))
    if kvm_get_dirty_log.on:
        _trace_harvest(vcpu.kvm, found)
    return found


def _ring_of(vcpu: Vcpu) -> KvmDirtyRing:
    if vcpu.dirty_ring is None:
        raise KvmError(errno.ENXIO, "dirty ring: it is not enabled")
    return vcpu.dirty_ring


def _logged_slots(kvm: Kvm) -> Iterator[tuple[int, MemSlot]]:
    for slots in kvm.address_spaces:
        for slot in slots.slots:
            if slot.dirty_bitmap is not None:
                yield slot.as_id << 16 | slot.id, slot


def _trace_harvest(kvm: Kvm, found: list[DirtyEntry]) -> None:
    for slot_id, slot in _logged_slots(kvm):
        pages = sorted(Gfn(slot.base_gfn + entry.offset) for entry in found if entry.slot == slot_id)
        kvm_get_dirty_log(slot_id, pages, False)


def reset_dirty_rings(kvm: Kvm) -> int:
    """KVM_RESET_DIRTY_RINGS: protect the pages of all harvested entries, flush, and free the entries; their number.

    May sleep.

    Raises:
        KvmError: EINVAL, there are no rings.
    """
    if not kvm.dirty_ring_size:
        raise KvmError(errno.EINVAL, "dirty ring: it is not enabled")
    kvm.slots_lock.acquire()
    cleared: dict[int, list[Gfn]] = {}
    count = sum(_kvm_dirty_ring_reset(kvm, vcpu.dirty_ring, cleared) for vcpu in kvm.vcpus if vcpu.dirty_ring)
    if count:
        kvm.flush_remote_tlbs()
    if kvm_clear_dirty_log.on:
        for slot_id, gfns in cleared.items():
            kvm_clear_dirty_log(slot_id, gfns)
    kvm.slots_lock.release()
    return count


def _kvm_dirty_ring_reset(kvm: Kvm, ring: KvmDirtyRing, cleared: dict[int, list[Gfn]]) -> int:
    """Reset the harvested entries at the ring's front; neighbours of 64 pages are protected together."""
    count = mask = cur_slot = cur_offset = 0
    while ring.reset_index < ring.dirty_index:
        entry = ring.dirty_gfns[ring.reset_index & ring.size - 1]
        if not entry.flags & KVM_DIRTY_GFN_F_RESET:
            break
        entry.flags = 0
        ring.reset_index += 1
        count += 1
        delta = entry.offset - cur_offset
        if mask and entry.slot == cur_slot and 0 <= delta < BITS_PER_LONG:
            mask |= 1 << delta
            continue
        if mask and entry.slot == cur_slot and -BITS_PER_LONG < delta < 0 and mask << -delta < 1 << BITS_PER_LONG:
            cur_offset, mask = entry.offset, mask << -delta | 1
            continue
        if mask:
            _kvm_reset_dirty_gfn(kvm, cur_slot, cur_offset, mask, cleared)
        cur_slot, cur_offset, mask = entry.slot, entry.offset, 1
    if mask:
        _kvm_reset_dirty_gfn(kvm, cur_slot, cur_offset, mask, cleared)
    if kvm_dirty_ring_reset.on:
        kvm_dirty_ring_reset(ring.index, ring.dirty_index, ring.reset_index)
    return count


def _kvm_reset_dirty_gfn(kvm: Kvm, slot_id: int, offset: int, mask: int, cleared: dict[int, list[Gfn]]) -> None:
    """Protect up to 64 pages from `offset` on; nothing if the slot has gone, or is another now. The caller flushes."""
    slot = kvm.id_to_memslot(slot_id)
    if slot is None or slot.dirty_bitmap is None or offset + mask.bit_length() > slot.npages:
        return
    gfns = [Gfn(slot.base_gfn + offset + bit) for bit in range(mask.bit_length()) if mask >> bit & 1]
    kvm.mmu_lock.acquire()
    slot.dirty_bitmap.difference_update(gfns)
    kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, gfns)
    kvm.mmu_lock.release()
    cleared.setdefault(slot_id, []).extend(gfns)
