"""The forks of a machine's process that going back starts from: which to keep, within a number and a budget of memory.

They lie densely where the user is and thinly far away, since most ways back are short. The first one, at the start of
the run, always stays. No result depends on which there are.
"""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Iterable
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
        self._used = 0

    @property
    def positions(self) -> list[Position]:
        """Where they are, in order."""
        return [each.position for each in self._all]

    @property
    def first(self) -> Checkpoint:
        """The start of the run."""
        return self._all[0]

    def before(self, where: Position) -> list[Checkpoint]:
        """Those before a position, in order."""
        return [each for each in self._all if each.position.order < where.order]

    def nearest(self, where: Position) -> Checkpoint:
        """nearest(), of these."""
        return nearest(self._all, where)

    def before_event(self, event: int) -> Checkpoint:
        """The last one before an event, or the first."""
        return max((each for each in self._all if each.position.events < event), key=_order, default=self.first)

    def has_near(self, where: Position, instructions: int, events: int) -> bool:
        """Whether there is one at a position, or before it but not further than this."""
        near = max((each for each in self._all if each.position.order <= where.order), key=_order).position
        return where.instructions - near.instructions < instructions and where.events - near.events < events

    def add(self, where: Position, worker: Worker) -> None:
        """Freeze a copy of a worker, and let go of what is too much then."""
        self._used += memory_of(worker.pid, "Private_Dirty")
        insort(self._all, Checkpoint(where, worker.fork()), key=_order)
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
        times = [_time(each) for each in self.positions]
        times.append(max(_time(here), times[-1]))
        now = _time(here)
        at = min(range(1, len(self._all)), key=lambda k: (times[k + 1] - times[k - 1]) / (abs(now - times[k]) + 1))
        self._all.pop(at).worker.close()

    def forget_after(self, where: Position) -> None:
        """Let go of all that are behind a position."""
        behind = [each for each in self._all if each.position.order > where.order]
        self._all = [each for each in self._all if each.position.order <= where.order]
        for each in behind:
            each.worker.close()

    def close(self) -> None:
        """End all."""
        for each in self._all:
            each.worker.close()


def nearest(checkpoints: Iterable[Checkpoint], where: Position) -> Checkpoint:
    """The last one from which a position between instructions lies ahead, or is there. Its events may be unknown, 0:
    then it is the first place with so many instructions.
    """

    def leads_there(here: Position) -> bool:
        if here.instructions < where.instructions and not where.events:
            return True
        return here.instructions <= where.instructions and here.order <= where.order

    return max((each for each in checkpoints if leads_there(each.position)), key=_order)


def _order(checkpoint: Checkpoint) -> tuple[int, bool, int]:
    return checkpoint.position.order


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
