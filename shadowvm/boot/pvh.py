"""What the boot loader leaves in memory and registers: PVH start info, entered in long mode.

The structures are those of Xen's PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h), so that one image
runs here and, through its PVH note, under QEMU. Here the CPU is already in 64-bit mode:

    CPL 0, IF = 0, paging on; the low 4 GiB identity-mapped by 2 MiB pages; no IDT
    CS 0x08 (64-bit code), DS ES SS 0x10; RSP = BOOT_STACK; RBX = RDI = gpa of the start info
"""

from __future__ import annotations

import struct

from ..addr import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Gpa
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
from .elf import ELFCLASS64, parse_elf
from .image import BootImage, BootOptions, Kernel, LongModeStart, Reserved, Segment, check_placement, read_file

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

_START_INFO_MAGIC = 0x336EC578


def load_long_mode(path: str, data: bytes, options: BootOptions) -> BootImage:
    """An ELF64 named `path` with content `data`, together with its boot data."""
    kernel = parse_elf(path, data, ELFCLASS64)
    check_placement(path, kernel.segments, options, Reserved("the boot data", 0, BOOT_END))
    module = _module(kernel, options) if options.initrd else None
    start = LongModeStart(kernel.entry, BOOT_START_INFO)
    tables = [Segment(gpa, each, len(each)) for gpa, each in boot_data(options, module)]
    modules = [] if module is None else [module]
    return BootImage([*tables, *options.extra_segments, *kernel.segments, *modules], start)


def _module(kernel: Kernel, options: BootOptions) -> Segment:
    """The one file of -initrd, at the end of low memory, where QEMU puts it too."""
    path = options.initrd
    data = read_file(path, options.low_end, "-initrd")
    gpa = options.low_end - len(data) & -PAGE_SIZE
    segment = Segment(Gpa(gpa), data, len(data))
    taken = [Reserved("the kernel", each.gpa, each.end) for each in kernel.segments]
    check_placement(f"-initrd: {path}", [segment], options, Reserved("the boot data", 0, BOOT_END), *taken)
    return segment


def boot_data(options: BootOptions, module: Segment | None = None) -> list[tuple[Gpa, bytes]]:
    """Everything to write below BOOT_END: (gpa, bytes) pairs. ConfigError: the command line is too long."""
    if len(options.append) >= CMDLINE_MAX:
        raise ConfigError(f"-append: {len(options.append)} bytes are more than the {CMDLINE_MAX - 1} that fit")
    entries = options.memory_map
    modlist = b"" if module is None else struct.pack("<4Q", module.gpa, module.memsz, 0, 0)
    memmap = b"".join(struct.pack("<QQII", base, length, kind, 0) for base, length, kind in entries)
    start_info = struct.pack(
        "<IIIIQQQQII",
        *(_START_INFO_MAGIC, 1, 0, module is not None),
        *(BOOT_MODLIST if module else 0, BOOT_CMDLINE, options.rsdp, BOOT_MEMMAP),
        *(len(entries), 0),
    )
    return [
        (BOOT_GDT, struct.pack("<3Q", *GDT_ENTRIES)),
        (BOOT_START_INFO, start_info.ljust(BOOT_MODLIST - BOOT_START_INFO, b"\0") + modlist),
        (BOOT_MEMMAP, memmap),
        (BOOT_CMDLINE, options.append + b"\0"),
        *_identity_map(),
    ]


def _identity_map() -> list[tuple[Gpa, bytes]]:
    table = PT_PRESENT | PT_WRITABLE | PT_ACCESSED
    leaf = table | PT_DIRTY | PT_PAGE_SIZE
    directories = struct.pack("<2048Q", *(n * HUGE_PAGE_SIZE | leaf for n in range(2048)))
    pdpt = struct.pack("<4Q", *(BOOT_PD + (n << PAGE_SHIFT) | table for n in range(4)))
    return [(BOOT_PML4, struct.pack("<Q", BOOT_PDPT | table)), (BOOT_PDPT, pdpt), (BOOT_PD, directories)]
