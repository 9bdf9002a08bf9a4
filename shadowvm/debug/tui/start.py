"""From a machine to the screen and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..monitor import Monitor
from ..timeline import Timeline
from .app import DebuggerApp
from .session import Session


def run(make: Callable[[], Timeline], commands: Sequence[str] = ()) -> int:
    """Until the user quits; the exit status.

    The machine's processes are made first: a process that has threads should not fork.
    """
    with _silent_children():
        timeline = make()
    session = Session(Monitor(timeline))
    try:
        app = DebuggerApp(session, timeline.call("view", "config").name, commands)
        status = app.run()
        return (app.return_code or 0) if status is None else status
    finally:
        session.timeline.close()


@contextmanager
def _silent_children() -> Iterator[None]:
    """Processes that are made inside the block do not write on the screen."""
    kept = [os.dup(number) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(null, number)
        yield
    finally:
        os.close(null)
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
