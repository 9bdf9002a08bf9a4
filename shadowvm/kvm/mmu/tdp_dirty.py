"""Dirty logging in the TDP MMU: leaves lose W or, with PML, D, so that the next store is noticed (tdp_mmu.c).

They stay MMU-writable, and TLBs may hold them writable still: the caller flushes whatever these functions found
(invariant I31). With PML the CPU itself notes stores; here its notes are the D bits, which kvm_arch_sync_dirty_log()
collects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from ...x86 import PT_DIRTY, PT_PAGE_SIZE, PT_WRITABLE
from .spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from .tdp_iter import TdpIter
from .tdp_mmu import kvm_tdp_mmu_put_root, tdp_leaves, tdp_mmu_iter_cond_resched, tdp_mmu_roots
from .tdp_spte import gfn_and_level, tdp_mmu_set_spte, tdp_mmu_set_spte_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..memslot import MemSlot
    from ..vm import Kvm


def kvm_tdp_mmu_log_slot(kvm: Kvm, slot: MemSlot) -> None:
    """Logging begins: kvm_tdp_mmu_wrprot_slot() or, with PML, kvm_tdp_mmu_clear_dirty_slot(). Takes mmu_lock for read.

    A large leaf loses W in either case, so that a store splits it: its D bit would speak for too many pages.
    """
    kvm.mmu_lock.acquire_read()
    kvm.rcu.read_lock()
    for walk in _leaves_of_slot(kvm, slot):
        mask = PT_DIRTY if kvm.pml and walk.level == 1 else PT_WRITABLE
        while walk.old_spte & mask and walk.old_spte & SPTE_MMU_PRESENT:
            new = walk.old_spte & ~mask
            if tdp_mmu_set_spte_atomic(kvm, walk.sptep, walk.gfn, walk.level, walk.old_spte, new):
                break
            walk.old_spte = kvm.q[walk.sptep]
    kvm.rcu.read_unlock()
    kvm.mmu_lock.release_read()


def _leaves_of_slot(kvm: Kvm, slot: MemSlot) -> Iterator[TdpIter]:
    """The walk at each leaf of a slot, in every root; yields mmu_lock where others wait for it."""
    for root in tdp_mmu_roots(kvm, slot.as_id):
        if root.invalid:
            continue
        root.root_count += 1
        walk = TdpIter(kvm, root, slot.base_gfn, slot.end_gfn)
        while walk.next():
            if tdp_mmu_iter_cond_resched(kvm, walk, False, shared=True):
                continue
            if walk.old_spte & SPTE_MMU_PRESENT and (walk.level == 1 or walk.old_spte & PT_PAGE_SIZE):
                yield walk
        kvm_tdp_mmu_put_root(kvm, root)


def kvm_tdp_mmu_clear_dirty_pt_masked(kvm: Kvm, slot: MemSlot, gfns: Iterable[Gfn]) -> None:
    """The log forgets these frames: their next store must be noticed. mmu_lock is held for write."""
    for gfn in gfns:
        for sptep in tdp_leaves(kvm, slot.as_id, gfn):
            spte = kvm.q[sptep]
            first, level = gfn_and_level(kvm, sptep)
            mask = PT_DIRTY if kvm.pml and level == 1 else PT_WRITABLE
            if spte & mask:
                tdp_mmu_set_spte(kvm, sptep, first, level, spte & ~mask)


def kvm_tdp_mmu_write_protect_gfn(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> bool:
    """Take W for good: a fault must not give it back. mmu_lock is held for write. True: the caller flushes.

    What counts is MMU_WRITABLE: a leaf whose W is gone for the log may be in a TLB with it.
    """
    flush = False
    for sptep in tdp_leaves(kvm, slot.as_id, gfn):
        spte = kvm.q[sptep]
        if spte & (PT_WRITABLE | SPTE_MMU_WRITABLE):
            new = spte & ~(PT_WRITABLE | SPTE_MMU_WRITABLE)
            tdp_mmu_set_spte(kvm, sptep, *gfn_and_level(kvm, sptep), new)
            flush = True
    return flush


def kvm_arch_sync_dirty_log(kvm: Kvm, slot: MemSlot) -> None:
    """With PML: enter into the log what D bits say. mmu_lock is held for write."""
    if not kvm.pml or slot.dirty_bitmap is None:
        return
    kvm.rcu.read_lock()
    for root in tdp_mmu_roots(kvm, slot.as_id):
        walk = TdpIter(kvm, root, slot.base_gfn, slot.end_gfn)
        while walk.next():
            if walk.level == 1 and walk.old_spte & SPTE_MMU_PRESENT and walk.old_spte & PT_DIRTY:
                slot.dirty_bitmap.add(walk.gfn)
    kvm.rcu.read_unlock()
