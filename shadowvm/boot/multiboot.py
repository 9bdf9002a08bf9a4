"""Multiboot 1 images (Multiboot Specification 0.6.96): ELF32, or flat with the header's address fields.

Memory as QEMU 7.2 lays it out, so that an image sees the same under both: the memory map at 0x9000 and the
information structure at 0x9500; right behind the kernel the list of modules and the strings, then each module on its
own page. "FILE ARGUMENTS" is the command line, and a comma separates the modules of -initrd (",," is a comma).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..addr import Gpa
from ..errors import ConfigError
from .elf import ELFCLASS32, ELFCLASS64, elf_class, parse_elf
from .image import (
    PROTECTED_MODE_GDT,
    BootImage,
    BootOptions,
    Kernel,
    ProtectedModeStart,
    Reserved,
    Segment,
    check_placement,
    page_align,
    read_file,
)
from .memmap import E820_RAM, HIGH_MEMORY, LOW_MEMORY_END, MemoryMapEntry

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002
"""In EAX at the entry."""
SEARCH = 8192
"""The header lies within so many bytes of the file's start."""

_MMAP = Gpa(0x9000)
_INFO = Gpa(0x9500)
_GDT = Gpa(0x9600)
_INFO_END = 0xA000
_ESP = 0x6F08

_ADDRESS_FIELDS = 1 << 16
_KNOWN_REQUIREMENTS = 0b111
"""Page-aligned modules, memory information, video mode. No mode is ever set, which QEMU leaves at, too."""
_INFO_FLAGS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
"""Valid in the information: memory, boot device, command line, modules, map, the loader's name."""
_BOOT_DEVICE = 0x8000FFFF
_LOADER_NAME = b"shadowvm\0"
_MAX_MODULES = 1024
_MAX_STRING = 1 << 16


class Header(NamedTuple):
    """`offset` of the header in the file, its flags and, where they announce them, the address fields."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None
    """header, load, load end, bss end, entry: guest-physical."""

    @property
    def has_addresses(self) -> bool:
        """Whether the flags announce the address fields."""
        return self.flags & _ADDRESS_FIELDS != 0


class Module(NamedTuple):
    """A file of -initrd and its command line."""

    data: bytes
    cmdline: bytes


def find_header(data: bytes) -> Header | None:
    """The first valid header, None if there is none (a wrong checksum is no header, as for QEMU)."""
    magic = struct.pack("<I", HEADER_MAGIC)
    end = min(len(data), SEARCH)
    at = data.find(magic, 0, end)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= end:
            _, flags, checksum = struct.unpack_from("<3I", data, at)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                return Header(at, flags, _address_fields(data, at, flags))
        at = data.find(magic, at + 1, end)
    return None


def _address_fields(data: bytes, at: int, flags: int) -> tuple[int, int, int, int, int] | None:
    if not flags & _ADDRESS_FIELDS or at + 32 > len(data):
        return None
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, at + 12)
    return header, load, load_end, bss_end, entry


def load_multiboot(path: str, data: bytes, header: Header, options: BootOptions) -> BootImage:
    """The image with its modules and information. ConfigError for everything that does not fit together."""
    if unknown := header.flags & 0xFFFF & ~_KNOWN_REQUIREMENTS:
        raise ConfigError(f"{path}: its Multiboot header requires features that are not there (flags {unknown:#x})")
    kernel = _kernel(path, data, header)
    check_placement(path, kernel.segments, options, Reserved("the boot information", _MMAP, _INFO_END))
    tail = _tail(path, kernel, options)
    segments = [*options.extra_segments, *kernel.segments, *tail.segments, *_information(options, tail)]
    start = ProtectedModeStart(kernel.entry, BOOT_MAGIC, _INFO, _GDT, len(PROTECTED_MODE_GDT) - 1, _ESP)
    return BootImage(segments, start)


def _kernel(path: str, data: bytes, header: Header) -> Kernel:
    """Address fields, where there are any, win over ELF's program headers."""
    if header.has_addresses:
        return _flat_kernel(path, data, header)
    found = elf_class(data)
    if found == ELFCLASS32:
        return parse_elf(path, data, ELFCLASS32, shared=True)
    what = "in a 64-bit ELF" if found == ELFCLASS64 else "in a file that is no ELF"
    raise ConfigError(f"{path}: a Multiboot header without address fields, {what}")


