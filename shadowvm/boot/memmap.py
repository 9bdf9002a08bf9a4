"""Where guest memory is, as on QEMU's pc: below 3 GiB, what is more from 4 GiB on; and how a guest is told.

The map is the one that SeaBIOS hands out: the last KiB below 640 KiB is the EBDA, ROM lies below 1 MiB and below
4 GiB, and the last 128 KiB of low memory hold the ACPI tables.
"""

from __future__ import annotations

from typing import NamedTuple

from ..addr import PAGE_SHIFT, Gfn, Gpa

E820_RAM, E820_RESERVED = 1, 2
EBDA, LOW_MEMORY_END = Gpa(0x9FC00), 0xA0000
HIGH_MEMORY = 0x100000
_BIOS, _FLASH = 0xF0000, 0xFFFC0000
_PCI_HOLE, _ABOVE_4G = 0xC0000000, 1 << 32
_TABLES, _TABLES_BELOW_1M = 0x20000, 0xF6000
_INITRD_SLACK = 0x28000
"""What QEMU 7.2 keeps free behind an initrd (acpi_data_size of hw/i386/pc.c)."""


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


def acpi_base(size: int) -> Gpa:
    """Where ACPI tables lie: at the end of low memory, or in the BIOS area of a machine that has hardly any."""
    low_end = min(size, _PCI_HOLE)
    return Gpa(low_end - _TABLES if low_end >= 2 * HIGH_MEMORY else _TABLES_BELOW_1M)


def initrd_end(size: int) -> int:
    """An initrd lies below this address, as with QEMU."""
    low_end = min(size, _PCI_HOLE)
    return low_end - _INITRD_SLACK - 1 if low_end >= 2 * HIGH_MEMORY else low_end


def memory_map(size: int) -> list[MemoryMapEntry]:
    """The map of `size` bytes of guest RAM, in order."""
    low_end, tables = min(size, _PCI_HOLE), acpi_base(size)
    ram_end = tables if tables >= HIGH_MEMORY else low_end
    ranges = (
        (0, EBDA, E820_RAM),
        (EBDA, LOW_MEMORY_END, E820_RESERVED),
        (_BIOS, HIGH_MEMORY, E820_RESERVED),
        (HIGH_MEMORY, ram_end, E820_RAM),
        (ram_end, low_end, E820_RESERVED),
        (_FLASH, _ABOVE_4G, E820_RESERVED),
        (_ABOVE_4G, _ABOVE_4G + size - low_end, E820_RAM),
    )
    return [MemoryMapEntry(Gpa(start), end - start, kind) for start, end, kind in ranges if start < end]
