"""The life of every leaf spte, from the store that sets it to the store that takes it away.

All of it is in spte_change: a leaf is told from a link by its bits, and a large one by PT_PAGE_SIZE.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from ..x86 import PT_ADDR_MASK, PT_PAGE_SIZE, PT_WRITABLE
from .bins import Flags, Ints, Words
from .host import HostPtes
from .notifiers import Batches
from .timeline import Timeline


class Lives(NamedTuple):
    """One row for each leaf that was set. died: event, -1 if it stood at the end; the moments `set`, `zapped` in ns.

    level: 1 or 2. gfn: the first that it maps, -1 if the trace does not say. by: the event of the invalidation that
    zapped it, "" for none.
    """

    born: Ints
    died: Ints
    set: Ints
    zapped: Ints
    level: Ints
    gfn: Ints
    by: Words

    @property
    def ended(self) -> Flags:
        """Those that were zapped."""
        return self.died >= 0


def is_leaf(spte: Ints) -> Flags:
    """Whether it maps a page. A leaf has W only with MMU-writable; a link has W and never MMU-writable."""
    present = spte & SPTE_MMU_PRESENT != 0
    leaf: Flags = present & ((spte & PT_WRITABLE == 0) | (spte & SPTE_MMU_WRITABLE != 0))
    return leaf


def zaps(timeline: Timeline) -> Ints:
    """Events that take a leaf away, in order."""
    old, new = timeline.field("spte_change", "old_spte"), timeline.field("spte_change", "new_spte")
    return timeline.hits["spte_change"].event[is_leaf(old) & ~is_leaf(new)]


def find_lives(timeline: Timeline, batches: Batches, ptes: HostPtes) -> Lives:
    """Every life, by sptep, then in order."""
    event = timeline.hits["spte_change"].event
    sptep = timeline.field("spte_change", "sptep")
    old, new = timeline.field("spte_change", "old_spte"), timeline.field("spte_change", "new_spte")
    moved = np.flatnonzero(is_leaf(old) != is_leaf(new))
    moved = moved[np.argsort(sptep[moved], kind="stable")]
    births = np.flatnonzero(is_leaf(new)[moved])
    following = np.append(moved, -1)[births + 1]
    born = moved[births]
    ended = (following >= 0) & (sptep[following] == sptep[born]) & ~is_leaf(new)[following] if len(born) else born < 0
    died = np.where(ended, event[following] if len(event) else -1, -1)
    gfn = _set_gfns(timeline, sptep[born], event[born], died)
    unnamed = gfn < 0
    gfn[unnamed] = ptes.gfn_of_frame((new[born][unnamed] & PT_ADDR_MASK) >> 12, event[born][unnamed])
    return Lives(
        born=event[born],
        died=died,
        set=timeline.now[event[born]],
        zapped=np.where(ended, timeline.now[died], timeline.stop),
        level=np.where(new[born] & PT_PAGE_SIZE, 2, 1),
        gfn=gfn,
        by=np.append(batches.name, "")[batches.around(timeline, died)],
    )


def _set_gfns(timeline: Timeline, sptep: Ints, born: Ints, died: Ints) -> Ints:
    """What the first kvm_mmu_set_spte says that names the same sptep while it lives; -1 if none does."""
    hits = timeline.hits["kvm_mmu_set_spte"]
    places = timeline.field("kvm_mmu_set_spte", "sptep")
    order = np.lexsort((hits.event, places))
    # One number for (sptep, event), in that order.
    _, numbers = np.unique(np.concatenate([places[order], sptep]), return_inverse=True)
    keys = numbers.ravel() * (timeline.total + 1)
    have, want = keys[: len(order)] + hits.event[order], keys[len(order) :] + born
    at = np.searchsorted(have, want, "right")
    limit = keys[len(order) :] + np.where(died < 0, timeline.total, died)
    found = np.append(have, np.iinfo(np.int64).max)[at] <= limit
    return np.where(found, np.append(timeline.field("kvm_mmu_set_spte", "gfn")[order], -1)[at], -1)
