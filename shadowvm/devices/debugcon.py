"""The debug console of Bochs and QEMU: a byte written to port 0xe9 is output; reading it tells that it is there."""

from __future__ import annotations

from collections.abc import Callable

DEBUGCON_PORT = 0xE9


class DebugConsole:
    """Port 0xe9."""

    __slots__ = ("output",)

    def __init__(self, output: Callable[[int], None]) -> None:
        self.output = output

    def port_read(self, port: int, size: int) -> int:
        """0xe9, as Bochs answers when the console is enabled."""
        return DEBUGCON_PORT

    def port_write(self, port: int, size: int, value: int) -> None:
        """Output the bytes of the access, lowest first."""
        for shift in range(0, 8 * size, 8):
            self.output(value >> shift & 0xFF)
