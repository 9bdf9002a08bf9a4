"""Dirty logging by bitmap: which pages of a slot were written since it was last asked (virt/kvm/kvm_main.c).

While a slot has KVM_MEM_LOG_DIRTY_PAGES, whatever makes a page writable for the guest, or writes it for the guest,
sets the page's bit. Harvesting takes the bits and the write access: the next store faults, and sets the bit again. TLBs
are flushed before the harvest returns, so that none lets a store pass unseen (invariants I17, I30).
"""

from __future__ import annotations

import errno
from enum import IntFlag
from typing import TYPE_CHECKING

from ..addr import Gfn
from ..errors import KvmError
from ..events import kvm_clear_dirty_log as trace_clear_dirty_log
from ..events import kvm_get_dirty_log as trace_get_dirty_log
from ..x86 import PT_WRITABLE
from .dirty_ring import DirtyRingLog
from .memslot import KVM_MEM_LOG_DIRTY_PAGES, MemSlot
from .mmu.rmap import rmap_sptes
from .mmu.split import kvm_mmu_recover_huge_pages, kvm_mmu_try_split_huge_pages
from .mmu.spte import mmu_spte_set
from .mmu.tdp_dirty import kvm_arch_sync_dirty_log, kvm_tdp_mmu_clear_dirty_pt_masked, kvm_tdp_mmu_log_slot
from .mmu.tdp_huge import kvm_tdp_mmu_recover_huge_pages, kvm_tdp_mmu_try_split_huge_pages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .vm import Kvm

CLEAR_ALIGN = 64
"""KVM_CLEAR_DIRTY_LOG works on whole words of the bitmap."""


