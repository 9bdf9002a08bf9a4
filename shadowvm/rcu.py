"""Read-copy-update: what was taken out of a structure is freed when every reader that may have seen it has passed.

A reader takes no lock and waits for nobody: read_lock() and read_unlock() enclose what it does, and it must not sleep
between them. A writer unlinks something and hands its freeing to call_rcu().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .errors import ModelBug
from .sync import Scheduler, Task


class _Callback(NamedTuple):
    waits_for: list[Task]
    run: Callable[[], None]


class Rcu:
    """readers: the tasks inside of a read-side section, each with the number of that section."""

    __slots__ = ("_callbacks", "_sections", "readers", "sched")

    def __init__(self, sched: Scheduler) -> None:
        self.sched = sched
        self.readers: dict[Task, int] = {}
        self._sections = 0
        self._callbacks: list[_Callback] = []

    def read_lock(self) -> None:
        """rcu_read_lock(). Sections do not nest."""
        task = self.sched.current
        if task in self.readers:
            raise ModelBug(f"{task.name} is an RCU reader already")
        self._sections += 1
        self.readers[task] = self._sections

    def read_unlock(self) -> None:
        """rcu_read_unlock(); runs the callbacks that waited for this reader alone."""
        task = self.sched.current
        del self.readers[task]
        if self._callbacks:
            self._passed(task)

    def call_rcu(self, callback: Callable[[], None]) -> None:
        """Run `callback` when every reader of now has passed; at once if there is none."""
        if self.readers:
            self._callbacks.append(_Callback(list(self.readers), callback))
        else:
            callback()

    def _passed(self, task: Task) -> None:
        ready = []
        for callback in self._callbacks:
            if task in callback.waits_for:
                callback.waits_for.remove(task)
                if not callback.waits_for:
                    ready.append(callback)
        self._callbacks = [each for each in self._callbacks if each.waits_for]
        for callback in ready:
            callback.run()
