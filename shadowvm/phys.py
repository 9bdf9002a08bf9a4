"""Host RAM: the physical memory of the simulated host, one anonymous mapping of this process.

`ram.q[pfn * 512 + i]` is the i-th 64-bit word of a frame, `ram.b[hpa:hpa + n]` are bytes. Unicorn maps the same
pages at physical address 0, so a guest's store and `ram.q` see each other at once. An untouched frame costs the
real machine nothing.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from .addr import PAGE_SHIFT, PAGE_SIZE, Pfn

POISON_FREE = 0xAA
"""Byte that fills a free frame (PAGE_POISON in include/linux/poison.h)."""

POISON_PAGE = bytes([POISON_FREE]) * PAGE_SIZE
ZERO_PAGE = bytes(PAGE_SIZE)


def private_map(size: int) -> mmap.mmap:
    """`size` bytes of zeros that a fork of this process gets its own copy of; real memory only as it is touched."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


class Ram:
    """`size` bytes of host RAM; `base` is its address in this process, for native code."""

    __slots__ = ("_anchor", "_map", "b", "base", "code_caches", "nr_frames", "q", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.nr_frames = size >> PAGE_SHIFT
        self._map = private_map(size)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.base = ctypes.addressof(self._anchor)
        self.b = memoryview(self._map)
        self.q = self.b.cast("Q")
        self.code_caches: list[Callable[[Pfn], None]] = []

    def code_changed(self, pfn: Pfn) -> None:
        """The host rewrote or recycles a frame: CPUs drop what they translated from it.

        Stands for the coherent instruction caches of real hardware; a store by a guest is seen by its engine itself.
        """
        for drop in self.code_caches:
            drop(pfn)

    def read_page(self, pfn: Pfn) -> bytes:
        """The 4096 bytes of one frame."""
        start = pfn << PAGE_SHIFT
        return bytes(self.b[start : start + PAGE_SIZE])

    def write_page(self, pfn: Pfn, data: bytes | memoryview) -> None:
        """Fill one frame from 4096 bytes."""
        start = pfn << PAGE_SHIFT
        self.b[start : start + PAGE_SIZE] = data

    def zero_page(self, pfn: Pfn) -> None:
        """clear_page()."""
        start = pfn << PAGE_SHIFT
        self.b[start : start + PAGE_SIZE] = ZERO_PAGE
