"""Work for the host's kernel threads (kernel/workqueue.c).

queue_work() returns at once; a kworker does the work when the scheduler gets to it. There are as many workers as were
ever busy at one time. An exception in a piece of work ends the run, as in any task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .sync import Scheduler, Task


class Workqueue:
    """See the module. `name` is part of the workers' names."""

    __slots__ = ("_busy", "_flushers", "_idle", "_items", "_nr_workers", "name", "sched")

    def __init__(self, sched: Scheduler, name: str) -> None:
        self.sched = sched
        self.name = name
        self._items: deque[Callable[[], None]] = deque()
        self._idle: list[Task] = []
        self._nr_workers = self._busy = 0
        self._flushers: list[Task] = []

    def queue_work(self, work: Callable[[], None]) -> None:
        """Do `work` soon, after what was queued before it has begun."""
        self._items.append(work)
        if self._idle:
            self.sched.wake(self._idle.pop())
        else:
            self._nr_workers += 1
            name = f"kworker/u:{self._nr_workers}-{self.name}"
            self.sched.wake(self.sched.spawn(name, self._worker, daemon=True))

    def flush(self) -> None:
        """Wait until no work is left."""
        while self._items or self._busy:
            self._flushers.append(self.sched.current)
            self.sched.wait(self._flushers)

    def _worker(self) -> None:
        while True:
            while self._items:
                work = self._items.popleft()
                self._busy += 1
                work()
                self._busy -= 1
            if not self._busy:
                waiters, self._flushers = self._flushers, []
                for task in waiters:
                    self.sched.wake(task)
            self._idle.append(self.sched.current)
            self.sched.wait(self)
