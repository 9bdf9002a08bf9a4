"""Traversal of two-dimensional tables in the order of their gfns (arch/x86/kvm/mmu/tdp_iter.c).

    iter = TdpIter(kvm, root, first, last, min_level=1)
    while iter.next():
        ... iter.gfn, iter.level, iter.sptep, iter.old_spte ...

A present link above `min_level` is shown and then descended into, if it is one still. Between two steps the caller may
yield (tdp_mmu_iter_cond_resched): the walk then starts anew, at the gfn that it would have come to, since any table may
have gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from ...x86 import PT_ADDR_MASK, PT_PAGE_SIZE
from .spte import SPTE_MMU_PRESENT

if TYPE_CHECKING:
    from ..vm import Kvm
    from .shadow import KvmMmuPage


class TdpIter:
    """See the module. The caller is an RCU reader.

    next_last_level_gfn: where a restart begins. yielded_gfn: where the last yield was; yielded: since the last step.
    steps: since the last yield.
    """

    __slots__ = (
        "_last",
        "_path",
        "gfn",
        "kvm",
        "level",
        "min_level",
        "next_last_level_gfn",
        "old_spte",
        "root",
        "sptep",
        "steps",
        "yielded",
        "yielded_gfn",
    )

    def __init__(self, kvm: Kvm, root: KvmMmuPage, first: Gfn, last: Gfn, min_level: int = 1) -> None:
        self.kvm = kvm
        self.root = root
        self._last = last
        self.min_level = min_level
        self.next_last_level_gfn = self.yielded_gfn = first
        self.yielded = True
        self._path: list[int] = [0] * (root.level + 1)
        self.level = root.level
        self.gfn = first
        self.sptep = self.old_spte = self.steps = 0

    def next(self) -> bool:
        """Go to the next entry, top-down; False behind the last one."""
        self.steps += 1
        if self.yielded:
            self._restart()
        elif not self._try_step_down() and not self._try_step_side():
            return False
        return self.gfn < self._last

    def _restart(self) -> None:
        """tdp_iter_restart(): from the root, at the gfn that comes next."""
        self.yielded = False
        self.steps = 0
        self.yielded_gfn = self.next_last_level_gfn
        self.level = self.root.level
        self._path[self.level] = self.root.q
        self._refresh(self.next_last_level_gfn)

    def _refresh(self, gfn: int) -> None:
        """Stand at the entry of the current level that covers `gfn`."""
        shift = 9 * (self.level - 1)
        self.sptep = self._path[self.level] + (gfn >> shift & 511)
        self.gfn = Gfn(gfn >> shift << shift)
        self.old_spte = self.kvm.q[self.sptep]

    def _try_step_down(self) -> bool:
        if self.level == self.min_level:
            return False
        # It may have become a table, or ceased to be one, since the caller saw it.
        spte = self.old_spte = self.kvm.q[self.sptep]
        if not spte & SPTE_MMU_PRESENT or spte & PT_PAGE_SIZE:
            return False
        self.level -= 1
        self._path[self.level] = (spte & PT_ADDR_MASK) >> 3
        self._refresh(self.next_last_level_gfn)
        return True

    def _try_step_side(self) -> bool:
        """To the entry beside, of a table above if this was the last of its table."""
        gfn = self.gfn + (1 << 9 * (self.level - 1))
        while not gfn >> 9 * (self.level - 1) & 511:
            if self.level == self.root.level:
                return False
            self.level += 1
        self.next_last_level_gfn = Gfn(gfn)
        self._refresh(gfn)
        return True


def tdp_leaf(kvm: Kvm, root: KvmMmuPage, gfn: int) -> int:
    """Index of the leaf spte that maps a gfn, -1 if there is none: one look instead of a traversal."""
    q = kvm.q
    table = root.q
    for shift in (27, 18, 9):
        sptep = table + (gfn >> shift & 511)
        spte = q[sptep]
        if not spte & SPTE_MMU_PRESENT:
            return -1
        if spte & PT_PAGE_SIZE:
            return sptep
        table = (spte & PT_ADDR_MASK) >> 3
    sptep = table + (gfn & 511)
    return sptep if q[sptep] & SPTE_MMU_PRESENT else -1
