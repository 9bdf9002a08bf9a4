"""What the boot loader leaves in memory and registers: PVH start info, entered in long mode at e_entry.

The structures are those of Xen's PVH boot protocol, so that one image runs here and, through its PVH note, under
QEMU. Here the CPU is already in 64-bit mode. ELF64 images without a PVH note are entered so, and those that ask for it
by a note of their own: name "shadowvm", type 1, no description.

    CPL 0, IF = 0, paging on; the low 4 GiB identity-mapped by 2 MiB pages; no IDT
    CS 0x08 (64-bit code), DS ES SS 0x10; RSP = BOOT_STACK; RBX = RDI = gpa of the start info
"""

from __future__ import annotations

import struct

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Gpa
from ..errors import ConfigError
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
from .elf import ELFCLASS64, Note, parse_elf
from .image import BootImage, BootOptions, Kernel, LongModeStart, Reserved, Segment, check_placement
from .start_info import Places, initrd_module, start_info

BOOT_GDT = Gpa(0x500)
BOOT_START_INFO = Gpa(0x6000)
BOOT_MODLIST = Gpa(0x6100)
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

_PLACES = Places(BOOT_START_INFO, BOOT_MODLIST, BOOT_MEMMAP, BOOT_CMDLINE, CMDLINE_MAX)
_NOTE_NAME, _NOTE_LONG_MODE = b"shadowvm\0", 1


def asks_for_long_mode(notes: list[Note]) -> bool:
    """Whether an image with a PVH note wants to be entered in long mode all the same."""
    return any(note.name == _NOTE_NAME and note.kind == _NOTE_LONG_MODE for note in notes)


def load_long_mode(path: str, data: bytes, options: BootOptions) -> BootImage:
    """An ELF64 named `path` with content `data`, together with its boot data."""
    return enter_long_mode(path, parse_elf(path, data, ELFCLASS64), options)


def load_flat(path: str, data: bytes, options: BootOptions, address: int) -> BootImage:
    """Bytes without any header, loaded and entered at `address`."""
    segment = Segment(Gpa(address), data, len(data))
    return enter_long_mode(path, Kernel(segment.gpa, [segment]), options)


def enter_long_mode(path: str, kernel: Kernel, options: BootOptions) -> BootImage:
    """A kernel with its boot data, entered in long mode."""
    taken = Reserved("the boot data", 0, BOOT_END)
    check_placement(path, kernel.segments, options, taken)
    if kernel.entry >= 1 << 32:
        raise ConfigError(f"{path}: entry {kernel.entry:#x} lies above the 4 GiB that are mapped")
    module = initrd_module(kernel, options, taken)
    start = LongModeStart(kernel.entry, BOOT_START_INFO)
    tables = [Segment(gpa, each, len(each)) for gpa, each in boot_data(options, module)]
    modules = [] if module is None else [module]
    return BootImage([*tables, *options.extra_segments, *kernel.segments, *modules], start)


def boot_data(options: BootOptions, module: Segment | None = None) -> list[tuple[Gpa, bytes]]:
    """Everything to write below BOOT_END: (gpa, bytes) pairs. ConfigError: the command line is too long."""
    gdt = (BOOT_GDT, struct.pack("<3Q", *GDT_ENTRIES))
    return [gdt, *start_info(options, module, _PLACES), *_identity_map()]


def _identity_map() -> list[tuple[Gpa, bytes]]:
    table = PT_PRESENT | PT_WRITABLE | PT_ACCESSED
    leaf = table | PT_DIRTY | PT_PAGE_SIZE
    directories = struct.pack("<2048Q", *(n * HUGE_PAGE_SIZE | leaf for n in range(2048)))
    pdpt = struct.pack("<4Q", *(BOOT_PD + (n << PAGE_SHIFT) | table for n in range(4)))
    return [(BOOT_PML4, struct.pack("<Q", BOOT_PDPT | table)), (BOOT_PDPT, pdpt), (BOOT_PD, directories)]
