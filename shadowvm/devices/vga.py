"""What a text console asks of a VGA: the CRT controller's registers, which keep what is written.

The screen itself, at 0xb8000, is memory; nobody looks at it. Kernels read the cursor's place back from here, and take
all ones for a broken machine. The status register's retrace bits change with every read, so that waits for them end.
"""

from __future__ import annotations

from typing import Any

CRTC_INDEX, CRTC_DATA, CRTC_PORTS = 0x3D4, 0x3D5, 2
VGA_STATUS = 0x3DA
_REGISTERS = 0x19
_DISPLAY_DISABLED, _VERTICAL_RETRACE = 1, 8


class Vga:
    """Ports 0x3d4, 0x3d5 and 0x3da."""

    __slots__ = ("index", "registers", "status")

    def __init__(self) -> None:
        self.index = self.status = 0
        self.registers = bytearray(_REGISTERS)

    def port_read(self, port: int, size: int) -> int:
        """The index, the register that it selects, or the status."""
        if port == VGA_STATUS:
            self.status ^= _DISPLAY_DISABLED | _VERTICAL_RETRACE
            return self.status
        if port == CRTC_INDEX:
            return self.index
        return self.registers[self.index] if self.index < _REGISTERS else 0xFF

    def port_write(self, port: int, size: int, value: int) -> None:
        """Select a register, or store to it."""
        if port == CRTC_INDEX:
            self.index = value & 0xFF
        elif port == CRTC_DATA and self.index < _REGISTERS:
            self.registers[self.index] = value & 0xFF

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"index": self.index, "status": self.status, "registers": self.registers.hex()}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.index, self.status = saved["index"], saved["status"]
        self.registers[:] = bytes.fromhex(saved["registers"])
