"""What the boot loader leaves in memory and registers: PVH start info, entered in long mode.

The structures are those of Xen's PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h), so that one image
runs here and, through its PVH note, under QEMU. Here the CPU is already in 64-bit mode:

    CPL 0, IF = 0, paging on; the low 4 GiB identity-mapped by 2 MiB pages; no IDT
    CS 0x08 (64-bit code), DS ES SS 0x10; RSP = BOOT_STACK; RBX = RDI = gpa of the start info
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Gfn, Gpa
from ..x86 import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PGE,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    PT_ACCESSED,
    PT_DIRTY,
    PT_PAGE_SIZE,
    PT_PRESENT,
    PT_WRITABLE,
)

BOOT_GDT = Gpa(0x500)
BOOT_START_INFO = Gpa(0x6000)
BOOT_MEMMAP = Gpa(0x7000)
BOOT_STACK = Gpa(0x8FF0)
BOOT_PML4 = Gpa(0x9000)
BOOT_PDPT = Gpa(0xA000)
BOOT_PD = Gpa(0xB000)
BOOT_CMDLINE = Gpa(0x20000)
CMDLINE_MAX = 0x10000
BOOT_END = Gpa(0x30000)
"""Images load above; everything below may be reused once the guest has read it."""

CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
BOOT_CR0 = CR0_PG | 1 << 18 | CR0_WP | 1 << 5 | 1 << 4 | 1 << 1 | CR0_PE
BOOT_CR4 = CR4_PAE | CR4_PGE | 1 << 9 | 1 << 10
BOOT_EFER = EFER_LME | EFER_LMA | EFER_NX
GDT_ENTRIES = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)

_START_INFO_MAGIC = 0x336EC578
_MEMMAP_RAM, _MEMMAP_RESERVED = 1, 2
_LOW_MEMORY_END, _HIGH_MEMORY = 0xA0000, 0x100000
_PCI_HOLE, _ABOVE_4G = 0xC0000000, 1 << 32


class MemoryRange(NamedTuple):
    """Guest frames [base, base + npages)."""

    base: Gfn
    npages: int


def memory_layout(size: int) -> list[MemoryRange]:
    """Guest RAM of `size` bytes: below 3 GiB, and what is more from 4 GiB on, as on QEMU's pc."""
    low = min(size, _PCI_HOLE)
    ranges = [MemoryRange(Gfn(0), low >> PAGE_SHIFT)]
    if size > low:
        ranges.append(MemoryRange(Gfn(_ABOVE_4G >> PAGE_SHIFT), (size - low) >> PAGE_SHIFT))
    return ranges


def boot_data(size: int, cmdline: bytes) -> list[tuple[Gpa, bytes]]:
    """Everything to write below BOOT_END for a guest of `size` bytes: (gpa, bytes) pairs."""
    entries = _memory_map(size)
    memmap = b"".join(struct.pack("<QQII", base, length, kind, 0) for base, length, kind in entries)
    start_info = struct.pack(
        "<IIIIQQQQII", _START_INFO_MAGIC, 1, 0, 0, 0, BOOT_CMDLINE, 0, BOOT_MEMMAP, len(entries), 0
    )
    return [
        (BOOT_GDT, struct.pack("<3Q", *GDT_ENTRIES)),
        (BOOT_START_INFO, start_info),
        (BOOT_MEMMAP, memmap),
        (BOOT_CMDLINE, cmdline + b"\0"),
        *_identity_map(),
    ]


def _memory_map(size: int) -> list[tuple[int, int, int]]:
    low_end = min(size, _PCI_HOLE)
    entries = [(0, min(low_end, _LOW_MEMORY_END), _MEMMAP_RAM)]
    if low_end > _HIGH_MEMORY:
        entries.append((_LOW_MEMORY_END, _HIGH_MEMORY - _LOW_MEMORY_END, _MEMMAP_RESERVED))
        entries.append((_HIGH_MEMORY, low_end - _HIGH_MEMORY, _MEMMAP_RAM))
    if size > low_end:
        entries.append((_ABOVE_4G, size - low_end, _MEMMAP_RAM))
    return entries


def _identity_map() -> list[tuple[Gpa, bytes]]:
    table = PT_PRESENT | PT_WRITABLE | PT_ACCESSED
    leaf = table | PT_DIRTY | PT_PAGE_SIZE
    directories = struct.pack("<2048Q", *(n * HUGE_PAGE_SIZE | leaf for n in range(2048)))
    pdpt = struct.pack("<4Q", *(BOOT_PD + (n << PAGE_SHIFT) | table for n in range(4)))
    return [(BOOT_PML4, struct.pack("<Q", BOOT_PDPT | table)), (BOOT_PDPT, pdpt), (BOOT_PD, directories)]
