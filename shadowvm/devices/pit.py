"""The 8254 interval timer of a PC and the port that gates its third channel (Intel 8254 data sheet).

Channel 0 drives IRQ 0, channel 2 the speaker. Ports 0x40-0x43 and 0x61. Nothing ticks: a channel keeps the tick of
1.193182 MHz at which its count was loaded, and everything else follows from virtual time. Only the next change of
channel 0's output is a timer.
"""

from __future__ import annotations

from typing import Any

from .clock import NS_PER_SECOND, Timer, VirtualClock, timer_state
from .irq import IrqLine
from .pit_channel import PitChannel

PIT_HZ = 1_193_182
PIT_BASE, PIT_CONTROL, PORT_B = 0x40, 0x43, 0x61

_REFRESH_TOGGLE_NS = 15_085
"""Channel 1 asks for a memory refresh 66,287 times a second; bit 4 of port 0x61 changes each time."""
_SPEAKER = 2


def ticks(ns: int) -> int:
    """Ticks of the 8254 that have passed at a virtual time."""
    return ns * PIT_HZ // NS_PER_SECOND


def tick_ns(tick: int) -> int:
    """The first nanosecond of a tick: ticks(tick_ns(t)) == t."""
    return -(-tick * NS_PER_SECOND // PIT_HZ)


class Pit:
    """See the module."""

    __slots__ = ("_timer", "channels", "clock", "irq", "speaker")

    def __init__(self, clock: VirtualClock, irq: IrqLine) -> None:
        self.clock = clock
        self.irq = irq
        irq.level = 1  # as mode 3 starts: else the first control word would look like an interrupt
        self.channels = [PitChannel(gate=True), PitChannel(gate=True), PitChannel(gate=False)]
        self.speaker = 0
        self._timer: Timer | None = None

    def _now(self) -> int:
        return ticks(self.clock.now())

    def port_read(self, port: int, size: int) -> int:
        """A counter, or port 0x61. The control register cannot be read."""
        now = self._now()
        if port == PORT_B:
            return self._port_b(now)
        return 0 if port == PIT_CONTROL else self.channels[port - PIT_BASE].read(now)

    def _port_b(self, now: int) -> int:
        speaker = self.channels[_SPEAKER]
        refresh = self.clock.now() // _REFRESH_TOGGLE_NS & 1
        return speaker.gate | self.speaker << 1 | refresh << 4 | speaker.output(now) << 5

    def port_write(self, port: int, size: int, value: int) -> None:
        """A counter, the control register, or port 0x61."""
        now = self._now()
        if port == PORT_B:
            self.speaker = value >> 1 & 1
            self.channels[_SPEAKER].set_gate(now, bool(value & 1))
        elif port == PIT_CONTROL:
            self._control(now, value)
        else:
            self.channels[port - PIT_BASE].write(now, value)
        if port in (PIT_BASE, PIT_CONTROL):
            self._follow_output(now)

    def _control(self, now: int, value: int) -> None:
        select = value >> 6
        if select < 3:
            self.channels[select].control(now, value)
            return
        for number, channel in enumerate(self.channels):
            if value >> 1 + number & 1:
                channel.read_back(now, count=not value & 0x20, status=not value & 0x10)

    def _follow_output(self, now: int) -> None:
        """Drive IRQ 0 with channel 0's output and wake up at its next change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.irq.set(self.channels[0].output(now))
        change = self.channels[0].next_change(now)
        if change is not None:
            self._timer = self.clock.at(tick_ns(change), lambda: self._change(change))

    def _change(self, tick: int) -> None:
        """The timer's call. A call that comes late sees every change in turn, so that no edge is lost."""
        self._follow_output(tick)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        channels = [channel.state() for channel in self.channels]
        return {
            "channels": channels,
            "speaker": self.speaker,
            "irq": self.irq.level,
            "timer": timer_state(self._timer),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's; sinks of the line are not called."""
        for channel, each in zip(self.channels, saved["channels"], strict=True):
            channel.load(each)
        self.speaker, self.irq.level = saved["speaker"], saved["irq"]
        tick = ticks(saved["timer"][0]) if saved["timer"] else 0
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.clock.rearm(saved["timer"], lambda: self._change(tick))