class ManualProtect(IntFlag):
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: harvesting takes nothing away, KVM_CLEAR_DIRTY_LOG does."""

    OFF = 0
    ENABLE = 1
    INITIALLY_SET = 2
    """A new bitmap is full, and enabling the log does not write-protect anything."""


def kvm_alloc_dirty_bitmap(kvm: Kvm, slot: MemSlot) -> None:
    """Logging begins: an empty bitmap, or a full one; where there are rings, what is in them."""
    if kvm.dirty_ring_size:
        slot.dirty_bitmap = DirtyRingLog(kvm, slot)
        return
    full = kvm.manual_dirty_log_protect & ManualProtect.INITIALLY_SET
    slot.dirty_bitmap = set(map(Gfn, range(slot.base_gfn, slot.end_gfn))) if full else set()


def kvm_mmu_slot_apply_flags(kvm: Kvm, slot: MemSlot) -> None:
    """Logging was turned on: take write access from every page; or off: large sptes may come back. May sleep.

    Large sptes are split, or lose write access as a whole, and the store that faults then gets a small one. The flush
    is unconditional (invariant I31).
    """
    if not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        if kvm.mm.huge_pmds:
            (kvm_tdp_mmu_recover_huge_pages if kvm.tdp_mmu_enabled else kvm_mmu_recover_huge_pages)(kvm, slot)
        return
    if kvm.dirty_ring_size or not kvm.manual_dirty_log_protect & ManualProtect.INITIALLY_SET:
        _split_huge_pages(kvm, slot, slot.base_gfn, slot.end_gfn)
        kvm.mmu_lock.acquire()
        kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, sorted({*slot.rmap, *slot.rmap_large}))
        kvm.mmu_lock.release()
        if kvm.tdp_mmu_enabled:
            kvm_tdp_mmu_log_slot(kvm, slot)
    kvm.flush_remote_tlbs()


def _split_huge_pages(kvm: Kvm, slot: MemSlot, first: Gfn, last: Gfn) -> None:
    if kvm.params.eager_page_split and kvm.stat.pages_2m:
        split = kvm_tdp_mmu_try_split_huge_pages if kvm.tdp_mmu_enabled else kvm_mmu_try_split_huge_pages
        split(kvm, slot, first, last)


def kvm_get_dirty_log(kvm: Kvm, slot_id: int) -> bytes:
    """KVM_GET_DIRTY_LOG: a bit for each page of the slot, rounded up to words of 64. May sleep.

    Raises:
        KvmError: ENOENT, the slot is not there or has no log; ENXIO, the log is in the rings.
    """
    kvm.slots_lock.acquire()
    try:
        slot = _logged_slot(kvm, slot_id)
        kvm.mmu_lock.acquire()
        kvm_arch_sync_dirty_log(kvm, slot)
        assert slot.dirty_bitmap is not None
        dirty = sorted(slot.dirty_bitmap)
        clears = not kvm.manual_dirty_log_protect & ManualProtect.ENABLE
        if clears:
            slot.dirty_bitmap.clear()
            kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, dirty)
        kvm.mmu_lock.release()
        if dirty and clears:
            kvm.flush_remote_tlbs()
        if trace_get_dirty_log.on:
            trace_get_dirty_log(slot_id, dirty, clears)
        return _bitmap(slot, dirty)
    finally:
        kvm.slots_lock.release()


def kvm_clear_dirty_log(kvm: Kvm, slot_id: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
    """KVM_CLEAR_DIRTY_LOG: forget the pages whose bit is set in `bitmap`, which begins at `first_page` of the slot.

    Raises:
        KvmError: ENOENT and ENXIO as above; EINVAL for pages that are not whole words of the slot's.
    """
    kvm.slots_lock.acquire()
    try:
        slot = _logged_slot(kvm, slot_id)
        aligned = num_pages % CLEAR_ALIGN == 0 or first_page + num_pages == slot.npages
        if first_page % CLEAR_ALIGN or not aligned or not 0 <= first_page <= first_page + num_pages <= slot.npages:
            raise KvmError(errno.EINVAL, f"memory slot {slot_id}: pages {first_page}+{num_pages} are not whole words")
        if len(bitmap) < num_pages + 7 >> 3:
            raise KvmError(errno.EINVAL, f"memory slot {slot_id}: {len(bitmap)} bytes do not hold {num_pages} bits")
        wanted = (Gfn(slot.base_gfn + first_page + i) for i in range(num_pages) if bitmap[i >> 3] >> (i & 7) & 1)
        assert slot.dirty_bitmap is not None
        # Those that were there before the log was turned on with a full bitmap.
        _split_huge_pages(kvm, slot, Gfn(slot.base_gfn + first_page), Gfn(slot.base_gfn + first_page + num_pages))
        kvm.mmu_lock.acquire()
        kvm_arch_sync_dirty_log(kvm, slot)
        cleared = [gfn for gfn in wanted if gfn in slot.dirty_bitmap]
        slot.dirty_bitmap.difference_update(cleared)
        kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, cleared)
        kvm.mmu_lock.release()
        if cleared:
            kvm.flush_remote_tlbs()
        if trace_clear_dirty_log.on:
            trace_clear_dirty_log(slot_id, cleared)
    finally:
        kvm.slots_lock.release()


def _logged_slot(kvm: Kvm, slot_id: int) -> MemSlot:
    if kvm.dirty_ring_size:
        raise KvmError(errno.ENXIO, f"memory slot {slot_id}: its dirty log is in the rings")
    slot = kvm.id_to_memslot(slot_id)
    if slot is None or slot.dirty_bitmap is None or not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        raise KvmError(errno.ENOENT, f"memory slot {slot_id}: there is no dirty log")
    return slot


def kvm_arch_mmu_enable_log_dirty_pt_masked(kvm: Kvm, slot: MemSlot, gfns: Iterable[Gfn]) -> None:
    """Take W, or with PML D, from these frames' sptes. Under mmu_lock; they stay MMU-writable: the caller flushes."""
    if kvm.tdp_mmu_enabled:
        kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, gfns)
        return
    for gfn in gfns:
        for sptep in rmap_sptes(slot, gfn):
            spte = kvm.q[sptep]
            if spte & PT_WRITABLE:
                mmu_spte_set(kvm, sptep, spte & ~PT_WRITABLE)


def _bitmap(slot: MemSlot, dirty: Iterable[Gfn]) -> bytes:
    bits = bytearray((slot.npages + 63 >> 6) * 8)
    for gfn in dirty:
        page = gfn - slot.base_gfn
        bits[page >> 3] |= 1 << (page & 7)
    return bytes(bits)
