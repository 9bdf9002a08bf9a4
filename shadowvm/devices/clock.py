"""Virtual time: nanoseconds that pass with the instructions of the guest, never with the host's clock.

    now() = source() + offset

`source` is the machine's count of retired instructions, one nanosecond each; `offset` grows only in skip_to_next(),
while every vCPU is halted. A device asks with at() to be called; the machine calls run_due() at the instruction
where next_deadline() is reached. Timers that are due fire in order of deadline, then of arming.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

NS_PER_SECOND = 1_000_000_000

TimerState: TypeAlias = "tuple[int, int] | None"
"""(deadline, sequence) of a pending timer, as a device saves it; None for no timer."""


class Timer:
    """One call in the future. `callback` is None once it has fired or was cancelled."""

    __slots__ = ("callback", "deadline", "sequence")

    def __init__(self, deadline: int, sequence: int, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.sequence = sequence
        self.callback: Callable[[], None] | None = callback

    @property
    def pending(self) -> bool:
        """Still to fire."""
        return self.callback is not None

    def cancel(self) -> None:
        """Never fire. No effect on a timer that has fired."""
        self.callback = None


class VirtualClock:
    """See the module. on_earlier, when set, is called after the next deadline has moved forward."""

    __slots__ = ("_heap", "_sequence", "offset", "on_earlier", "source")

    def __init__(self, source: Callable[[], int]) -> None:
        self.source = source
        self.offset = 0
        self.on_earlier: Callable[[], None] | None = None
        self._heap: list[tuple[int, int, Timer]] = []
        self._sequence = 0

    def now(self) -> int:
        """Virtual nanoseconds since the machine was built."""
        return self.source() + self.offset

    def at(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` when `deadline` (ns) is reached; if that has passed, at the next run_due()."""
        self._sequence += 1
        return self._arm(Timer(deadline, self._sequence, callback))

    def rearm(self, saved: TimerState, callback: Callable[[], None]) -> Timer | None:
        """The timer that timer_state() described: it fires in the order in which it would have."""
        return None if saved is None else self._arm(Timer(saved[0], saved[1], callback))

    def _arm(self, timer: Timer) -> Timer:
        earliest = self.next_deadline()
        heapq.heappush(self._heap, (timer.deadline, timer.sequence, timer))
        if self.on_earlier is not None and (earliest is None or timer.deadline < earliest):
            self.on_earlier()
        return timer

    def next_deadline(self) -> int | None:
        """When the next timer fires (ns, perhaps past), None without one."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self) -> int:
        """Fire every timer whose deadline is reached, those that callbacks arm too; how many."""
        fired = 0
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > self.now():
                return fired
            timer = heapq.heappop(self._heap)[2]
            callback = timer.callback
            assert callback is not None
            timer.callback = None
            fired += 1
            callback()

    def skip_to_next(self) -> bool:
        """Everything is halted: let time pass up to the next deadline. False when nothing will ever happen."""
        deadline = self.next_deadline()
        if deadline is None:
            return False
        self.offset += max(0, deadline - self.now())
        return True

    def state(self) -> dict[str, Any]:
        """Plain data; each device saves its own timers."""
        return {"offset": self.offset, "sequence": self._sequence}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(). Drops all timers: devices load after the clock and rearm theirs."""
        self.offset, self._sequence = saved["offset"], saved["sequence"]
        for _, _, timer in self._heap:
            timer.cancel()
        self._heap.clear()


def timer_state(timer: Timer | None) -> TimerState:
    """What a device saves of its timer."""
    return (timer.deadline, timer.sequence) if timer is not None and timer.pending else None
