"""Chooses a loader by what is in the file, as QEMU's -kernel and -bios do.

    ELF64                                 long mode, pvh.py
    ELF32 or flat, with Multiboot header  protected mode, multiboot.py
    -bios FILE                            the reset vector, firmware.py; a kernel is handed to the firmware

Anything else is refused with one line.
"""

from __future__ import annotations

from ..errors import ConfigError
from . import multiboot
from .elf import ELFCLASS32, ELFCLASS64, elf_class
from .firmware import load_firmware
from .image import BootImage, BootOptions, read_kernel
from .pvh import load_long_mode

_MULTIBOOT2_MAGIC = b"\xd6\x50\x52\xe8"
_LINUX_MAGIC = b"HdrS"


def load_image(kernel: str | None, options: BootOptions, bios: str | None = None) -> BootImage:
    """Read the files and lay out guest memory. ConfigError for everything that cannot be booted."""
    if bios is not None:
        return load_firmware(bios, kernel, options)
    if kernel is None:
        raise ConfigError("nothing to boot: give a kernel image or -bios")
    return parse_image(kernel, read_kernel(kernel, options), options)


def parse_image(path: str, data: bytes, options: BootOptions) -> BootImage:
    """The image of a kernel whose file, named `path`, holds `data`."""
    found = elf_class(data)
    if found == ELFCLASS64:
        return load_long_mode(path, data, options)
    header = multiboot.find_header(data)
    if header is not None:
        return multiboot.load_multiboot(path, data, header, options)
    raise ConfigError(f"{path}: {_refusal(data, found)}")


def _refusal(data: bytes, found: int | None) -> str:
    if not data:
        return "empty file"
    if found == ELFCLASS32:
        return "a 32-bit ELF without a Multiboot header in its first 8 KiB"
    if found is not None:
        return f"an ELF of unknown class {found}"
    if data[0x202:0x206] == _LINUX_MAGIC:
        return "a Linux bzImage; these are not supported"
    if _MULTIBOOT2_MAGIC in data[:32768]:
        return "a Multiboot 2 image; only Multiboot 1 is supported"
    return "not an ELF image, and no Multiboot header in its first 8 KiB; firmware is given with -bios"
