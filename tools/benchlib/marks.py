"""The bench guest's marks: a byte to port 0x80 before each round of a loop, 0xff after the last."""

from __future__ import annotations

import time

from shadowvm.machine import Machine

MARK_PORT = 0x80
MARK_END = 0xFF
WITHOUT_EVENTS = "ipis=0 timers=0 syscalls=0 inputs=0 cpuids=0"
"""Parameters of the guest that leave out the loops which only events.py measures."""


class Marks:
    """A port device that takes the time. `rounds[letter]`: CPU seconds of each round of that loop."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}
        self._loop = ""
        self._began = 0.0

    def port_read(self, port: int, size: int) -> int:
        """Nothing is to be read."""
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """A round begins, or the last one has ended."""
        now = time.thread_time()
        if self._loop:
            self.rounds.setdefault(self._loop, []).append(now - self._began)
        self._loop = "" if value == MARK_END else chr(value)
        self._began = time.thread_time()

    def best(self, loop: str) -> float:
        """Seconds of the fastest round."""
        return min(self.rounds[loop])


class StopMarks(Marks):
    """Marks that also stop the guest, so that something can be done to the host before a round."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._stop = machine.vcpu.stop

    def port_write(self, port: int, size: int, value: int) -> None:
        """Take the time, then stop."""
        super().port_write(port, size, value)
        self._stop()

    def resume(self) -> None:
        """The guest goes on now."""
        self._began = time.thread_time()
