"""KVM_EXIT_MMIO: accesses to no memory, or stores to ROM, of a vCPU without a bus; user space is asked (x86.c).

A load exits before it is done: user space answers with answer(), and the next run() does it. A store exits when it is
done. An instruction with several stores gives an exit for each; one that loads and stores at once reads all ones.
"""

from __future__ import annotations

from ..addr import Gpa
from .exit import ExitReason, KvmRun, MmioRun


class UserMmio:
    """data: what user space has answered to a load. writes: stores that it has not been told of."""

    __slots__ = ("data", "writes")

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.writes: list[MmioRun] = []

    def answer(self, data: bytes) -> None:
        """What the load of the last exit gets (run->mmio.data)."""
        self.data = data

    def read(self, gpa: Gpa, size: int) -> int:
        """The CPU loads, while the instruction is emulated."""
        ones = (1 << 8 * size) - 1
        return ones if self.data is None else int.from_bytes(self.data, "little") & ones

    def write(self, gpa: Gpa, size: int, value: int) -> None:
        """The CPU stores."""
        self.writes.append(MmioRun(gpa, value.to_bytes(size, "little"), size, True))

    def ask(self, gpa: Gpa, size: int) -> KvmRun:
        """The exit of a load."""
        return KvmRun(ExitReason.MMIO, f"gpa {gpa:#x}: load of {size} bytes", mmio=MmioRun(gpa, b"", size, False))

    def take_write(self) -> KvmRun | None:
        """The exit of the earliest store that has had none."""
        self.data = None
        if not self.writes:
            return None
        mmio = self.writes.pop(0)
        return KvmRun(ExitReason.MMIO, f"gpa {mmio.phys_addr:#x}: store of {mmio.len} bytes", mmio=mmio)
