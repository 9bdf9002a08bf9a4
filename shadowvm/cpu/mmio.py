"""Pages without memory behind them: while a window is open, a step's data accesses to its page call handlers.

Unicorn gives accesses of more than four bytes in halves and none of its callbacks may end the run, so the fill notes
address and size of each access (its TLB entry serves one access only) and the halves are joined here. What a step
read before it failed, say because its other operand is absent, is kept and answered again when it is repeated: a
device sees each access of an instruction once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva, Hpa
from ..errors import ModelBug
from . import mailbox as mb
from .library import Library

ReadHandler = Callable[[Gpa, int], int]
WriteHandler = Callable[[Gpa, int, int], None]
READ_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64)
WRITE_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64
)
HALF = 4


def _no_device(gpa: Gpa, size: int) -> int:
    return (1 << 8 * size) - 1


class Mmio:
    """The windows of one engine. `raised` is told of a handler's exception, which must not cross native frames."""

    __slots__ = (
        "_box",
        "_callbacks",
        "_low",
        "_memory",
        "_on_read",
        "_on_write",
        "_raised",
        "_reads",
        "_replayed",
        "active",
    )

    def __init__(self, box: memoryview[int], raised: Callable[[BaseException], None]) -> None:
        self._box, self._raised = box, raised
        self._on_read: ReadHandler = _no_device
        self._on_write: WriteHandler = lambda gpa, size, value: None
        self._callbacks = (READ_CALLBACK(self._read), WRITE_CALLBACK(self._write))
        self._low = 0
        self._memory: list[memoryview | None] = [None] * mb.NR_MMIO_WINDOWS
        self._reads: list[tuple[Gpa, int, int]] = []
        self._replayed = 0
        self.active = False

    def map(self, lib: Library, uc: int, at: Hpa) -> None:
        """Have Unicorn call us for the windows' pages at physical address `at`."""
        read, write = (ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in self._callbacks)
        if lib.uc_mmio_map(uc, at, mb.NR_MMIO_WINDOWS << PAGE_SHIFT, read, 0, write, 0):
            raise ModelBug("unicorn refuses an I/O region")
        self._box[mb.MMIO_PFN] = at >> PAGE_SHIFT

    def set_handlers(self, read: ReadHandler, write: WriteHandler) -> None:
        self._on_read, self._on_write = read, write

    def open(self, n: int, va: Gva, gpa: Gpa, memory: memoryview | None) -> None:
        """Send data accesses to the page of `va` to the page of `gpa`; `n` is 0 or 1. Loads get what `memory` has."""
        word = mb.MMIO_WINDOWS + 2 * n
        self._box[word], self._box[word + 1] = va & ~(PAGE_SIZE - 1), gpa & ~(PAGE_SIZE - 1)
        self._box[mb.WINDOWS_OPEN] |= 1 << mb.NR_WINDOWS + n
        self._memory[n] = memory

    def close(self) -> None:
        for n in range(mb.NR_MMIO_WINDOWS):
            self._box[mb.MMIO_WINDOWS + 2 * n] = mb.NO_WINDOW
            self._memory[n] = None

    def begin_step(self) -> None:
        """The next accesses may be those of a step that failed: answer its reads from what was read then."""
        self._replayed = 0

    def end_step(self, *, done: bool) -> None:
        if done:
            self._reads.clear()

    def _gpa(self, offset: int) -> Gpa:
        page = self._box[mb.MMIO_WINDOWS + 2 * (offset >> PAGE_SHIFT) + 1]
        return Gpa(page | offset & PAGE_SIZE - 1)

    def _is_second_half(self, offset: int, size: int) -> bool:
        start = self._box[mb.MMIO_VA] & PAGE_SIZE - 1
        return size == HALF and self._box[mb.MMIO_SIZE] > HALF and offset & PAGE_SIZE - 1 == start + HALF

    def _is_first_half(self, offset: int, size: int) -> bool:
        start = self._box[mb.MMIO_VA] & PAGE_SIZE - 1
        return size == HALF and self._box[mb.MMIO_SIZE] > HALF and offset & PAGE_SIZE - 1 == start

    def _read(self, uc: int, offset: int, size: int, data: int) -> int:
        self.active = True
        try:
            if self._is_second_half(offset, size):
                return self._low >> 32
            if self._is_first_half(offset, size):
                self._low = self._load(offset, 2 * HALF)
                return self._low & 0xFFFF_FFFF
            return self._load(offset, size)
        except BaseException as error:
            self._raised(error)
            return 0
        finally:
            self.active = False

    def _load(self, offset: int, size: int) -> int:
        memory = self._memory[offset >> PAGE_SHIFT]
        if memory is None:
            return self._read_once(self._gpa(offset), size)
        at = offset & PAGE_SIZE - 1
        return int.from_bytes(memory[at : at + size], "little")

    def _read_once(self, gpa: Gpa, size: int) -> int:
        i, self._replayed = self._replayed, self._replayed + 1
        if i < len(self._reads) and self._reads[i][:2] == (gpa, size):
            return self._reads[i][2]
        del self._reads[i:]
        value = self._on_read(gpa, size) & (1 << 8 * size) - 1
        self._reads.append((gpa, size, value))
        return value

    def _write(self, uc: int, offset: int, size: int, value: int, data: int) -> None:
        self.active = True
        try:
            if self._is_first_half(offset, size):
                self._low = value
            elif self._is_second_half(offset, size):
                self._on_write(Gpa(self._gpa(offset) - HALF), 2 * HALF, value << 32 | self._low)
            else:
                self._on_write(self._gpa(offset), size, value)
        except BaseException as error:
            self._raised(error)
        finally:
            self.active = False
