"""KVM as a subscriber to mmu notifiers (virt/kvm/kvm_main.c, kvm_mmu_notifier_*).

Between range_start and range_end the VM process's mapping of a range changes. range_start zaps every spte of it and
flushes the TLBs before it returns; faults that began earlier see the sequence or the open range and retry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import Gfn, Hva
from ..errors import ModelBug
from ..events import kvm_age_hva, kvm_test_age_hva, kvm_unmap_hva_range
from ..mm.mmu_notifier import MmuNotifier, MmuNotifierRange
from .memslot import MemSlot
from .mmu.rmap import kvm_rmap_age, kvm_zap_rmap, kvm_zap_rmap_large, large_gfns
from .mmu.tdp_age import kvm_tdp_mmu_age_gfn_range
from .mmu.tdp_mmu import kvm_tdp_mmu_unmap_gfn_range
from .stats import NotifierStat

if TYPE_CHECKING:
    from ..mm.mm_struct import MmStruct
    from .vm import Kvm


class KvmMmuNotifier(MmuNotifier):
    """The callbacks. Entered with mmap_lock or an anon_vma lock held, never a page table lock."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.stat = NotifierStat()

    def invalidate_range_start(self, range_: MmuNotifierRange) -> bool:
        """Zap, flush under mmu_lock, and hold off faults in the range until range_end."""
        kvm = self.kvm
        self.stat.invalidate_range_start += 1
        if kvm_unmap_hva_range.on:
            kvm_unmap_hva_range(range_.start, range_.end)
        kvm.mn_active_invalidate_count += 1
        ranges = kvm.gfn_ranges(range_.start, range_.end)
        if not ranges:
            return True
        kvm.mmu_lock.acquire()
        kvm_mmu_invalidate_begin(kvm)
        before = kvm.stat.pages_4k + kvm.stat.pages_2m
        flush = False
        for slot, first, last in ranges:
            kvm_mmu_invalidate_range_add(kvm, first, last)
            if kvm_unmap_gfn_range(kvm, slot, first, last, may_yield=range_.blockable):
                flush = True
        if flush:
            left = kvm.stat.pages_4k + kvm.stat.pages_2m
            self.stat.sptes_zapped += max(before - left, 0)  # faults elsewhere may have come between
            kvm.flush_remote_tlbs()
        kvm.mmu_lock.release()
        return True

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        """Let faults go on: the sequence moves before the count drops (I11)."""
        kvm = self.kvm
        self.stat.invalidate_range_end += 1
        ranges = kvm.gfn_ranges(range_.start, range_.end)
        if ranges:
            kvm.mmu_lock.acquire()
            kvm_mmu_invalidate_end(kvm)
            kvm.mmu_lock.release()
        kvm.mn_active_invalidate_count -= 1
        if kvm.mn_active_invalidate_count < 0:
            raise ModelBug("mmu notifier range_end without a start")
        if not kvm.mn_active_invalidate_count and kvm.mn_memslots_update_waiters:
            waiters, kvm.mn_memslots_update_waiters = kvm.mn_memslots_update_waiters, []
            for task in waiters:
                kvm.mm.host.sched.wake(task)

    def clear_flush_young(self, mm: MmStruct, start: int, end: int) -> bool:
        """Clear A. With a flush: whether a TLB miss sets A again must not depend on what the TLB happens to hold."""
        self.stat.clear_flush_young += 1
        if kvm_age_hva.on:
            kvm_age_hva(start, end)
        young = self._age(start, end, clear=True)
        if young:
            self.kvm.flush_remote_tlbs()
        return young

    def clear_young(self, mm: MmStruct, start: int, end: int) -> bool:
        """As clear_flush_young(); see there for why it flushes too."""
        return self.clear_flush_young(mm, start, end)

    def test_young(self, mm: MmStruct, address: int) -> bool:
        """Whether the page was used, leaving A as it is."""
        self.stat.test_young += 1
        if kvm_test_age_hva.on:
            kvm_test_age_hva(address)
        return self._age(address, address + 1, clear=False)

    def release(self, mm: MmStruct) -> None:
        """The mm is about to free its pages (I7)."""
        self.stat.release += 1
        self.kvm.flush_shadow_all()

    def _age(self, start: int, end: int, *, clear: bool) -> bool:
        young = False
        kvm = self.kvm
        for slot, first, last in kvm.gfn_ranges(Hva(start), Hva(end)):
            if kvm.tdp_mmu_enabled:
                young |= kvm_tdp_mmu_age_gfn_range(kvm, slot.as_id, first, last, clear=clear)
                continue
            rmap = slot.rmap
            for gfn in range(first, last):
                if gfn in rmap and kvm_rmap_age(kvm, rmap[Gfn(gfn)], clear=clear):
                    young = True
            if slot.rmap_large:
                for gfn in large_gfns(slot, first, last):
                    young = kvm_rmap_age(kvm, slot.rmap_large[gfn], clear=clear) or young
        self.stat.young += young
        return young


def kvm_mmu_invalidate_begin(kvm: Kvm) -> None:
    """Open an invalidation. Under mmu_lock. The tracked range starts empty when it is the only one (I14)."""
    if kvm.mmu_invalidate_in_progress == 0:
        kvm.mmu_invalidate_range_start = kvm.mmu_invalidate_range_end = Gfn(0)
    kvm.mmu_invalidate_in_progress += 1


def kvm_mmu_invalidate_range_add(kvm: Kvm, first: Gfn, last: Gfn) -> None:
    """Cover [first, last) too; the range never shrinks while an invalidation is open."""
    if kvm.mmu_invalidate_range_start == kvm.mmu_invalidate_range_end:
        kvm.mmu_invalidate_range_start, kvm.mmu_invalidate_range_end = first, last
    else:
        kvm.mmu_invalidate_range_start = min(kvm.mmu_invalidate_range_start, first)
        kvm.mmu_invalidate_range_end = max(kvm.mmu_invalidate_range_end, last)


def kvm_mmu_invalidate_end(kvm: Kvm) -> None:
    """Close an invalidation. Under mmu_lock."""
    kvm.mmu_invalidate_seq += 1
    kvm.mmu_invalidate_in_progress -= 1
    if kvm.mmu_invalidate_in_progress < 0:
        raise ModelBug("mmu_invalidate_in_progress below 0")


def kvm_unmap_gfn_range(kvm: Kvm, slot: MemSlot, first: Gfn, last: Gfn, *, may_yield: bool) -> bool:
    """Zap the leaf sptes of a range; True if there were any: the caller flushes. The TDP MMU may yield in between.

    A range larger than the rmap itself is served by looking through the rmap.
    """
    if kvm.tdp_mmu_enabled:
        return kvm_tdp_mmu_unmap_gfn_range(kvm, slot.as_id, first, last, may_yield=may_yield)
    flush = False
    if slot.rmap_large:
        for large in large_gfns(slot, first, last):
            flush |= kvm_zap_rmap_large(kvm, slot, large)
    rmap = slot.rmap
    if last - first == 1:
        return kvm_zap_rmap(kvm, slot, first) or flush
    if last - first < len(rmap):
        gfns = [Gfn(gfn) for gfn in range(first, last) if gfn in rmap]
    else:
        gfns = sorted(gfn for gfn in rmap if first <= gfn < last)
    for gfn in gfns:
        flush |= kvm_zap_rmap(kvm, slot, gfn)
    return flush
