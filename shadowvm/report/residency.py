"""Guest memory by time: which pages an spte maps, which have a frame, which are in swap.

Only gfns that the trace names have a row. A cell holds page-time: how long how many of its pages were in a state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bins import Axis, Flags, Floats, Ints, distinct
from .host import HostPtes, is_present, is_swapped
from .sptes import Lives

HUGE = 512


class Rows(NamedTuple):
    """gfns, in order, each in one of `number` rows: those of row r are gfns[edges[r]:edges[r + 1]]."""

    gfns: Ints
    edges: Ints

    @property
    def number(self) -> int:
        """Rows."""
        return len(self.edges) - 1

    @property
    def sizes(self) -> Ints:
        """Pages of each row."""
        return np.diff(self.edges)

    def row_of(self, gfn: Ints) -> Ints:
        """The row of each gfn, -1 for those that have none."""
        at = np.minimum(np.searchsorted(self.gfns, gfn), max(len(self.gfns) - 1, 0))
        found = self.gfns[at] == gfn if len(self.gfns) else np.zeros(len(gfn), bool)
        return np.where(found, np.searchsorted(self.edges, at, "right") - 1, -1)

    def span(self, row: int) -> tuple[int, int]:
        """First and last gfn of a row."""
        return int(self.gfns[self.edges[row]]), int(self.gfns[self.edges[row + 1] - 1])


def touched_rows(ptes: HostPtes, lives: Lives, limits: tuple[int, int], rows: int) -> Rows:
    """The gfns that are ever backed or mapped, inside the limits (gfn, gfn after the last), in at most `rows`."""
    large = np.unique(lives.gfn[(lives.level > 1) & (lives.gfn >= 0)])
    parts = [ptes.gfn, ptes.before[0], lives.gfn[lives.level == 1], (large[:, None] + np.arange(HUGE)).ravel()]
    gfns = distinct(np.concatenate(parts))
    gfns = gfns[(gfns >= max(limits[0], 0)) & (gfns < limits[1])]
    count = min(rows, len(gfns))
    edges = np.arange(count + 1) * len(gfns) // max(count, 1)
    return Rows(gfns, edges)


class Residency(NamedTuple):
    """Of each cell (row, bin), the pages that were so, on average: mapped by an spte; with a frame; in swap."""

    rows: Rows
    axis: Axis
    mapped: Floats
    backed: Floats
    swapped: Floats


def find_residency(rows: Rows, axis: Axis, ptes: HostPtes, lives: Lives) -> Residency:
    """The states of all pages over time. A page that two sptes map counts once, as far as these have one size."""
    gfn, there = ptes.before
    row = rows.row_of(np.concatenate([gfn, ptes.gfn]))
    now = np.concatenate([np.full(len(gfn), axis.start), ptes.now])
    old, new = np.concatenate([np.zeros_like(there), ptes.old]), np.concatenate([there, ptes.new])
    size = rows.sizes[:, None]
    mapped = np.clip(_mapped(rows, axis, lives), 0, size)
    present = is_present(new).astype(np.int64) - is_present(old)
    # What an spte maps has a frame, whether the trace shows how it came or not.
    backed = np.clip(_integrate(rows, axis, row, now, present), mapped, size)
    swapped = is_swapped(new).astype(np.int64) - is_swapped(old)
    return Residency(rows, axis, mapped, backed, np.clip(_integrate(rows, axis, row, now, swapped), 0, size - backed))


def _mapped(rows: Rows, axis: Axis, lives: Lives) -> Floats:
    small = (lives.level == 1) & (lives.gfn >= 0)
    gfn, now, change = _first_and_last(lives, small)
    total = _integrate(rows, axis, rows.row_of(gfn), now, change)
    gfn, now, change = _first_and_last(lives, (lives.level > 1) & (lives.gfn >= 0))
    blocks, which = np.unique(gfn, return_inverse=True)
    pages = rows.row_of((blocks[:, None] + np.arange(HUGE)).ravel())
    # (block, row) of every piece of a block that lies in one row, and its pages.
    pieces, size = np.unique(
        np.repeat(np.arange(len(blocks)), HUGE) * (rows.number + 1) + pages + 1, return_counts=True
    )
    block, row = np.divmod(pieces, rows.number + 1)
    first = np.searchsorted(block, which.ravel())
    many = np.searchsorted(block, which.ravel(), "right") - first
    piece = np.repeat(first - np.cumsum(many) + many, many) + np.arange(int(many.sum()))
    return total + _integrate(rows, axis, row[piece] - 1, np.repeat(now, many), np.repeat(change, many) * size[piece])


def _first_and_last(lives: Lives, chosen: Flags) -> tuple[Ints, Ints, Ints]:
    """(gfn, ns, +1 or -1): when the first spte of a gfn comes, and when the last one goes."""
    gfn = np.concatenate([lives.gfn[chosen], lives.gfn[chosen & lives.ended]])
    event = np.concatenate([lives.born[chosen], lives.died[chosen & lives.ended]])
    now = np.concatenate([lives.set[chosen], lives.zapped[chosen & lives.ended]])
    change = np.concatenate([np.ones(int(chosen.sum()), np.int64), np.full(int((chosen & lives.ended).sum()), -1)])
    order = np.lexsort((event, gfn))
    gfn, now, change = gfn[order], now[order], change[order]
    level = np.cumsum(change)
    first = np.flatnonzero(np.diff(gfn, prepend=-1))
    # Every gfn starts from 0.
    level -= np.repeat((level - change)[first], np.diff(first, append=len(gfn)))
    moves = ((change > 0) & (level == 1)) | ((change < 0) & (level == 0))
    return gfn[moves], now[moves], change[moves]


def _integrate(rows: Rows, axis: Axis, row: Ints, now: Ints, change: Ints) -> Floats:
    """What changes at moments come to, on average over each cell.

    A change in the middle of a bin counts half in it and fully in those behind it: two entries of an array whose
    running sum is the answer.
    """
    chosen = (row >= 0) & (change != 0)
    row, change = row[chosen], change[chosen]
    place = axis.place(now[chosen])
    bin_ = np.minimum(place.astype(np.int64), axis.bins)
    rest = bin_ + 1 - place
    width = axis.bins + 2
    at = row * width + bin_
    sums = np.bincount(at, change * rest, rows.number * width) + np.bincount(
        at + 1, change * (1 - rest), rows.number * width
    )
    return np.cumsum(sums.reshape(rows.number, width).astype(np.float64), axis=1)[:, : axis.bins]


def count_cells(rows: Rows, axis: Axis, gfn: Ints, now: Ints) -> Ints:
    """Events in each cell."""
    row = rows.row_of(gfn)
    chosen = (row >= 0) & axis.inside(now)
    at = row[chosen] * axis.bins + axis.bin(now[chosen])
    return np.bincount(at, minlength=rows.number * axis.bins).reshape(rows.number, axis.bins)
