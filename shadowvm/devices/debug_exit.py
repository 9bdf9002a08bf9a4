"""isa-debug-exit: the guest ends the run by writing its status to port 0xf4."""

from __future__ import annotations

from collections.abc import Callable

DEBUG_EXIT_PORT = 0xF4


class DebugExit:
    """Four ports from 0xf4. `status` is the first value written, None until then; `stop` is called with it."""

    __slots__ = ("status", "stop")

    def __init__(self, stop: Callable[[], None]) -> None:
        self.status: int | None = None
        self.stop = stop

    def port_read(self, port: int, size: int) -> int:
        """Reads as 0."""
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """End the run; what else the guest writes before it stops is ignored."""
        if self.status is None:
            self.status = value
            self.stop()
