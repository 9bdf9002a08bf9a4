"""The local APIC's timer: one-shot, periodic, TSC deadline (Intel SDM vol. 3, 11.5.4).

The bus clock is 1 GHz, so a count of one is `divider` nanoseconds of virtual time. The time-stamp counter is virtual
time plus `tsc_offset`. Changing between one-shot and periodic leaves a running count alone; changing to or from TSC
deadline stops the timer. Late calls of a periodic timer are one interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import Timer, VirtualClock, timer_state
from .state import load_fields, save_fields

ONE_SHOT, PERIODIC, TSC_DEADLINE = range(3)


class LapicTimer:
    """`expire` is called at each expiry; masking is the caller's business.

    deadline: virtual ns of the next expiry, None while stopped. tsc_deadline: what the guest wrote, 0 when disarmed.
    """

    _STATE = ("mode", "initial", "divide", "deadline", "tsc_deadline", "tsc_offset")
    __slots__ = ("_timer", "clock", "expire", *_STATE)

    def __init__(self, clock: VirtualClock, expire: Callable[[], None]) -> None:
        self.clock = clock
        self.expire = expire
        self.tsc_offset = 0
        self._timer: Timer | None = None
        self.reset()

    def reset(self) -> None:
        """Power-up and INIT. The time-stamp counter runs on."""
        self.mode, self.initial, self.divide, self.tsc_deadline = ONE_SHOT, 0, 0, 0
        self.deadline: int | None = None
        self._rearm()

    @property
    def divider(self) -> int:
        """Bus clocks to a count, from bits 3, 1 and 0 of the divide configuration register."""
        return 1 << ((self.divide & 3 | self.divide >> 1 & 4) + 1 & 7)

    @property
    def tsc(self) -> int:
        """The time-stamp counter."""
        return self.clock.now() + self.tsc_offset & (1 << 64) - 1

    def set_mode(self, mode: int) -> None:
        """Bits 18:17 of the LVT entry; the reserved mode 3 counts as one-shot."""
        mode = ONE_SHOT if mode > TSC_DEADLINE else mode
        if mode == self.mode:
            return
        if TSC_DEADLINE in (mode, self.mode):
            self.deadline, self.tsc_deadline, self.initial = None, 0, 0
        self.mode = mode
        self._rearm()

    def set_initial(self, count: int) -> None:
        """Start counting down from `count`; 0 stops. Ignored in TSC deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.initial = count
        self.deadline = self.clock.now() + count * self.divider if count else None
        self._rearm()

    def set_divide(self, divide: int) -> None:
        """The divide configuration register. What is left of a running count goes on at the new rate."""
        left = self.current()
        self.divide = divide & 0b1011
        if self.deadline is not None and self.mode != TSC_DEADLINE:
            self.deadline = self.clock.now() + left * self.divider
            self._rearm()

    def current(self) -> int:
        """The current count register."""
        if self.deadline is None or self.mode == TSC_DEADLINE:
            return 0
        return max(0, -((self.clock.now() - self.deadline) // self.divider))

    def set_tsc_deadline(self, value: int) -> None:
        """IA32_TSC_DEADLINE: expire once the counter has reached `value`, at once if it has; 0 disarms."""
        if self.mode != TSC_DEADLINE:
            return
        self.tsc_deadline = value
        self.deadline = value - self.tsc_offset if value else None
        if value and value <= self.tsc:
            self._expired()
        else:
            self._rearm()

    def set_tsc_offset(self, offset: int) -> None:
        """The guest moved its time-stamp counter."""
        self.tsc_offset = offset
        if self.tsc_deadline:
            self.set_tsc_deadline(self.tsc_deadline)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self.deadline is None else self.clock.at(self.deadline, self._expired)

    def _expired(self) -> None:
        assert self.deadline is not None
        if self.mode == PERIODIC:
            period = self.initial * self.divider
            self.deadline += period * ((self.clock.now() - self.deadline) // period + 1)
        else:
            self.deadline, self.tsc_deadline = None, 0
        self._rearm()
        self.expire()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {**save_fields(self, self._STATE), "timer": timer_state(self._timer)}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's."""
        load_fields(self, self._STATE, saved)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.clock.rearm(saved["timer"], self._expired)
