"""MC146818 real-time clock and CMOS RAM at ports 0x70 and 0x71 (Motorola MC146818A data sheet; bytes as QEMU's).

The time of day is EPOCH plus virtual time, moved by what the guest sets; the host's clock has no part in it. Flags of
register C are found when it is read or when an enabled interrupt is due, so that a clock nobody listens to costs
nothing. IRQ 8 is up while register C says so.
"""

from __future__ import annotations

from typing import Any

from .clock import NS_PER_SECOND, Timer, VirtualClock, timer_state
from .irq import IrqLine
from .rtc_calendar import (
    CENTURY,
    CENTURY_PS2,
    DAY_OF_MONTH,
    HOURS,
    MINUTES,
    MONTH,
    SECONDS,
    TIME_REGISTERS,
    YEAR,
    RtcFormat,
    next_alarm,
    read_time,
    with_register,
)
from .state import load_fields, save_fields

RTC_INDEX, RTC_DATA = 0x70, 0x71
EPOCH = 1_767_225_600
"""2026-01-01 00:00:00 UTC, in seconds since 1970: the time at which every machine is switched on."""

REG_A, REG_B, REG_C, REG_D, REG_SHUTDOWN = 0x0A, 0x0B, 0x0C, 0x0D, 0x0F
_A_UIP, _A_DIVIDER_RESET = 0x80, 0x60
_B_SET, _B_PIE, _B_AIE, _B_UIE, _B_BINARY, _B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_C_IRQF, _C_PF, _C_AF, _C_UF = 0x80, 0x40, 0x20, 0x10
_D_VALID = 0x80
_UIP_NS = 244_000
"""How long before an update the UIP bit warns."""
_CRYSTAL_HZ = 32_768
_ALARMS = (1, 3, 5)


