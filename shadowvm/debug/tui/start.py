"""From a target to the screen and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..monitor import Monitor
from ..target import Target
from ..timeline import Timeline
from .app import DebuggerApp
from .session import Session


def run(make: Callable[[], Target], name: str, commands: Sequence[str] = ()) -> int:
    """Until the user quits; the exit status.

    The machine's process is made first: a process that has threads should not fork.
    """
    timeline = Timeline(_silent(make))
    try:
        app = DebuggerApp(Session(Monitor(timeline)), name, commands)
        status = app.run()
        return (app.return_code or 0) if status is None else status
    finally:
        timeline.close()


def _silent(make: Callable[[], Target]) -> Callable[[], Target]:
    """The machine's process must not write on the screen."""

    def made() -> Target:
        target = make()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        return target

    return made
