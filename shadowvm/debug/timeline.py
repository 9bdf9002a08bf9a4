"""Going back: checkpoints on the way, and the run from the nearest one to where the user wants to be.

A run is a pure function of its configuration, so the state at a position is what a rerun has there. Checkpoints are
forks of the worker. There are at most `limit` of them; when there are more, every second one of the older half goes, so
that they lie densely behind the present and thinly at the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError
from .position import Position, Stop
from .target import Break, Target
from .worker import Worker, start_worker

CHECKPOINT_S = 0.3
"""Time to run between two checkpoints: going back takes about as long. No result depends on it."""
FIRST_SLICE = 100_000
MAX_CHECKPOINTS = 24
_START = Position(0, 0)


class Checkpoint(NamedTuple):
    """A frozen worker, and where it stands."""

    position: Position
    worker: Worker


class Timeline:
    """See the module. worker: the one that runs; said: bytes of the guest's output that were shown."""

    def __init__(self, make: Callable[[], Target], limit: int = MAX_CHECKPOINTS) -> None:
        self.worker = start_worker(make)
        self.limit = limit
        self.stop = Stop("start", _START)
        self.end: Position | None = None
        self._checkpoints = [Checkpoint(_START, self.worker.fork())]
        self._slice = FIRST_SLICE
        self._kept: dict[int, Checkpoint] = {}
        self.poll: Callable[[], bool] | None = None

    @property
    def position(self) -> Position:
        """Where the machine stands."""
        return self.stop.position

    @property
    def checkpoints(self) -> list[Position]:
        """Where going back can start, in order."""
        return [each.position for each in self._checkpoints]

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask the target something that does not move it."""
        return self.worker.call(method, *arguments)

    def go(self, until: int = 0, until_event: int = 0, breaks: Sequence[Break] = ()) -> Stop:
        """As Target.go(), with checkpoints on the way."""
        while self.stop.kind != "exit":
            here = self.position.instructions
            end_of_slice = here + self._slice
            began = time.monotonic()
            stop = self.worker.call("go", min(until or end_of_slice, end_of_slice), until_event, breaks)
            self._pace(time.monotonic() - began)
            self._moved(stop)
            asked = stop.kind != "instructions" or stop.position.instructions == until
            if asked or (until and stop.position.instructions >= until):
                break
            self._checkpoint()
            if self.poll is not None and self.poll():
                self.stop = self.stop._replace(kind="interrupt")
                break
        return self.stop

    def _pace(self, seconds: float) -> None:
        if seconds > 2 * CHECKPOINT_S:
            self._slice = max(self._slice // 2, 1000)
        elif seconds < CHECKPOINT_S / 2:
            self._slice *= 2

    def _moved(self, stop: Stop) -> None:
        self.stop = stop
        if stop.kind == "exit":
            self.end = stop.position

    def _checkpoint(self) -> None:
        if self._checkpoints[-1].position >= self.position:
            return
        self._checkpoints.append(Checkpoint(self.position, self.worker.fork()))
        if len(self._checkpoints) > self.limit:
            older = self._checkpoints[: self.limit // 2]
            for each in older[1::2]:
                each.worker.close()
            self._checkpoints = older[::2] + self._checkpoints[self.limit // 2 :]

    def keep(self) -> int:
        """A checkpoint of the user's own, which stays; its number."""
        number = max(self._kept, default=0) + 1
        self._kept[number] = Checkpoint(self.position, self.worker.fork())
        return number

    def kept(self) -> dict[int, Position]:
        """The user's own checkpoints."""
        return {number: each.position for number, each in self._kept.items()}

    def forget(self, number: int) -> None:
        """Delete one of these. ConfigError: there is none."""
        if number not in self._kept:
            raise ConfigError(f"there is no checkpoint {number}")
        self._kept.pop(number).worker.close()

    def go_to(self, where: Position) -> Stop:
        """Stand at a position of this run, behind or ahead."""
        if where < self.position or self.stop.kind == "exit":
            self._restore(self._nearest(where))
        self._moved(self.worker.call("go_to", where))
        return self.stop

    def _nearest(self, where: Position) -> Checkpoint:
        candidates = [*self._checkpoints, *self._kept.values()]
        return max((each for each in candidates if each.position <= where), key=lambda each: each.position)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.worker.close()
        self.worker = checkpoint.worker.fork()
        self.stop = Stop("start", checkpoint.position)

    def back(self, instructions: int) -> Stop:
        """As many instructions back, or to the start."""
        here = self.position
        at = max(here.instructions - instructions, 0)
        return self._stand_at_instruction(at)

    def _stand_at_instruction(self, at: int) -> Stop:
        self._restore(self._nearest(Position(at, 0)))
        if at == 0:
            return self.stop
        self._moved(self.worker.call("go", at))
        return self.stop

    def back_event(self, events: int = 1) -> Stop:
        """To the event before, or to the start."""
        here = self.position
        return self.seek_event(here.events - events + (1 if here.between and here.events else 0))

    def seek_event(self, wanted: int) -> Stop:
        """Stand inside event `wanted`, behind or ahead; at the start if it is 0 or less."""
        before = [each for each in self._checkpoints if each.position.events < wanted]
        if wanted <= self.position.events or self.stop.kind == "exit":
            self._restore(before[-1] if before else self._checkpoints[0])
        if wanted > 0:
            self._moved(self.worker.call("go", 0, wanted))
        return self.stop

    def back_to_break(self, breaks: Sequence[Break]) -> Stop | None:
        """To the last hit of a break before this position; None, and at the start, if there was none."""
        end = self.position
        for checkpoint in reversed([each for each in self._checkpoints if each.position < end]):
            scout = checkpoint.worker.fork()
            hit: Stop | None = scout.call("last_hit", end, breaks)
            scout.close()
            if hit is not None:
                self.go_to(hit.position)
                self.stop = hit
                return hit
            end = checkpoint.position
        self._restore(self._checkpoints[0])
        return None

    def close(self) -> None:
        """End every process."""
        for each in (*self._checkpoints, *self._kept.values()):
            each.worker.close()
        self.worker.close()
