"""Zeroed memory at a fixed address, for arrays that Python, native code and Unicorn share."""

from __future__ import annotations

import ctypes

from ..phys import private_map


class Arena:
    """`b` are its bytes, `address` is where they are in this process."""

    __slots__ = ("_anchor", "_map", "address", "b")

    def __init__(self, size: int) -> None:
        self._map = private_map(max(size, 1))
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self.b = memoryview(self._map)
