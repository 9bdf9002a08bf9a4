"""One counter of an 8254 (Intel 8254 data sheet): six modes as functions of the tick.

`now` is always a tick. `start` is the tick at which the counting element was loaded with `count`, so that
`now - start` clock pulses have been counted; a write or a trigger loads it at the next tick. Reset state as QEMU's:
mode 3 over a full count, running.
"""

from __future__ import annotations

from typing import Any

from .state import load_fields, save_fields

_LSB, _MSB, _BOTH = 1, 2, 3
_ON_TERMINAL, _ONE_SHOT, _RATE, _SQUARE, _SOFT_STROBE, _HARD_STROBE = range(6)
_TRIGGERED = (_ONE_SHOT, _HARD_STROBE)
_PERIODIC = (_RATE, _SQUARE)


class PitChannel:
    """See the module.

    count: 1 to 65536 (10000 in BCD), None until written. start: None until loaded. pending: a count written while the
    old one runs on; in modes 2 and 3 it takes over at tick takeover. frozen: pulses counted before the gate stopped
    the counter. low: first byte of a two-byte write. high_next: the next byte read is the high one. latches: bytes
    that a latch command holds. status: latched status byte.
    """

    _STATE = (
        *("mode", "rw", "bcd", "gate", "count", "start", "pending", "takeover", "frozen"),
        *("low", "high_next", "latches", "status"),
    )
    __slots__ = _STATE

    def __init__(self, *, gate: bool) -> None:
        self.mode, self.rw, self.bcd = _SQUARE, 0, False
        self.gate = gate
        self.count: int | None = 0x10000
        self.start: int | None = 0
        self.pending: int | None = None
        self.takeover: int | None = None
        self.frozen: int | None = None if gate else 0
        self.low: int | None = None
        self.high_next = False
        self.latches: list[int] = []
        self.status: int | None = None

    def control(self, now: int, value: int) -> None:
        """A control word for this channel, or its counter latch command."""
        if not value >> 4 & 3:
            self._latch(now)
            return
        self.rw, self.bcd = value >> 4 & 3, bool(value & 1)
        self.mode = value >> 1 & (3 if value & 4 else 7)
        self.count = self.start = self.pending = self.takeover = self.frozen = self.low = self.status = None
        self.high_next = False
        self.latches = []

    def write(self, now: int, value: int) -> None:
        """A byte of the count."""
        if self.rw == _BOTH and self.low is None:
            self.low = value
            if self.mode == _ON_TERMINAL:
                self.start = self.frozen = None
            return
        if self.low is not None:
            value, self.low = self.low | value << 8, None
        elif self.rw == _MSB:
            value <<= 8
        self._load(now, self._decode(value))

    def _load(self, now: int, count: int) -> None:
        """A complete count: load it, or keep it until the mode asks for it."""
        self._advance(now)
        if self.mode in _TRIGGERED:
            self.pending = count
        elif self.mode in _PERIODIC and self.start is not None:
            self.pending = count
            if self.takeover is None and self.gate:
                self.takeover = self._period_part(now)[1]
        else:
            self.count, self.start = count, now + 1
            self.frozen = None if self.gate else 0

    def _period_part(self, now: int) -> tuple[int, int]:
        """(output, end) of the part of the period that `now` lies in; modes 2 and 3, running."""
        assert self.count is not None
        assert self.start is not None
        high = self.count - 1 if self.mode == _RATE else (self.count + 1) // 2
        periods, phase = divmod(max(0, now - self.start), self.count)
        begin = self.start + periods * self.count
        return (1, begin + high) if phase < high else (0, begin + self.count)

    def _advance(self, now: int) -> None:
        """Let the pending count of mode 2 or 3 take over if its time has come."""
        end = self.takeover
        if end is None or now < end:
            return
        assert self.pending is not None
        falling = self._period_part(end)[0] == 0
        self.count, self.pending, self.takeover = self.pending, None, None
        high = self.count - 1 if self.mode == _RATE else (self.count + 1) // 2
        self.start = end - high if falling else end

    def set_gate(self, now: int, gate: bool) -> None:
        """Drive the gate input."""
        if gate == self.gate:
            return
        self._advance(now)
        self.gate = gate
        if self.mode in _TRIGGERED or self.mode in _PERIODIC:
            self._trigger(now)
        elif self.start is not None and gate:
            assert self.frozen is not None
            self.start, self.frozen = now + 1 - self.frozen, None
        elif self.start is not None:
            self.frozen = max(0, now - self.start)

    def _trigger(self, now: int) -> None:
        """Modes that load at the gate's rising edge."""
        if self.gate:
            if self.pending is not None:
                self.count, self.pending = self.pending, None
            self.start = None if self.count is None else now + 1
            self.frozen = None
        elif self.mode in _PERIODIC and self.start is not None:
            self.frozen = max(0, now - self.start)
            self.takeover = None

    def _pulses(self, now: int) -> int:
        """Clock pulses counted since the load, -1 before it."""
        assert self.start is not None
        return self.frozen if self.frozen is not None else max(-1, now - self.start)

    def output(self, now: int) -> int:
        """The OUT pin."""
        self._advance(now)
        if self.start is None or self.count is None:
            return int(self.mode != _ON_TERMINAL)
        pulses = self._pulses(now)
        if self.mode in _PERIODIC:
            return 1 if not self.gate or self.count == 1 or pulses < 0 else self._period_part(now)[0]
        if self.mode == _ON_TERMINAL:
            return int(pulses >= self.count)
        if self.mode == _ONE_SHOT:
            return int(not 0 <= pulses < self.count)
        return int(pulses != self.count)

    def next_change(self, now: int) -> int | None:
        """The next tick at which OUT may change without anybody's doing, None if it will not."""
        self._advance(now)
        if self.start is None or self.count is None or self.frozen is not None:
            return None
        if self.mode in _PERIODIC:
            return None if self.count == 1 else self._period_part(now)[1]
        end = self.start + self.count
        changes = [self.start, end] if self.mode == _ONE_SHOT else [end]
        if self.mode in (_SOFT_STROBE, _HARD_STROBE):
            changes.append(end + 1)
        return next((tick for tick in changes if tick > now), None)

    def value(self, now: int) -> int:
        """The counting element as the 16-bit register shows it."""
        self._advance(now)
        if self.count is None:
            return 0
        pulses = 0 if self.start is None else max(0, self._pulses(now))
        if self.mode == _RATE:
            return self._encode(self.count - pulses % self.count)
        if self.mode == _SQUARE:
            phase, half = pulses % self.count, (self.count + 1) // 2
            return self._encode((self.count & ~1) - 2 * (phase if phase < half else phase - half))
        return self._encode(self.count - pulses)

    def _encode(self, count: int) -> int:
        if not self.bcd:
            return count & 0xFFFF
        return sum(count // 10**i % 10 << 4 * i for i in range(4))

    def _decode(self, register: int) -> int:
        if not self.bcd:
            return register or 0x10000
        return sum((register >> 4 * i & 15) * 10**i for i in range(4)) or 10_000

    def _latch(self, now: int) -> None:
        """Hold the count until it is read; a second latch before that is ignored."""
        if not self.latches:
            value = self.value(now)
            low, high = value & 0xFF, value >> 8
            self.latches = [high] if self.rw == _MSB else [low, high] if self.rw == _BOTH else [low]

    def read_back(self, now: int, *, count: bool, status: bool) -> None:
        """The read-back command, as far as it names this channel."""
        if status and self.status is None:
            output = self.output(now)
            loaded = self.start is not None and self.pending is None and now >= self.start
            self.status = output << 7 | (not loaded) << 6 | self.rw << 4 | self.mode << 1 | self.bcd
        if count:
            self._latch(now)

    def read(self, now: int) -> int:
        """The next byte: latched status, latched count, or the count as it stands."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        if self.latches:
            return self.latches.pop(0)
        high = self.rw == _MSB or (self.rw == _BOTH and self.high_next)
        if self.rw == _BOTH:
            self.high_next = not self.high_next
        return self.value(now) >> 8 if high else self.value(now) & 0xFF

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        load_fields(self, self._STATE, saved)
