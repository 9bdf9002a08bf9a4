"""ELF executables of both classes: what to load where, and where to start.

Only the ELF header and the program headers are read, so that broken section headers do not matter (nor cost) here.
Segments go to their physical addresses. Everything that cannot be loaded is refused with a ConfigError that names the
file and what is wrong with it.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ..addr import Gpa
from ..errors import ConfigError
from .image import Kernel, Segment

ELF_MAGIC = b"\x7fELF"
ELFCLASS32, ELFCLASS64 = 1, 2
_ELFDATA2LSB = 1
_ET_EXEC = 2
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD = 1
_MACHINES = {_EM_386: "i386", _EM_X86_64: "x86-64", 40: "ARM", 183: "AArch64", 243: "RISC-V"}


class _ElfClass(NamedTuple):
    """Layouts of one class. `fields`: index of p_offset, p_vaddr, p_paddr, p_filesz, p_memsz in `phdr`."""

    bits: int
    machine: int
    ehdr: Struct
    phdr: Struct
    fields: tuple[int, int, int, int, int]


_CLASSES = {
    ELFCLASS32: _ElfClass(32, _EM_386, Struct("<16xHHIIIIIHHHHHH"), Struct("<8I"), (1, 2, 3, 4, 5)),
    ELFCLASS64: _ElfClass(64, _EM_X86_64, Struct("<16xHHIQQQIHHHHHH"), Struct("<IIQQQQQQ"), (2, 3, 4, 5, 6)),
}


class _ProgramHeader(NamedTuple):
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


def elf_class(data: bytes) -> int | None:
    """ELFCLASS32 or ELFCLASS64 (or what else the file says); None if it is no ELF."""
    return data[4] if data[:4] == ELF_MAGIC and len(data) > 5 else None


def parse_elf(path: str, data: bytes, elfclass: int) -> Kernel:
    """Read an executable of one class. The placement of its segments is not checked here."""
    layout = _CLASSES[elfclass]
    _check_ident(path, data, elfclass, layout)
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = layout.ehdr.unpack_from(data)
    if machine != layout.machine:
        name = _MACHINES.get(machine, f"machine {machine}")
        raise ConfigError(f"{path}: made for another machine ({name}), not {_MACHINES[layout.machine]}")
    if kind != _ET_EXEC:
        raise ConfigError(f"{path}: not an executable image (type {kind})")
    if phnum and phentsize != layout.phdr.size:
        raise ConfigError(f"{path}: program headers of {phentsize} bytes, not {layout.phdr.size}")
    if phoff + phnum * layout.phdr.size > len(data):
        raise ConfigError(f"{path}: truncated: program headers reach beyond the end of the file")
    headers = _program_headers(data[phoff : phoff + phnum * layout.phdr.size], layout)
    if not headers:
        raise ConfigError(f"{path}: no segments to load")
    _check_headers(path, headers, len(data))
    segments = [Segment(Gpa(h.paddr), data[h.offset : h.offset + h.filesz], h.memsz) for h in headers]
    for header in headers:
        if header.vaddr <= entry < header.vaddr + header.memsz:
            return Kernel(Gpa(entry - header.vaddr + header.paddr), segments)
    raise ConfigError(f"{path}: entry {entry:#x} is in no segment")


def _check_ident(path: str, data: bytes, elfclass: int, layout: _ElfClass) -> None:
    if data[:4] != ELF_MAGIC:
        raise ConfigError(f"{path}: not an ELF image")
    if len(data) < layout.ehdr.size:
        raise ConfigError(f"{path}: truncated ELF header ({len(data)} bytes)")
    if data[4] != elfclass or data[5] != _ELFDATA2LSB:
        raise ConfigError(f"{path}: not a {layout.bits}-bit little-endian ELF; build the guest for x86-64")


def _program_headers(table: bytes, layout: _ElfClass) -> list[_ProgramHeader]:
    """The headers of what is to be loaded."""
    rows = layout.phdr.iter_unpack(table)
    headers = (_ProgramHeader(*(row[index] for index in layout.fields)) for row in rows if row[0] == _PT_LOAD)
    return [each for each in headers if each.memsz]


def _check_headers(path: str, headers: list[_ProgramHeader], size: int) -> None:
    for each in headers:
        if each.filesz > each.memsz:
            raise ConfigError(f"{path}: segment at {each.paddr:#x} has more bytes in the file than in memory")
        if each.offset + each.filesz > size:
            raise ConfigError(f"{path}: truncated: segment at {each.paddr:#x} reaches beyond the end of the file")
    if sum(each.filesz for each in headers) > size:
        raise ConfigError(f"{path}: its segments have more bytes than the file")
