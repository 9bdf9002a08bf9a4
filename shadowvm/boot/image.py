"""What a loader hands to the machine: pieces of memory and where the CPU starts.

Each format's loader gives a BootImage or raises a ConfigError of one line. Everything is checked before it is copied:
files are read up to a limit, and pieces of one image may not overlap, leave guest memory or repeat bytes of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gpa
from ..errors import ConfigError
from .memmap import HIGH_MEMORY, MemoryMapEntry, acpi_base, initrd_end, memory_layout, memory_map

_FILE_SLACK = 64 << 20
"""A file may be larger than guest memory by this much: symbols and debug information are not loaded."""

_CHUNK = 1 << 20
_MAX_SHOWN = 200
"""Characters of a name that a message repeats."""


class Segment(NamedTuple):
    """`data` at `gpa`, followed by zeros up to `memsz` bytes."""

    gpa: Gpa
    data: bytes
    memsz: int

    @property
    def end(self) -> int:
        """First guest-physical address behind the segment."""
        return self.gpa + self.memsz


class Kernel(NamedTuple):
    """What an executable file says: `entry` is guest-physical."""

    entry: Gpa
    segments: list[Segment]

    @property
    def end(self) -> int:
        """First guest-physical address behind the kernel."""
        return max(each.end for each in self.segments)


PROTECTED_MODE_GDT = struct.pack(
    "<5Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00009B000000FFFF, 0x000093000000FFFF
)
"""For ProtectedModeStart: 0x08 code, 0x10 data, 0x18 and 0x20 the same of 16 bits, as in QEMU's option ROMs."""


@dataclass(frozen=True)
class LongModeStart:
    """64-bit mode over the tables of pvh.py; RBX = RDI = start_info."""

    entry: Gpa
    start_info: Gpa


@dataclass(frozen=True)
class ProtectedModeStart:
    """Multiboot 1, section 3.2: 32-bit, no paging, flat segments CS 0x08, others 0x10; A20 on; IF = 0; CR0 0x11.

    esp: end of a small stack, as QEMU's loaders leave one.
    """

    entry: Gpa
    eax: int
    ebx: int
    gdt_base: Gpa
    gdt_limit: int
    esp: int


@dataclass(frozen=True)
class ResetStart:
    """The state after RESET (SDM vol. 3, table 10-1): real mode at f000:fff0 with CS base 0xffff0000."""


Start = LongModeStart | ProtectedModeStart | ResetStart
_NO_ITEMS: Mapping[int, bytes] = MappingProxyType({})


class BootImage(NamedTuple):
    """A loadable guest.

    segments: to be stored into guest memory. roms: read-only memory outside of guest memory, whole pages.
    fw_cfg: key -> content that the loader adds to the firmware configuration device.
    """

    segments: list[Segment]
    start: Start
    roms: tuple[Segment, ...] = ()
    fw_cfg: Mapping[int, bytes] = _NO_ITEMS


@dataclass(frozen=True)
class BootOptions:
    """What a loader knows of the machine. memory: bytes, a multiple of the page size. append and initrd: as given by
    the user. extra: tables of the platform that have their place in guest memory. rsdp: where ACPI's root pointer is
    among them, 0 for none. map: None for the plain one of memmap.py. load_address: where an image without headers
    belongs; None when the image itself says it.
    """

    memory: int
    append: bytes = b""
    initrd: str = ""
    extra: tuple[tuple[Gpa, bytes], ...] = ()
    rsdp: int = 0
    map: tuple[MemoryMapEntry, ...] | None = None
    load_address: int | None = None

    @property
    def memory_map(self) -> Sequence[MemoryMapEntry]:
        """The map that the guest is told."""
        return memory_map(self.memory) if self.map is None else self.map

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of guest memory, in bytes."""
        layout = memory_layout(self.memory)
        return [(each.base << PAGE_SHIFT, each.base + each.npages << PAGE_SHIFT) for each in layout]

    @property
    def low_end(self) -> int:
        """End of the memory that begins at 0."""
        return self.ranges[0][1]

    @property
    def free_end(self) -> int:
        """End of what is free of the memory that begins at 0: below the ACPI tables, or all of it."""
        tables = acpi_base(self.memory)
        return tables if tables >= HIGH_MEMORY else self.low_end

    @property
    def initrd_end(self) -> int:
        """Where an initrd ends at the latest."""
        return initrd_end(self.memory)

    @property
    def extra_segments(self) -> list[Segment]:
        """`extra` in the form of everything else."""
        return [Segment(gpa, data, len(data)) for gpa, data in self.extra]


class Reserved(NamedTuple):
    """A range that the image may not use, and what is there."""

    what: str
    start: int
    end: int


def read_file(path: str, limit: int, flag: str = "") -> bytes:
    """The content of a file of at most `limit` bytes. ConfigError: unreadable, or larger; `flag` named it."""
    shown = path if len(path) <= _MAX_SHOWN else f"{path[:_MAX_SHOWN]}..."
    prefix = f"{flag}: " if flag else ""
    data = bytearray()
    try:
        with open(path, "rb") as file:
            # read(n) takes n bytes of memory at once, however short the file is.
            while len(data) <= limit and (piece := file.read(_CHUNK)):
                data += piece
    except (OSError, ValueError) as error:
        raise ConfigError(f"{prefix}{shown}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > limit:
        raise ConfigError(f"{prefix}{shown}: larger than the {limit} bytes that fit")
    return bytes(data)


def read_kernel(path: str, options: BootOptions) -> bytes:
    """The content of a kernel image."""
    return read_file(path, options.memory + _FILE_SLACK)


def check_placement(path: str, segments: Sequence[Segment], options: BootOptions, *reserved: Reserved) -> None:
    """ConfigError when a segment leaves guest memory or touches another one, a reserved range or `extra`."""
    tables = [Reserved("the tables of the platform", each.gpa, each.end) for each in options.extra_segments]
    in_order = sorted(segments, key=lambda each: each.gpa)
    for segment in in_order:
        where = f"segment {segment.gpa:#x}-{segment.end:#x}"
        if not any(start <= segment.gpa and segment.end <= end for start, end in options.ranges):
            raise ConfigError(f"{path}: {where} lies outside of guest memory; give more with -m")
        for each in (*reserved, *tables):
            if segment.gpa < each.end and each.start < segment.end:
                raise ConfigError(f"{path}: {where} overlaps {each.what} at {each.start:#x}-{each.end:#x}")
    for lower, upper in pairwise(in_order):
        if upper.gpa < lower.end:
            raise ConfigError(f"{path}: segments at {lower.gpa:#x} and {upper.gpa:#x} overlap")


def page_align(address: int) -> int:
    """The first page boundary at or above `address`."""
    return address + PAGE_SIZE - 1 & -PAGE_SIZE
