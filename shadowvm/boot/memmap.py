"""Where guest memory is, as on QEMU's pc: below 3 GiB, what is more from 4 GiB on; and how a guest is told."""

from __future__ import annotations

from typing import NamedTuple

from ..addr import PAGE_SHIFT, Gfn, Gpa

E820_RAM, E820_RESERVED = 1, 2
LOW_MEMORY_END = 0xA0000
HIGH_MEMORY = 0x100000
_PCI_HOLE, _ABOVE_4G = 0xC0000000, 1 << 32


class MemoryRange(NamedTuple):
    """Guest frames [base, base + npages)."""

    base: Gfn
    npages: int


class MemoryMapEntry(NamedTuple):
    """[base, base + length) in bytes; `kind` as in ACPI's INT 15h, E820h."""

    base: Gpa
    length: int
    kind: int


def memory_layout(size: int) -> list[MemoryRange]:
    """Guest RAM of `size` bytes."""
    low = min(size, _PCI_HOLE)
    ranges = [MemoryRange(Gfn(0), low >> PAGE_SHIFT)]
    if size > low:
        ranges.append(MemoryRange(Gfn(_ABOVE_4G >> PAGE_SHIFT), (size - low) >> PAGE_SHIFT))
    return ranges


def memory_map(size: int) -> list[MemoryMapEntry]:
    """The map of `size` bytes of guest RAM, in order; the legacy hole below 1 MiB is reserved."""
    low_end = min(size, _PCI_HOLE)
    entries = [MemoryMapEntry(Gpa(0), min(low_end, LOW_MEMORY_END), E820_RAM)]
    if low_end > HIGH_MEMORY:
        entries.append(MemoryMapEntry(Gpa(LOW_MEMORY_END), HIGH_MEMORY - LOW_MEMORY_END, E820_RESERVED))
        entries.append(MemoryMapEntry(Gpa(HIGH_MEMORY), low_end - HIGH_MEMORY, E820_RAM))
    if size > low_end:
        entries.append(MemoryMapEntry(Gpa(_ABOVE_4G), size - low_end, E820_RAM))
    return entries
