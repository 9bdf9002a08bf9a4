"""Firmware at the reset vector, and how it is handed a kernel.

The image ends at 4 GiB, read-only, and its last 128 KiB are also in memory below 1 MiB, as on a PC. A kernel (an ELF64)
lies in memory already when the firmware starts; the firmware learns of it through fw_cfg, by the keys that QEMU uses
for PVH kernels (hw/i386/x86.c), so that one firmware serves both: where it lies, its entry, its command line, the
first 8 KiB of its file, and the initrd. Memory is empty but for these: tables of the platform are the firmware's to
make, from what fw_cfg has.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

from ..addr import Gpa
from ..errors import ConfigError
from .elf import ELFCLASS64, elf_class, parse_elf
from .image import (
    BootImage,
    BootOptions,
    Reserved,
    ResetStart,
    Segment,
    check_placement,
    read_file,
    read_kernel,
)
from .memmap import HIGH_MEMORY
from .pvh import BOOT_END, CMDLINE_MAX

FW_CFG_KERNEL_ADDR, FW_CFG_KERNEL_SIZE, FW_CFG_INITRD_ADDR, FW_CFG_INITRD_SIZE = 0x07, 0x08, 0x0A, 0x0B
FW_CFG_KERNEL_ENTRY, FW_CFG_INITRD_DATA, FW_CFG_CMDLINE_SIZE, FW_CFG_CMDLINE_DATA = 0x10, 0x12, 0x14, 0x15
FW_CFG_SETUP_SIZE, FW_CFG_SETUP_DATA = 0x17, 0x18
"""Numbers are 32-bit little endian, the command line ends with a zero."""

_BLOCK = 64 << 10
_MAX_SIZE = 16 << 20
_LOW_COPY = 128 << 10
_FOUR_GIB = 1 << 32
_HEADER_SIZE = 8192


def load_firmware(path: str, kernel: str | None, options: BootOptions) -> BootImage:
    """The image of -bios, with a kernel or alone. ConfigError: it is no firmware, or the kernel does not go with it."""
    options = replace(options, extra=())
    data = read_file(_find(path), _MAX_SIZE, "-bios")
    if not data or len(data) % _BLOCK:
        raise ConfigError(f"-bios: {path}: {len(data)} bytes are not a multiple of 64 KiB, as firmware is")
    if elf_class(data) is not None:
        raise ConfigError(f"-bios: {path}: an ELF image, not firmware; give it as the kernel")
    low = data[-_LOW_COPY:]
    copy = Segment(Gpa(HIGH_MEMORY - len(low)), low, len(low))
    rom = Segment(Gpa(_FOUR_GIB - len(data)), data, len(data))
    segments, fw_cfg = [copy], dict[int, bytes]()
    if kernel is not None:
        more, fw_cfg = _kernel(kernel, copy, options)
        segments += more
    return BootImage(segments, ResetStart(), (rom,), fw_cfg)


def _find(path: str) -> str:
    """The file; a name that is no file here may be one of ours, inside the installed package or the source tree."""
    package = Path(__file__).parents[1]
    folder = package / "_firmware" if (package / "_firmware").is_dir() else package.parent / "firmware"
    bundled = folder / path
    ours = "/" not in path and not Path(path).exists() and bundled.suffix == ".bin" and bundled.is_file()
    return str(bundled) if ours else path


def _kernel(path: str, copy: Segment, options: BootOptions) -> tuple[list[Segment], dict[int, bytes]]:
    """The kernel's segments and what fw_cfg says about them."""
    data = read_kernel(path, options)
    if elf_class(data) != ELFCLASS64:
        raise ConfigError(f"{path}: not an ELF64; with -bios only these can be handed to the firmware")
    if len(options.append) >= CMDLINE_MAX:
        raise ConfigError(f"-append: {len(options.append)} bytes are more than the {CMDLINE_MAX - 1} that fit")
    kernel = parse_elf(path, data, ELFCLASS64)
    taken = (Reserved("the boot data", 0, BOOT_END), Reserved("the firmware", copy.gpa, copy.end))
    check_placement(path, kernel.segments, options, *taken)
    start = min(each.gpa for each in kernel.segments)
    if kernel.end > options.low_end:
        raise ConfigError(f"{path}: with -bios a kernel lies below 4 GiB")
    header = data[:_HEADER_SIZE].ljust(_HEADER_SIZE, b"\0")
    cmdline = options.append + b"\0"
    return kernel.segments, {
        FW_CFG_KERNEL_ADDR: _u32(start),
        FW_CFG_KERNEL_SIZE: _u32(kernel.end - start),
        FW_CFG_KERNEL_ENTRY: _u32(kernel.entry),
        FW_CFG_CMDLINE_SIZE: _u32(len(cmdline)),
        FW_CFG_CMDLINE_DATA: cmdline,
        FW_CFG_SETUP_SIZE: _u32(len(header)),
        FW_CFG_SETUP_DATA: header,
        **_initrd(kernel.end, options),
    }


def _initrd(kernel_end: int, options: BootOptions) -> dict[int, bytes]:
    """The file of -initrd, which the firmware copies to the end of low memory."""
    if not options.initrd:
        return {}
    data = read_file(options.initrd, options.initrd_end, "-initrd")
    address = options.initrd_end - len(data) & -4096
    if address < max(kernel_end, HIGH_MEMORY):
        raise ConfigError(f"-initrd: {options.initrd}: no room behind the kernel; give more with -m")
    return {
        FW_CFG_INITRD_ADDR: _u32(address),
        FW_CFG_INITRD_SIZE: _u32(len(data)),
        FW_CFG_INITRD_DATA: data,
    }


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)
