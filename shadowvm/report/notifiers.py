"""Invalidations: what happened between mmu_notifier_invalidate_range_start and _end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bins import Ints, Words
from .timeline import Timeline, between


class Batches(NamedTuple):
    """One row for each range whose end the trace shows, in order of start.

    start, end: events. name: MMU_NOTIFY_* without the prefix. pages: of the range. zapped, flushes: leaf sptes taken
    away and kvm_flush_remote_tlbs, by the task that invalidates.
    """

    start: Ints
    end: Ints
    now: Ints
    name: Words
    pages: Ints
    zapped: Ints
    flushes: Ints

    def around(self, timeline: Timeline, events: Ints) -> Ints:
        """The row in which each event happened (-1: no event), or -1. Of nested ranges, the outermost."""
        if not len(self.start) or not timeline.total:
            return np.full(len(events), -1, np.int64)
        order = np.argsort(timeline.place[self.start])
        starts, ends = timeline.place[self.start][order], timeline.place[self.end][order]
        # An outer range ends last: what a place is in is told by the greatest end so far.
        reach = np.maximum.accumulate(ends)
        outer = np.searchsorted(reach, reach, "left")
        place = timeline.place[events]
        at = np.searchsorted(starts, place, "right") - 1
        inside = (events >= 0) & (at >= 0) & (place < reach[at])
        return np.where(inside, order[outer[at]], -1)


def find_batches(timeline: Timeline, zapped: Ints) -> Batches:
    """Every invalidation; `zapped` are the events that take a leaf away."""
    start, end, row = _pairs(timeline)
    first, last = timeline.place[start], timeline.place[end]
    low = timeline.field("mmu_notifier_invalidate_range_start", "range.start")[row]
    high = timeline.field("mmu_notifier_invalidate_range_start", "range.end")[row]
    names = timeline.words("mmu_notifier_invalidate_range_start", "range.event.name")
    return Batches(
        start=start,
        end=end,
        now=timeline.now[start],
        name=np.array(names, object)[row],
        pages=np.maximum(high - low, 0) >> 12,
        zapped=between(np.sort(timeline.place[zapped]), first, last),
        flushes=between(timeline.places("kvm_flush_remote_tlbs"), first, last),
    )


def _pairs(timeline: Timeline) -> tuple[Ints, Ints, Ints]:
    """(start, end, row among the starts) of each. Ranges of one task nest; those of different tasks overlap freely."""
    begins = timeline.hits["mmu_notifier_invalidate_range_start"]
    ends = timeline.hits["mmu_notifier_invalidate_range_end"]
    steps = [(event, task, row) for row, (event, task) in enumerate(_plain(begins.event, begins.task))]
    steps += [(event, task, -1) for event, task in _plain(ends.event, ends.task)]
    # One that failed has no end.
    failed = timeline.hits["mmu_notifier_invalidate_range_failed"]
    steps += [(event, task, -2) for event, task in _plain(failed.event, failed.task)]
    opened: dict[int, list[tuple[int, int]]] = {}
    pairs: list[tuple[int, int, int]] = []
    for event, task, row in sorted(steps):
        stack = opened.setdefault(task, [])
        if row >= 0:
            stack.append((event, row))
        elif stack:
            start, number = stack.pop()
            if row == -1:
                pairs.append((start, event, number))
    found = np.array(sorted(pairs), np.int64).reshape(-1, 3)
    return found[:, 0], found[:, 1], found[:, 2]


def _plain(event: Ints, task: Ints) -> list[tuple[int, int]]:
    return list(zip(event.tolist(), task.tolist(), strict=True))
