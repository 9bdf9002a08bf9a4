"""Going back: checkpoints on the way, and the run from the nearest one to where the user wants to be.

A run is a pure function of its configuration, so the state at a position is what a rerun has there. Checkpoints are
forks of the worker (checkpoints.py). A long way is run in slices: between two of them a checkpoint is made where there
is none, and whoever interrupts is heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError
from .checkpoints import DEFAULT_MEMORY, MAX_CHECKPOINTS, Checkpoint, Checkpoints, nearest
from .poke import Input
from .position import Position, Stop
from .target import Break, Target
from .worker import Worker, start_worker

CHECKPOINT_S = 0.3
"""Time to run between two checkpoints: going back takes about as long. No result depends on it."""
FIRST_SLICE, SLICE_EVENTS = 100_000, 30_000
"""Instructions of the first slice; each is as long as those before had time for. Events of any."""
MAX_ROUNDS = 2
_START = Position(0, 0)


class Timeline:
    """See the module. worker: the one that runs; poll: asked between slices whether to stop. interrupted: interrupt()
    was called, and nothing has stopped for it yet.
    """

    def __init__(self, make: Callable[[], Target], limit: int = MAX_CHECKPOINTS, memory: int = DEFAULT_MEMORY) -> None:
        self.worker = start_worker(make)
        self.stop = Stop("start", _START)
        self.end: Position | None = None
        self.inputs: list[Input] = []
        self._automatic = Checkpoints(Checkpoint(_START, self.worker.fork()), limit, memory)
        self.limits = (limit, memory)
        self._slice = FIRST_SLICE
        self._kept: dict[int, Checkpoint] = {}
        self._running: Worker | None = None
        self.interrupted = False
        self.poll: Callable[[], bool] | None = None

    @property
    def position(self) -> Position:
        """Where the machine stands."""
        return self.stop.position

    @property
    def checkpoints(self) -> list[Position]:
        """Where going back can start, in order."""
        return self._automatic.positions

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask the target something that does not move it."""
        return self.worker.call(method, *arguments)

    def interrupt(self) -> None:
        """Stop what runs, as soon as possible; for signal handlers."""
        self.interrupted = True
        if self._running is not None:
            self._running.interrupt()

    def _run(self, worker: Worker, method: str, *arguments: Any) -> Any:
        """A call that interrupt() reaches."""
        self._running = worker
        try:
            return worker.call(method, *arguments)
        finally:
            self._running = None

    def go(self, until: int = 0, until_event: int = 0, breaks: Sequence[Break] = ()) -> Stop:
        """As Target.go(), with checkpoints on the way."""
        while self.stop.kind != "exit" and not self._heard_interrupt():
            if self._slice_of(until, until_event, breaks):
                break
            self._checkpoint()
        return self.stop

    def step(self, vcpu: int | None, low: int = 0, high: int = 0, breaks: Sequence[Break] = ()) -> Stop:
        """As Target.step(), and for as long as it takes; after MAX_ROUNDS of them the vCPU sleeps, and that is it."""
        for _ in range(MAX_ROUNDS):
            if self.stop.kind == "exit" or self._heard_interrupt():
                break
            self._moved(self._run(self.worker, "step", vcpu, low, high, breaks))
            if self.stop.kind != "steps":
                break
        return self.stop

    def _slice_of(self, until: int, until_event: int, breaks: Sequence[Break]) -> bool:
        """Run for a while; whether that came to what was asked for."""
        here = self.position
        last, last_event = here.instructions + self._slice, here.events + SLICE_EVENTS
        arguments = (min(until or last, last), min(until_event or last_event, last_event), breaks)
        began = time.monotonic()
        self._moved(self._run(self.worker, "go", *arguments))
        seconds, stop = time.monotonic() - began, self.stop
        if seconds > 2 * CHECKPOINT_S:
            self._slice = max(self._slice // 2, 1000)
        elif seconds < CHECKPOINT_S / 2 and stop.position.instructions >= last:
            self._slice *= 2
        if stop.kind == "instructions":
            return 0 < until <= stop.position.instructions
        return stop.kind != "events" or stop.position.events == until_event

    def _checkpoint(self) -> None:
        """At the end of a slice that is not the last, if there is none nearby."""
        if not self._automatic.has_near(self.position, self._slice // 2, SLICE_EVENTS // 2):
            self._automatic.add(self.position, self.worker)

    def _heard_interrupt(self) -> bool:
        """Between slices: is this where the machine is to stop?"""
        if not self.interrupted and (self.poll is None or not self.poll()):
            return False
        self._moved(self.stop._replace(kind="interrupt"))
        return True

    def _moved(self, stop: Stop) -> None:
        self.stop = stop
        if stop.kind == "interrupt":
            self.interrupted = False
        if stop.kind == "exit":
            self.end = stop.position

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
        """Stand at a position of this run, behind or ahead; elsewhere if it is interrupted."""
        if not where.between:
            return self._go_inside(where)
        if where < self.position or self.stop.kind == "exit":
            self._restore(self._nearest(where))
        while self._is_far(where):
            if self._heard_interrupt():
                return self.stop
            self._slice_of(0, 0, ())
            if self.stop.kind not in ("instructions", "events"):
                return self.stop
            self._checkpoint()
        self._moved(self._run(self.worker, "go_to", where))
        return self.stop if where.instructions else self._begin()

    def _begin(self) -> Stop:
        """At the start of the run: what is written before the first instruction has been."""
        first = sum(not each.instructions for each in self.inputs)
        if first and not self.position.instructions:
            self._moved(self._run(self.worker, "go_past_inputs", first))
        return self.stop

    def _go_inside(self, where: Position) -> Stop:
        here = self.position
        if here.order == where.order:
            return self.stop
        kept = [each for each in self._kept.values() if each.position.order == where.order]
        if kept:
            self._restore(kept[0])
            return self.stop
        return self.seek_event(where.events)

    def _is_far(self, where: Position) -> bool:
        here = self.position
        return here.instructions + self._slice < where.instructions or here.events + SLICE_EVENTS < where.events

    def _nearest(self, where: Position) -> Checkpoint:
        return nearest([self._automatic.nearest(where), *self._kept.values()], where)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.worker.close()
        self.worker = self._fork(checkpoint)
        self.stop = Stop("start", checkpoint.position)

    def _fork(self, checkpoint: Checkpoint) -> Worker:
        worker = checkpoint.worker.fork()
        if self.inputs:
            worker.call("set_inputs", self.inputs)
        return worker

    def write(self, method: str, *arguments: Any) -> Stop:
        """Write a register or memory here: Target.write(). What came after it is another run's, and is forgotten."""
        here = self.position
        stop, self.inputs = self.worker.call("write", method, *arguments)
        self._moved(stop)
        self.end = None
        self._automatic.forget_after(here)
        for number in [number for number, each in self._kept.items() if each.position.order > here.order]:
            self.forget(number)
        return self.stop

    def repeat(self, inputs: list[Input]) -> None:
        """At the start of the run: what is to be written on the way."""
        self.inputs = inputs
        self._restore(self._automatic.first)

    def back(self, instructions: int) -> Stop:
        """As many instructions back, or to the start."""
        at = Position(max(self.position.instructions - instructions, 0), 0)
        self._restore(self._nearest(at))
        return self.go_to(at)

    def back_event(self, events: int = 1) -> Stop:
        """To the event before, or to the start."""
        here = self.position
        return self.seek_event(here.events - events + (1 if here.between and here.events else 0))

    def seek_event(self, wanted: int) -> Stop:
        """Stand inside event `wanted`, behind or ahead; at the start if it is 0 or less."""
        if wanted <= self.position.events or self.stop.kind == "exit":
            self._restore(self._automatic.before_event(wanted))
        return self.go(until_event=wanted) if wanted > 0 else self.stop

    def back_to_break(self, breaks: Sequence[Break]) -> Stop | None:
        """To the last hit of a break before this position; None, and at the start, if there was none."""
        end = self.position
        for checkpoint in reversed(self._automatic.before(end)):
            scout = self._fork(checkpoint)
            hit: Stop | None = self._run(scout, "last_hit", end, breaks)
            scout.close()
            if self._heard_interrupt():
                return self.stop
            if hit is not None:
                self._restore(self._before_hit(hit))
                self._moved(self.worker.call("stand_at_hit", hit))
                self.stop = hit._replace(position=self.position)
                return self.stop
            end = checkpoint.position
        self._restore(self._automatic.first)
        self._begin()
        return None

    def _before_hit(self, hit: Stop) -> Checkpoint:
        if hit.began is not None:
            return self._nearest(Position(hit.began, 0))
        where = hit.position
        return self._nearest(where) if where.between else self._automatic.before_event(where.events)

    def become(self, other: Timeline) -> None:
        """Go on as another timeline, which is used up by that."""
        self.close()
        poll = self.poll
        vars(self).update(vars(other))
        self.poll = poll

    def close(self) -> None:
        """End every process."""
        self._automatic.close()
        for each in self._kept.values():
            each.worker.close()
        self.worker.close()