class Rtc:
    """See the module.

    cmos: the 128 bytes; those of the time are true only while bit SET of register B holds it. shift: nanoseconds
    between virtual time and the clock's own. seen: up to where flags have been found. nmi_masked: bit 7 of port 0x70.
    """

    _STATE = ("cmos", "index", "nmi_masked", "shift", "seen")
    __slots__ = ("_timer", "clock", "irq", *_STATE)

    def __init__(self, clock: VirtualClock, irq: IrqLine) -> None:
        self.clock = clock
        self.irq = irq
        self.cmos = [0] * 128
        self.cmos[REG_A], self.cmos[REG_B], self.cmos[REG_D] = 0x26, _B_24H, _D_VALID
        self.index = 0
        self.nmi_masked = False
        self.shift = EPOCH * NS_PER_SECOND
        self.seen = 0
        self._timer: Timer | None = None

    def set_machine(self, below_4g: int, above_4g: int, cpus: int) -> None:
        """What a BIOS finds about the machine: bytes of memory below and above 4 GiB, and the number of CPUs."""
        cmos = self.cmos
        extended = min(max(0, below_4g - (1 << 20)) >> 10, 0xFFFF)
        high = min(max(0, below_4g - (16 << 20)) >> 16, 0xFFFF)
        cmos[0x14] = 0x06
        cmos[0x15:0x19] = [640 & 0xFF, 640 >> 8, extended & 0xFF, extended >> 8]
        cmos[0x30:0x32] = [extended & 0xFF, extended >> 8]
        cmos[0x34:0x36] = [high & 0xFF, high >> 8]
        cmos[0x5B:0x5E] = list((min(above_4g >> 16, 0xFFFFFF)).to_bytes(3, "little"))
        cmos[0x5F] = cpus - 1

    @property
    def _running(self) -> bool:
        """The clock counts: not held by SET, divider not held in reset."""
        return not self.cmos[REG_B] & _B_SET and self.cmos[REG_A] & 0x70 < _A_DIVIDER_RESET

    @property
    def _format(self) -> RtcFormat:
        control = self.cmos[REG_B]
        return RtcFormat(bool(control & _B_BINARY), bool(control & _B_24H))

    def _time(self) -> int:
        """The clock's own time, ns since 1970."""
        return self.clock.now() + self.shift

    def port_read(self, port: int, size: int) -> int:
        """The byte at the index; the index itself cannot be read."""
        if port == RTC_INDEX:
            return 0xFF
        register = CENTURY if self.index == CENTURY_PS2 else self.index
        if register in TIME_REGISTERS and self._running:
            return read_time(self._time() // NS_PER_SECOND, register, self._format)
        if register == REG_A:
            until = -self._time() % NS_PER_SECOND
            return self.cmos[REG_A] | (_A_UIP if self._running and 0 < until <= _UIP_NS else 0)
        return self._read_flags() if register == REG_C else self.cmos[register]

    def _read_flags(self) -> int:
        """Register C: reading it clears it."""
        self._find_flags()
        flags, self.cmos[REG_C] = self.cmos[REG_C], 0
        self._update_irq()
        self._rearm()
        return flags

    def port_write(self, port: int, size: int, value: int) -> None:
        """The index, or the byte at it."""
        if port == RTC_INDEX:
            self.index, self.nmi_masked = value & 0x7F, bool(value & 0x80)
            return
        register = CENTURY if self.index == CENTURY_PS2 else self.index
        if register in (REG_C, REG_D):
            return
        if register in (REG_A, REG_B):
            self._find_flags()
            self._control(register, value)
        elif register in TIME_REGISTERS and self._running:
            self._find_flags()
            self._set_time(register, value)
        else:
            self.cmos[register] = value
        if register <= REG_B:
            self._update_irq()
            self._rearm()

    def _set_time(self, register: int, value: int) -> None:
        seconds = self._time() // NS_PER_SECOND
        self.shift += (with_register(seconds, register, value, self._format) - seconds) * NS_PER_SECOND
        self.seen = self.clock.now()

    def _control(self, register: int, value: int) -> None:
        """Registers A and B. Time that stops is written down in the bytes, time that starts again is read from them."""
        was_running = self._running
        seconds, part = divmod(self._time(), NS_PER_SECOND)
        if register == REG_B and value & _B_SET:
            value &= ~_B_UIE
        if was_running:
            self._store_time(seconds)
        self.cmos[register] = value & ~_A_UIP if register == REG_A else value
        if self._running and not was_running:
            start = self._stored_time()
            if register == REG_A:
                part = NS_PER_SECOND // 2
            self.shift = start * NS_PER_SECOND + part - self.clock.now()
            self.seen = self.clock.now()

    def _store_time(self, seconds: int) -> None:
        for register in TIME_REGISTERS:
            self.cmos[register] = read_time(seconds, register, self._format)

    def _stored_time(self) -> int:
        seconds = 0
        for register in (CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS):
            seconds = with_register(seconds, register, self.cmos[register], self._format)
        return seconds

    @property
    def _period(self) -> int:
        """Period of the periodic interrupt in crystal cycles, 0 for none."""
        rate = self.cmos[REG_A] & 15
        if rate == 0 or self.cmos[REG_A] & 0x70 >= _A_DIVIDER_RESET:
            return 0
        return 1 << (rate + 7 if rate <= 2 else rate) - 1

    def _find_flags(self) -> None:
        """Set the flags of what has happened since `seen`."""
        before, self.seen = self.seen, self.clock.now()
        period = self._period
        if period and _cycles(before) // period != _cycles(self.seen) // period:
            self.cmos[REG_C] |= _C_PF
        if self._running:
            first, last = (before + self.shift) // NS_PER_SECOND, self._time() // NS_PER_SECOND
            if last > first:
                self.cmos[REG_C] |= _C_UF
            alarm = next_alarm(first, [self.cmos[each] for each in _ALARMS], self._format)
            if alarm is not None and alarm <= last:
                self.cmos[REG_C] |= _C_AF

    def _update_irq(self) -> None:
        """IRQF and IRQ 8 follow the flags that are enabled."""
        flags = self.cmos[REG_C] & (_C_PF | _C_AF | _C_UF)
        wanted = bool(flags & self.cmos[REG_B])
        self.cmos[REG_C] = flags | (_C_IRQF if wanted else 0)
        self.irq.set(int(wanted))

    def _rearm(self) -> None:
        """Wake up at the next event whose interrupt is enabled, unless IRQ 8 is up already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadlines = [] if self.irq.level else self._deadlines()
        if deadlines:
            self._timer = self.clock.at(min(deadlines), self._due)

    def _deadlines(self) -> list[int]:
        control, now, found = self.cmos[REG_B], self.clock.now(), []
        if control & _B_PIE and self._period:
            cycle = (_cycles(now) // self._period + 1) * self._period
            found.append(-(-cycle * NS_PER_SECOND // _CRYSTAL_HZ))
        seconds = self._time() // NS_PER_SECOND
        if control & _B_UIE and self._running:
            found.append((seconds + 1) * NS_PER_SECOND - self.shift)
        if control & _B_AIE and self._running:
            alarm = next_alarm(seconds, [self.cmos[each] for each in _ALARMS], self._format)
            found += [] if alarm is None else [alarm * NS_PER_SECOND - self.shift]
        return found

    def _due(self) -> None:
        self._find_flags()
        self._update_irq()
        self._rearm()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {**save_fields(self, self._STATE), "irq": self.irq.level, "timer": timer_state(self._timer)}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's; sinks of the line are not called."""
        load_fields(self, self._STATE, saved)
        self.irq.level = saved["irq"]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.clock.rearm(saved["timer"], self._due)


def _cycles(ns: int) -> int:
    return ns * _CRYSTAL_HZ // NS_PER_SECOND
