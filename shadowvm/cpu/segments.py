"""Segment and descriptor-table registers with their hidden parts, as the CPU caches them."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from . import layout as lay

RAW = struct.Struct("<IxxxxQII")
ES, CS, SS, DS, FS, GS = range(6)
SEGMENTS = {"cs": CS, "ss": SS, "ds": DS, "es": ES, "fs": FS, "gs": GS}
"""By name, in the order in which debuggers show them."""
ACCESSED, WRITABLE, CODE = 1 << 8, 1 << 9, 1 << 11
S, P, L, DB, G = 1 << 12, 1 << 15, 1 << 21, 1 << 22, 1 << 23
DPL_SHIFT = 13

CODE64_FLAGS = G | L | P | S | CODE | WRITABLE | ACCESSED | 0xF0000
CODE32_FLAGS = G | DB | P | S | CODE | WRITABLE | ACCESSED | 0xF0000
CODE16_FLAGS = P | S | CODE | WRITABLE | ACCESSED
DATA_FLAGS = G | DB | P | S | WRITABLE | ACCESSED | 0xF0000
DATA16_FLAGS = P | S | WRITABLE | ACCESSED
BUSY = 2 << 8
TSS_FLAGS = P | 9 << 8
"""A 32- or 64-bit TSS as QEMU caches it: not busy, whatever memory says."""
LDT_FLAGS = P | 2 << 8


class Segment(NamedTuple):
    """One segment register: the visible selector and the cached descriptor.

    `limit` is in bytes. `flags` is the descriptor's second doubleword (SDM vol. 3, figure 3-8): type 11:8, S 12,
    DPL 14:13, P 15, AVL 20, L 21, D/B 22, G 23; the bits of base and limit in it mean nothing.
    """

    selector: int
    base: int
    limit: int
    flags: int

    @property
    def dpl(self) -> int:
        return self.flags >> DPL_SHIFT & 3


class TableRegister(NamedTuple):
    """GDTR or IDTR."""

    base: int
    limit: int


def real_mode(selector: int) -> Segment:
    """A data segment as loaded in real mode."""
    return Segment(selector, selector << 4, 0xFFFF, DATA16_FLAGS)


def offset_of(i: int) -> int:
    """Where in env segment register `i` is: es cs ss ds fs gs."""
    return lay.ENV_SEGS + lay.SEG_SIZE * i


def read(env: int, offset: int) -> Segment:
    """A SegmentCache of env."""
    return Segment(*RAW.unpack(ctypes.string_at(env + offset, RAW.size)))


def write(env: int, offset: int, segment: Segment) -> None:
    """Set a SegmentCache; the caller has the derived state recomputed (x86_update_hflags)."""
    selector, base, limit, flags = segment
    ctypes.memmove(env + offset, RAW.pack(selector & 0xFFFF, base & (1 << 64) - 1, limit, flags), RAW.size)