def _flat_kernel(path: str, data: bytes, header: Header) -> Kernel:
    if header.addresses is None:
        raise ConfigError(f"{path}: truncated Multiboot header")
    header_at, load, load_end, bss_end, entry = header.addresses
    begin = header.offset - (header_at - load)
    size = (load_end or load + len(data) - begin) - load
    if header_at < load or begin < 0:
        raise ConfigError(f"{path}: its Multiboot header says that the image is loaded from before its file")
    if size <= 0:
        raise ConfigError(f"{path}: its Multiboot header says that nothing is loaded")
    if begin + size > len(data):
        raise ConfigError(f"{path}: truncated: its Multiboot header asks for bytes {begin:#x}-{begin + size:#x}")
    memsz = bss_end - load if bss_end else size
    if memsz < size:
        raise ConfigError(f"{path}: its Multiboot header lets .bss end at {bss_end:#x}, before the loaded bytes")
    if not load <= entry < load + memsz:
        raise ConfigError(f"{path}: entry {entry:#x} is outside of the image")
    return Kernel(Gpa(entry), [Segment(Gpa(load), data[begin : begin + size], memsz)])


class _Tail(NamedTuple):
    """What lies behind the kernel."""

    segments: list[Segment]
    modules: int
    modules_at: int
    cmdline_at: int
    loader_at: int


def _tail(path: str, kernel: Kernel, options: BootOptions) -> _Tail:
    """List of modules, strings, modules. Never in the first MiB, where the platform has its tables."""
    base = max(page_align(kernel.end), HIGH_MEMORY)
    modules = _read_modules(options, max(0, options.free_end - base))
    strings = [*(each.cmdline for each in modules), _command_line(path, options), _LOADER_NAME]
    addresses = [base + 16 * len(modules)]
    for text in strings:
        addresses.append(addresses[-1] + len(text))
    at = page_align(addresses[-1])
    entries, segments = b"", []
    for module, cmdline_at in zip(modules, addresses, strict=False):
        entries += struct.pack("<4I", at, at + len(module.data), cmdline_at, 0)
        segments.append(Segment(Gpa(at), module.data, len(module.data)))
        at = page_align(at + len(module.data))
    head = entries + b"".join(strings)
    segments.insert(0, Segment(Gpa(base), head, len(head)))
    if segments[-1].end > options.free_end:
        raise ConfigError(f"{path}: no room behind the kernel for modules and command line; give more with -m")
    return _Tail(segments, len(modules), base, addresses[len(modules)], addresses[-2])


def _command_line(path: str, options: BootOptions) -> bytes:
    text = path.encode("utf-8", "surrogateescape") + b" " + options.append + b"\0"
    if len(text) > _MAX_STRING:
        raise ConfigError(f"-append: {len(options.append)} bytes are more than the {_MAX_STRING} that fit")
    return text


def _read_modules(options: BootOptions, room: int) -> list[Module]:
    """The files of -initrd, of `room` bytes together at most."""
    modules: list[Module] = []
    if not options.initrd:
        return modules
    items = [each.replace("\0", ",").lstrip(" ") for each in options.initrd.replace(",,", "\0").split(",")]
    if len(items) > _MAX_MODULES or any(len(each) > _MAX_STRING for each in items):
        raise ConfigError(f"-initrd: more than {_MAX_MODULES} modules, or too long a command line for one")
    for item in items:
        if not item:
            raise ConfigError("-initrd: a module without a name")
        data = read_file(item.split(" ", 1)[0], room, "-initrd")
        room -= page_align(len(data))
        modules.append(Module(data, item.encode("utf-8", "surrogateescape") + b"\0"))
        room = max(room, 0)
    return modules


def _information(options: BootOptions, tail: _Tail) -> list[Segment]:
    mmap = b"".join(struct.pack("<IQQI", 20, *entry) for entry in options.memory_map)
    if len(mmap) > _INFO - _MMAP:
        raise ConfigError(f"the memory map has {len(options.memory_map)} entries, more than a Multiboot guest can get")
    info = struct.pack(
        "<7I16x7I16x",
        *(_INFO_FLAGS, *_memory_sizes(options.memory_map), _BOOT_DEVICE, tail.cmdline_at),
        *(tail.modules, tail.modules_at),
        *(len(mmap), _MMAP, 0, 0, 0, tail.loader_at, 0),
    )
    pieces = [(_MMAP, mmap), (_INFO, info), (_GDT, PROTECTED_MODE_GDT)]
    return [Segment(gpa, data, len(data)) for gpa, data in pieces]


def _memory_sizes(entries: Sequence[MemoryMapEntry]) -> tuple[int, int]:
    """mem_lower and mem_upper in KiB: RAM from 0 and from 1 MiB on, up to the first hole."""
    ram = {each.base: each.length for each in entries if each.kind == E820_RAM}
    lower = min(ram.get(Gpa(0), 0), LOW_MEMORY_END)
    return lower >> 10, min(ram.get(Gpa(HIGH_MEMORY), 0) >> 10, 0xFFFF_FFFF)
