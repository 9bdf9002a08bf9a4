"""Kernels that are entered as QEMU's -kernel enters them through their PVH note: 32-bit protected mode.

    CPL 0, IF = 0, no paging, CR0 0x11; flat segments CS 0x08, others 0x10; EBX = gpa of struct hvm_start_info

Boot data lies where QEMU 7.2 puts it (pc-bios/optionrom/pvh_main.c): map, command line, module list and start info
below 0x2300, the stack below 0x6edc; and an initrd at the end of low memory.
"""

from __future__ import annotations

from ..addr import Gpa
from .elf import Note, parse_elf
from .image import (
    PROTECTED_MODE_GDT,
    BootImage,
    BootOptions,
    ProtectedModeStart,
    Reserved,
    Segment,
    check_placement,
)
from .start_info import Places, initrd_module, start_info

XEN_ELFNOTE_PHYS32_ENTRY = 18
"""Whoever its name says made it; QEMU does not look at the name either."""

_PLACES = Places(
    start_info=Gpa(0x21E0), modlist=Gpa(0x21C0), memmap=Gpa(0x5A8), cmdline=Gpa(0x11C0), cmdline_max=0x1000
)
_GDT = Gpa(0x2300)
_ESP = 0x6EDC
_BOOT_DATA = Reserved("the boot data", 0x500, 0x7000)


def pvh_entry(notes: list[Note]) -> int | None:
    """The guest-physical entry that the notes give; None if they give none."""
    for note in notes:
        if note.kind == XEN_ELFNOTE_PHYS32_ENTRY and len(note.desc) >= 4:
            return int.from_bytes(note.desc[:4], "little")
    return None


def load_pvh(path: str, data: bytes, elfclass: int, entry: int, options: BootOptions) -> BootImage:
    """An ELF of either class together with its boot data."""
    kernel = parse_elf(path, data, elfclass, entry, shared=True)
    check_placement(path, kernel.segments, options, _BOOT_DATA)
    module = initrd_module(kernel, options, _BOOT_DATA)
    placed = [*start_info(options, module, _PLACES), (_GDT, PROTECTED_MODE_GDT)]
    tables = [Segment(gpa, each, len(each)) for gpa, each in placed]
    modules = [] if module is None else [module]
    start = ProtectedModeStart(kernel.entry, 0, _PLACES.start_info, _GDT, len(PROTECTED_MODE_GDT) - 1, _ESP)
    return BootImage([*tables, *options.extra_segments, *kernel.segments, *modules], start)
