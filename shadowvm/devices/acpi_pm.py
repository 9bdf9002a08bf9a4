"""ACPI's fixed hardware: event and control registers, power management timer (ACPI specification, 4.8).

At 0x600 as firmware places it on QEMU's PC. Setting SLP_EN with the sleep type of S5 (0) switches the machine off:
`outw(0x604, 0x2000)`. No event is ever signalled, so the SCI never fires.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import NS_PER_SECOND, VirtualClock
from .state import load_fields, save_fields

PM_BASE, PM_PORTS = 0x600, 12
PM1_EVENT, PM1_CONTROL, PM_TIMER = 0x600, 0x604, 0x608
PM_TIMER_HZ = 3_579_545
SLP_TYP_S5 = 0
_SCI_EN, _SLP_TYP, _SLP_EN = 1, 0x1C00, 0x2000
_PM1_ENABLE = PM1_EVENT + 2


class AcpiPm:
    """`power_off` is called when the guest switches the machine off."""

    _STATE = ("control", "enable")
    __slots__ = ("clock", "power_off", *_STATE)

    def __init__(self, clock: VirtualClock, power_off: Callable[[], None]) -> None:
        self.clock = clock
        self.power_off = power_off
        self.control = _SCI_EN
        self.enable = 0

    def port_read(self, port: int, size: int) -> int:
        """The part of the registers from `port` on."""
        timer = self.clock.now() * PM_TIMER_HZ // NS_PER_SECOND & 0xFF_FFFF
        registers = self.enable << 16 | self.control << 32 | timer << 64
        return registers >> 8 * (port - PM_BASE) & (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """Enable and control registers, each from its first byte; statuses are always clear."""
        if port == PM1_CONTROL:
            self.control = value & 0xFFFF & ~_SLP_EN | _SCI_EN
            if value & _SLP_EN and value & _SLP_TYP == SLP_TYP_S5:
                self.power_off()
        elif port == _PM1_ENABLE or (port == PM1_EVENT and size == 4):
            self.enable = (value >> 16 if port == PM1_EVENT else value) & 0xFFFF

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        load_fields(self, self._STATE, saved)
