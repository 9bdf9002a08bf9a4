"""Chooses a loader by what is in the file, as QEMU's -kernel and -bios do.

    Multiboot header with addresses, or in an ELF32   protected mode, multiboot.py
    ELF64 or ELF32 with a PVH note                    protected mode, pvh32.py
    ELF64 without one, or with our note               long mode, pvh.py
    anything, with --load-address                     long mode, pvh.py
    -bios FILE                                        the reset vector, firmware.py; a kernel is handed to the firmware

The first that fits wins, so that whatever QEMU starts is started in the same way. Anything else is refused with one
line.
"""

from __future__ import annotations

from ..errors import ConfigError
from . import multiboot
from .elf import ELFCLASS32, ELFCLASS64, elf_class, elf_notes
from .firmware import load_firmware
from .image import BootImage, BootOptions, read_kernel
from .pvh import asks_for_long_mode, load_flat, load_long_mode
from .pvh32 import load_pvh, pvh_entry

_MULTIBOOT2_MAGIC = b"\xd6\x50\x52\xe8"
_LINUX_MAGIC = b"HdrS"


def load_image(kernel: str | None, options: BootOptions, bios: str | None = None) -> BootImage:
    """Read the files and lay out guest memory. ConfigError for everything that cannot be booted."""
    if bios is not None:
        if options.load_address is not None:
            raise ConfigError("--load-address: firmware has its place; give it without -bios")
        return load_firmware(bios, kernel, options)
    if kernel is None:
        raise ConfigError("nothing to boot: give a kernel image or -bios")
    return parse_image(kernel, read_kernel(kernel, options), options)


def parse_image(path: str, data: bytes, options: BootOptions) -> BootImage:
    """The image of a kernel whose file, named `path`, holds `data`."""
    found = elf_class(data)
    if options.load_address is not None and data:
        return load_flat(path, data, options, options.load_address)
    header = multiboot.find_header(data)
    if header is not None and (found != ELFCLASS64 or header.has_addresses):
        return multiboot.load_multiboot(path, data, header, options)
    if found in (ELFCLASS32, ELFCLASS64):
        return _load_elf(path, data, found, options)
    raise ConfigError(f"{path}: {_refusal(data, found)}")


def _load_elf(path: str, data: bytes, elfclass: int, options: BootOptions) -> BootImage:
    """An ELF without a Multiboot header: its notes decide."""
    notes = elf_notes(path, data, elfclass)
    entry = pvh_entry(notes)
    if elfclass == ELFCLASS64 and (entry is None or asks_for_long_mode(notes)):
        return load_long_mode(path, data, options)
    if entry is None:
        raise ConfigError(f"{path}: a 32-bit ELF without a Multiboot header in its first 8 KiB or a PVH note")
    return load_pvh(path, data, elfclass, entry, options)


def _refusal(data: bytes, found: int | None) -> str:
    if not data:
        return "empty file"
    if found is not None:
        return f"an ELF of unknown class {found}"
    if data[0x202:0x206] == _LINUX_MAGIC:
        return "a Linux bzImage; these are not supported"
    if _MULTIBOOT2_MAGIC in data[:32768]:
        return "a Multiboot 2 image; only Multiboot 1 is supported"
    return (
        "not an ELF image, and no Multiboot header in its first 8 KiB; firmware is given with -bios, a flat image with "
        "--load-address"
    )
