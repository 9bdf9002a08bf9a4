"""kvm-unit-tests' device (QEMU's pc-testdev), and the port by which Bochs shuts down.

0xe0-0xe3    32 bits that keep what is written, in accesses of any size
0xe4         a store of 4 bytes makes the host forget the page at that address
0x2000 + n   a byte drives interrupt line n
0xff000000   64 KiB that keep what is written
0x8900       the bytes "Shutdown" end the run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..addr import PAGE_MASK, Gpa
from .irq import IrqLine

TESTDEV_SCRATCH, TESTDEV_FLUSH, TESTDEV_IRQ = 0xE0, 0xE4, 0x2000
TESTDEV_IORAM, TESTDEV_IORAM_SIZE = Gpa(0xFF00_0000), 0x10000
SHUTDOWN_PORT = 0x8900
_SHUTDOWN = b"Shutdown"


class TestDevice:
    """Ports 0xe0-0xe7 and 0x2000-0x2017, and the memory. flush_page: called with the page's gpa."""

    __test__ = False  # no test class, whatever its name
    __slots__ = ("flush_page", "ioram", "lines", "scratch")

    def __init__(self, lines: Sequence[IrqLine], flush_page: Callable[[Gpa], None]) -> None:
        self.lines = lines
        self.flush_page = flush_page
        self.scratch = 0
        self.ioram = bytearray(TESTDEV_IORAM_SIZE)

    def port_read(self, port: int, size: int) -> int:
        """The scratch register; the rest reads as 0."""
        if TESTDEV_SCRATCH <= port < TESTDEV_FLUSH:
            return self.scratch >> 8 * (port & 3) & (1 << 8 * size) - 1
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """See the module."""
        if port >= TESTDEV_IRQ:
            if size == 1:
                self.lines[port - TESTDEV_IRQ].set(int(value != 0))
        elif port < TESTDEV_FLUSH:
            shift = 8 * (port & 3)
            mask = (1 << 8 * size) - 1 << shift & 0xFFFF_FFFF
            self.scratch = self.scratch & ~mask | value << shift & mask
        elif port == TESTDEV_FLUSH and size == 4:
            self.flush_page(Gpa(value & PAGE_MASK))

    def mmio_read(self, offset: int, size: int) -> int:
        """The memory."""
        return int.from_bytes(self.ioram[offset : offset + size], "little")

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """The memory; what would stick out of it is dropped."""
        room = min(size, TESTDEV_IORAM_SIZE - offset)
        self.ioram[offset : offset + room] = value.to_bytes(size, "little")[:room]

    def state(self) -> dict[str, Any]:
        """Plain data; memory as a hexadecimal string up to its last byte that is not 0."""
        return {"scratch": self.scratch, "ioram": self.ioram.rstrip(b"\0").hex()}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.scratch = saved["scratch"]
        self.ioram[:] = bytes.fromhex(saved["ioram"]).ljust(TESTDEV_IORAM_SIZE, b"\0")


class ShutdownPort:
    """Port 0x8900. `stop` is called at the last letter."""

    __slots__ = ("progress", "stop")

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop
        self.progress = 0

    def port_read(self, port: int, size: int) -> int:
        """Nothing there."""
        return (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """A letter; a wrong one starts anew."""
        letter = value & 0xFF
        if letter == _SHUTDOWN[self.progress]:
            self.progress += 1
        else:
            self.progress = int(letter == _SHUTDOWN[0])
        if self.progress == len(_SHUTDOWN):
            self.progress = 0
            self.stop()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"progress": self.progress}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.progress = saved["progress"]
