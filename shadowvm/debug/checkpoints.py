"""The forks of a machine's process that going back starts from: which to keep, within a number and a budget of memory.

They lie densely where the user is and thinly far away, since most ways back are short. The first one, at the start of
the run, always stays. No result depends on which there are.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from .position import Position
from .worker import Worker

MAX_CHECKPOINTS = 24
DEFAULT_MEMORY = 1 << 30
EVENT_COST = 200
"""An event takes about as long as so many instructions."""


class Checkpoint(NamedTuple):
    """A frozen worker, and where it stands."""

    position: Position
    worker: Worker


class Checkpoints:
    """See the module. limit: how many; memory: bytes that all may take, each with its part of what it shares."""

    def __init__(self, first: Checkpoint, limit: int, memory: int) -> None:
        self.limit = limit
        self.memory = memory
        self._all = [first]
        self._positions = [first.position]
        self._used = 0

    @property
    def positions(self) -> list[Position]:
        """Where they are, in order."""
        return list(self._positions)

    @property
    def first(self) -> Checkpoint:
        """The start of the run."""
        return self._all[0]

    def nearest(self, where: Position) -> Checkpoint:
        """The last one at a position or before it."""
        return self._all[bisect_right(self._positions, where) - 1]

    def before(self, where: Position) -> list[Checkpoint]:
        """Those before a position, in order."""
        return self._all[: bisect_left(self._positions, where)]

    def before_event(self, event: int) -> Checkpoint:
        """The last one before an event, or the first."""
        count = bisect_left(self._positions, event, key=lambda each: each.events)
        return self._all[max(count - 1, 0)]

    def has_near(self, where: Position, instructions: int, events: int) -> bool:
        """Whether there is one at a position, or before it but not further than this."""
        near = self.nearest(where).position
        return where.instructions - near.instructions < instructions and where.events - near.events < events

    def add(self, where: Position, worker: Worker) -> None:
        """Freeze a copy of a worker, and let go of what is too much then."""
        self._used += memory_of(worker.pid, "Private_Dirty")
        at = bisect_left(self._positions, where)
        self._all.insert(at, Checkpoint(where, worker.fork()))
        self._positions.insert(at, where)
        while len(self._all) > self.limit:
            self._drop(where)
        if self._used > self.memory:
            self._measure_and_drop(where)

    def _measure_and_drop(self, here: Position) -> None:
        while True:
            self._used = sum(memory_of(each.worker.pid, "Pss") for each in self._all)
            if self._used <= self.memory or len(self._all) == 1:
                return
            self._drop(here)

    def _drop(self, here: Position) -> None:
        """The one that is missed least: its neighbours are near to each other, for so far away from here."""
        times = [_time(each) for each in self._positions]
        times.append(max(_time(here), times[-1]))
        now = _time(here)
        at = min(range(1, len(self._all)), key=lambda k: (times[k + 1] - times[k - 1]) / (abs(now - times[k]) + 1))
        self._all.pop(at).worker.close()
        del self._positions[at]

    def close(self) -> None:
        """End all."""
        for each in self._all:
            each.worker.close()


def _time(where: Position) -> int:
    return where.instructions + EVENT_COST * where.events


def memory_of(pid: int, kind: str) -> int:
    """Bytes of a process: its Private_Dirty, which it shares with nobody, or Pss, with its part of what it shares. 0
    where that cannot be known.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            found = re.search(rf"^{kind}: +(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return 0 if found is None else int(found[1]) << 10
