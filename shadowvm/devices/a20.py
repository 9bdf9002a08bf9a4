"""A20 and reset outside the keyboard controller: ports 0x92 and 0xcf9 (Intel 82371 data sheet).

The A20 gate has two inputs, port 0x92 and the keyboard controller; the one that was written last decides, as on QEMU.
It is open at power-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PORT_92, RESET_CONTROL = 0x92, 0xCF9

_FAST_RESET, _P92_A20 = 1, 2
_RESET_CPU, _RESET_WRITABLE = 4, 0x0E


class A20Gate:
    """Address line 20 of every CPU. `on_change` is called with the new state."""

    __slots__ = ("enabled", "on_change")

    def __init__(self, on_change: Callable[[bool], None] | None = None) -> None:
        self.enabled = True
        self.on_change = on_change

    def set(self, enabled: bool) -> None:
        """Open or close the gate."""
        if enabled != self.enabled:
            self.enabled = enabled
            if self.on_change is not None:
                self.on_change(enabled)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"enabled": self.enabled}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), without a call."""
        self.enabled = saved["enabled"]


class Port92:
    """System control port A: bit 1 opens A20, a rising bit 0 resets."""

    __slots__ = ("a20", "reset", "value")

    def __init__(self, a20: A20Gate, reset: Callable[[], None]) -> None:
        self.a20 = a20
        self.reset = reset
        self.value = 0

    def port_read(self, port: int, size: int) -> int:
        """What was written."""
        return self.value

    def port_write(self, port: int, size: int, value: int) -> None:
        """See the class."""
        rising = value & ~self.value & _FAST_RESET
        self.value = value & 0xFF
        self.a20.set(bool(value & _P92_A20))
        if rising:
            self.reset()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"value": self.value}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.value = saved["value"]


class ResetControl:
    """Port 0xcf9: a rising bit 2 resets."""

    __slots__ = ("reset", "value")

    def __init__(self, reset: Callable[[], None]) -> None:
        self.reset = reset
        self.value = 0

    def port_read(self, port: int, size: int) -> int:
        """What was written."""
        return self.value

    def port_write(self, port: int, size: int, value: int) -> None:
        """See the class."""
        rising = value & ~self.value & _RESET_CPU
        self.value = value & _RESET_WRITABLE
        if rising:
            self.reset()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"value": self.value}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.value = saved["value"]
