"""gfn by gfn: what happened to each, and which ones most of it happened to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bins import Axis, Flags, Ints, distinct
from .faults import MAJOR, MINOR, Faults
from .host import HostPtes
from .sptes import Lives


class Gfn(NamedTuple):
    """What happened to one page. writes: faults of stores. mapped: share of the time, by an spte of any size."""

    gfn: int
    faults: int
    writes: int
    major: int
    minor: int
    swapped_in: int
    swapped_out: int
    sptes: int
    zapped: int
    mapped: float


def hottest(axis: Axis, faults: Faults, ptes: HostPtes, lives: Lives, limits: tuple[int, int], top: int) -> list[Gfn]:
    """The gfns inside the limits with most faults; of equal ones those with most zaps, then the lowest."""
    gfns = distinct(np.concatenate([faults.gfn, ptes.gfn, lives.gfn]))
    gfns = gfns[(gfns >= max(limits[0], 0)) & (gfns < limits[1])]

    def count(gfn: Ints, now: Ints, chosen: Flags | bool = True) -> Ints:
        at = np.searchsorted(gfns, gfn)
        found = (gfns[np.minimum(at, len(gfns) - 1)] == gfn) & axis.inside(now) & chosen
        return np.bincount(at[found], minlength=len(gfns))

    if not len(gfns):
        return []
    taken = count(faults.gfn, faults.now)
    zapped = count(lives.gfn, lives.zapped, lives.ended)
    columns = (
        taken,
        count(faults.gfn, faults.now, faults.write),
        count(faults.gfn, faults.now, faults.kind == MAJOR),
        count(faults.gfn, faults.now, faults.kind == MINOR),
        count(ptes.gfn, ptes.now, ptes.swapped_in),
        count(ptes.gfn, ptes.now, ptes.swapped_out),
        count(lives.gfn, lives.set),
        zapped,
    )
    order = np.lexsort((gfns, -zapped, -taken))[:top]
    return [
        Gfn._make((int(gfns[row]), *(int(column[row]) for column in columns), _share(axis, lives, int(gfns[row]))))
        for row in order.tolist()
        if any(column[row] for column in columns)
    ]


def _share(axis: Axis, lives: Lives, gfn: int) -> float:
    """Of the time in which some spte maps it."""
    size = np.where(lives.level > 1, 512, 1)
    mine = (lives.gfn >= 0) & (lives.gfn <= gfn) & (gfn < lives.gfn + size)
    start = np.clip(lives.set[mine], axis.start, axis.stop)
    stop = np.clip(lives.zapped[mine], axis.start, axis.stop)
    total, reached = 0, axis.start
    for low, high in sorted(zip(start.tolist(), stop.tolist(), strict=True)):
        total += max(0, high - max(low, reached))
        reached = max(reached, high)
    return total / (axis.stop - axis.start)
