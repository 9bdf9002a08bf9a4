"""The receiver of a 16550A: what the guest is going to read, and when it hears of it.

The line's bytes are all there from the start, as a file is, but none may be lost: the guest cannot be asked to wait
for a prompt. So the line begins to send once the guest listens (open()), one character after the other at the pace of
115200 baud whatever the divisor says, and only while there is room; what the guest throws away unread comes again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import NS_PER_SECOND, Timer, VirtualClock, timer_state
from .state import load_fields, save_fields

CHARACTER_NS = 10 * NS_PER_SECOND // 115200
"""Start, eight data bits, stop."""
FIFO_SIZE = 16
_TIMEOUT_CHARACTERS = 4


class Receiver:
    """See the module. `changed` is called after a byte or a timeout came; the guest's own accesses do not call it.

    waiting: bytes that the guest may read, of the line or of the loop, never of both. trigger: so many make an
    interrupt; 0 without a FIFO, where a single byte has room. timed_out: bytes below the trigger wait for long.
    """

    _STATE = ("_next", "_open", "loop", "overrun", "timed_out", "trigger", "waiting")
    __slots__ = (*_STATE, "_arrival", "_timeout", "changed", "clock", "line")

    def __init__(self, clock: VirtualClock, line: bytes, changed: Callable[[], None]) -> None:
        self.clock = clock
        self.line = line
        self.changed = changed
        self.waiting: list[int] = []
        self.trigger = self._next = 0
        self.loop = self.overrun = self.timed_out = self._open = False
        self._arrival: Timer | None = None
        self._timeout: Timer | None = None

    @property
    def ready(self) -> bool:
        """Enough bytes for an interrupt (without a timeout)."""
        return len(self.waiting) >= max(self.trigger, 1)

    def open(self) -> None:
        """The guest has looked for a byte or asked for interrupts: the line may send."""
        self._open = True
        self._expect()

    def configure(self, *, loop: bool, trigger: int, reset: bool = False) -> None:
        """Connect to the own transmitter or to the line; FIFO and its trigger. A change of either empties it."""
        if reset or loop != self.loop or bool(trigger) != bool(self.trigger):
            self._empty()
        self.loop, self.trigger = loop, trigger
        self._expect()

    def _empty(self) -> None:
        """The line begins a new character: drivers read once after this, to clear what is not there."""
        if not self.loop:
            self._next -= len(self.waiting)
        self.waiting.clear()
        self._restart_timeout()
        if self._arrival is not None:
            self._arrival.cancel()

    def read(self) -> int:
        """The oldest byte, 0 if there is none."""
        value = self.waiting.pop(0) if self.waiting else 0
        self._restart_timeout()
        self._expect()
        return value

    def put(self, value: int) -> None:
        """A byte comes in. Without room a FIFO drops it, and the buffer of one byte the older one."""
        if self._room:
            self.waiting.append(value)
        else:
            self.overrun = True
            if not self.trigger:
                self.waiting[0] = value
        self._restart_timeout()

    @property
    def _room(self) -> bool:
        return len(self.waiting) < (FIFO_SIZE if self.trigger else 1)

    def _expect(self) -> None:
        """The line sends its next character, if it may and is not at it."""
        busy = self._arrival is not None and self._arrival.pending
        if self._open and not busy and not self.loop and self._room and self._next < len(self.line):
            self._arrival = self.clock.at(self.clock.now() + CHARACTER_NS, self._arrive)

    def _arrive(self) -> None:
        self.put(self.line[self._next])
        self._next += 1
        self._expect()
        self.changed()

    def _restart_timeout(self) -> None:
        self.timed_out = False
        if self._timeout is not None:
            self._timeout.cancel()
        if self.trigger and self.waiting:
            deadline = self.clock.now() + _TIMEOUT_CHARACTERS * CHARACTER_NS
            self._timeout = self.clock.at(deadline, self._time_out)

    def _time_out(self) -> None:
        self.timed_out = True
        self.changed()

    def state(self) -> dict[str, Any]:
        """Plain data; the line's bytes are configuration."""
        timers = {"arrival": timer_state(self._arrival), "timeout": timer_state(self._timeout)}
        return save_fields(self, self._STATE) | timers

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's."""
        load_fields(self, self._STATE, saved)
        self._arrival = self.clock.rearm(saved["arrival"], self._arrive)
        self._timeout = self.clock.rearm(saved["timeout"], self._time_out)
