"""Signals that end a run: SIGTERM and SIGHUP as Ctrl-C does, and all of them while the guest is not counted; or, under
the debugger, only stop it.

Python handles a signal between two of its own instructions. A guest whose instructions are counted comes back to
Python a few hundred times a second; one that is not may stay in native code for ever. So a thread hears of the
signal through the wakeup fd and gets the CPU out of the guest, as a kick of a vCPU does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import select

AGAIN_S = 0.05
"""A kick can get lost against what the native code does at the same moment: repeat it until the run has ended."""


class Terminated(KeyboardInterrupt):
    """A signal asks the process to end; `args[0]` is its number."""


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise Terminated, so that what the process holds, the swap file too, is given back."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    raise Terminated(number)


@contextmanager
def interruptible(kick: Callable[[], None]) -> Iterator[None]:
    """Call `kick` from a thread when a signal arrives inside the block. Outside of the main thread: do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    thread = threading.Thread(target=_watch, args=(read_end, kick), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        thread.join()
        os.close(read_end)


def _watch(fd: int, kick: Callable[[], None]) -> None:
    kicked = False
    while True:
        ready, _, _ = select([fd], [], [], AGAIN_S if kicked else None)
        if ready and not os.read(fd, 64):
            return
        kicked = True
        kick()


class Interrupts:
    """Ctrl-C in a session: at a prompt it drops the line, by KeyboardInterrupt; else it calls `stop`.

    happened: it did the latter since the last prompt. Outside of the main thread nothing is heard.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop
        self.happened = False
        self._at_prompt = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _signal(self, _number: int, _frame: object) -> None:
        if self._at_prompt:
            raise KeyboardInterrupt
        self.happened = True
        self.stop()

    def input(self, text: str) -> str:
        """input(). KeyboardInterrupt, EOFError."""
        self.happened = False
        self._at_prompt = True
        try:
            return input(text)
        finally:
            self._at_prompt = False
