"""Ageing in the TDP MMU, without mmu_lock (kvm_tdp_mmu_age_gfn_range of tdp_mmu.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from ...x86 import PT_ACCESSED, PT_PAGE_SIZE
from .access_track import mark_spte_old
from .spte import SPTE_MMU_PRESENT
from .tdp_iter import TdpIter, tdp_leaf
from .tdp_mmu import tdp_mmu_roots
from .tdp_spte import gfn_and_level, tdp_mmu_set_spte_atomic

if TYPE_CHECKING:
    from ..vm import Kvm


def kvm_tdp_mmu_age_gfn_range(kvm: Kvm, as_id: int, first: Gfn, last: Gfn, *, clear: bool) -> bool:
    """Whether any leaf of a range was used since it was aged; `clear` makes them old."""
    young = False
    kvm.rcu.read_lock()
    for root in tdp_mmu_roots(kvm, as_id):
        if last - first == 1:
            sptep = tdp_leaf(kvm, root, first)
            if sptep >= 0 and kvm.q[sptep] & PT_ACCESSED:
                young = True
                if clear:
                    _make_old(kvm, sptep, *gfn_and_level(kvm, sptep))
            continue
        walk = TdpIter(kvm, root, first, last)
        while walk.next():
            spte = walk.old_spte
            is_leaf = spte & SPTE_MMU_PRESENT and (walk.level == 1 or spte & PT_PAGE_SIZE)
            if is_leaf and spte & PT_ACCESSED:
                young = True
                if clear:
                    _make_old(kvm, walk.sptep, walk.gfn, walk.level)
    kvm.rcu.read_unlock()
    return young


def _make_old(kvm: Kvm, sptep: int, gfn: Gfn, level: int) -> None:
    """If somebody else changes the entry just now, it is hardly old: let it be."""
    old = kvm.q[sptep]
    tdp_mmu_set_spte_atomic(kvm, sptep, gfn, level, old, mark_spte_old(old))
