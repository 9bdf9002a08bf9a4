"""Xen's hvm_start_info (xen/include/public/arch-x86/hvm/start_info.h), version 1, and what it points to."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..addr import PAGE_SIZE, Gpa
from ..errors import ConfigError
from .image import BootOptions, Kernel, Reserved, Segment, check_placement, read_file

_MAGIC = 0x336EC578


class Places(NamedTuple):
    """Where each part lies, and how many bytes the command line and its zero may have."""

    start_info: Gpa
    modlist: Gpa
    memmap: Gpa
    cmdline: Gpa
    cmdline_max: int


def start_info(options: BootOptions, module: Segment | None, places: Places) -> list[tuple[Gpa, bytes]]:
    """Start info, memory map, command line and list of modules. ConfigError: the command line is too long."""
    if len(options.append) >= places.cmdline_max:
        raise ConfigError(f"-append: {len(options.append)} bytes are more than the {places.cmdline_max - 1} that fit")
    entries = options.memory_map
    memmap = b"".join(struct.pack("<QQII", base, length, kind, 0) for base, length, kind in entries)
    info = struct.pack(
        "<IIIIQQQQII",
        *(_MAGIC, 1, 0, module is not None),
        *(places.modlist if module else 0, places.cmdline, options.rsdp, places.memmap),
        *(len(entries), 0),
    )
    placed = [(places.start_info, info), (places.memmap, memmap), (places.cmdline, options.append + b"\0")]
    if module is not None:
        placed.append((places.modlist, struct.pack("<4Q", module.gpa, module.memsz, 0, 0)))
    return placed


def initrd_module(kernel: Kernel, options: BootOptions, boot_data: Reserved) -> Segment | None:
    """The one file of -initrd, if there is one, at the end of low memory, where QEMU puts it too."""
    if not options.initrd:
        return None
    path = options.initrd
    data = read_file(path, options.initrd_end, "-initrd")
    gpa = options.initrd_end - len(data) & -PAGE_SIZE
    segment = Segment(Gpa(gpa), data, len(data))
    taken = [Reserved("the kernel", each.gpa, each.end) for each in kernel.segments]
    check_placement(f"-initrd: {path}", [segment], options, boot_data, *taken)
    return segment
