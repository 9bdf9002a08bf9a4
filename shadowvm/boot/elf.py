"""ELF executables of both classes: what to load where, and where to start.

Only the ELF header, the program headers and notes are read, so that broken section headers do not matter (nor cost)
here. Segments go to their physical addresses. Everything that cannot be loaded is refused with a ConfigError that names
the file and what is wrong with it.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import NamedTuple

from ..addr import Gpa
from ..errors import ConfigError
from .image import Kernel, Segment

ELF_MAGIC = b"\x7fELF"
ELFCLASS32, ELFCLASS64 = 1, 2
_ELFDATA2LSB = 1
_E_TYPE = slice(16, 18)
_ET_EXEC, _ET_DYN = 2, 3
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_NOTE = 1, 4
_MAX_NOTES = 1 << 16
"""Bytes of notes that are looked at."""
_MACHINES = {_EM_386: "i386", _EM_X86_64: "x86-64", 40: "ARM", 183: "AArch64", 243: "RISC-V"}


class _ElfClass(NamedTuple):
    """Layouts of one class. `fields`: index of p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align."""

    bits: int
    machine: int
    ehdr: Struct
    phdr: Struct
    fields: tuple[int, int, int, int, int, int, int]


_CLASSES = {
    ELFCLASS32: _ElfClass(32, _EM_386, Struct("<16xHHIIIIIHHHHHH"), Struct("<8I"), (0, 1, 2, 3, 4, 5, 7)),
    ELFCLASS64: _ElfClass(64, _EM_X86_64, Struct("<16xHHIQQQIHHHHHH"), Struct("<IIQQQQQQ"), (0, 2, 3, 4, 5, 6, 7)),
}


class _ProgramHeader(NamedTuple):
    kind: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Note(NamedTuple):
    """An entry of a PT_NOTE segment."""

    name: bytes
    kind: int
    desc: bytes


def elf_class(data: bytes) -> int | None:
    """ELFCLASS32 or ELFCLASS64 (or what else the file says); None if it is no ELF."""
    return data[4] if data[:4] == ELF_MAGIC and len(data) > 5 else None


def parse_elf(path: str, data: bytes, elfclass: int, entry: int | None = None, *, shared: bool = False) -> Kernel:
    """Read an executable of one class, which starts at guest-physical `entry`, or where its header says.

    shared: position-independent ones are welcome, which QEMU loads where they are linked. The placement of segments
    is not checked here.
    """
    e_entry, headers = _read_headers(path, data, elfclass)
    if not shared and int.from_bytes(data[_E_TYPE], "little") != _ET_EXEC:
        raise ConfigError(f"{path}: a shared object, not an executable image")
    loaded = [each for each in headers if each.kind == _PT_LOAD and each.memsz]
    if not loaded:
        raise ConfigError(f"{path}: no segments to load")
    _check_headers(path, loaded, len(data))
    segments = [Segment(Gpa(h.paddr), data[h.offset : h.offset + h.filesz], h.memsz) for h in loaded]
    gpa = _physical_entry(loaded, e_entry) if entry is None else entry
    if not any(0 <= gpa - header.paddr < header.memsz for header in loaded):
        raise ConfigError(f"{path}: entry {gpa:#x} is in no segment")
    return Kernel(Gpa(gpa), segments)


def _physical_entry(loaded: list[_ProgramHeader], e_entry: int) -> int:
    """Where e_entry is loaded. Outside of every segment's virtual addresses it is physical already: kernels linked
    high name an entry that runs before paging (load_elf of QEMU's hw/elf_ops.h takes both).
    """
    for header in loaded:
        if 0 <= e_entry - header.vaddr < header.memsz:
            return header.paddr + e_entry - header.vaddr
    return e_entry


def elf_notes(path: str, data: bytes, elfclass: int) -> list[Note]:
    """The notes of an executable; a note that its segment or the file cuts off ends the list of its segment."""
    notes: list[Note] = []
    budget = _MAX_NOTES
    for header in _read_headers(path, data, elfclass)[1]:
        if header.kind == _PT_NOTE:
            size = min(header.filesz, budget)
            notes += _parse_notes(data[header.offset : header.offset + size], 8 if header.align == 8 else 4)
            budget -= size
    return notes


def _parse_notes(data: bytes, align: int) -> list[Note]:
    notes: list[Note] = []
    at = 0
    while at + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<3I", data, at)
        desc = at + (12 + namesz + align - 1 & -align)
        if desc + descsz > len(data):
            break
        notes.append(Note(data[at + 12 : at + 12 + namesz], kind, data[desc : desc + descsz]))
        at = desc + (descsz + align - 1 & -align)
    return notes


def _read_headers(path: str, data: bytes, elfclass: int) -> tuple[int, list[_ProgramHeader]]:
    """e_entry and the program headers of a file that is made for this CPU."""
    layout = _CLASSES[elfclass]
    _check_ident(path, data, elfclass, layout)
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = layout.ehdr.unpack_from(data)
    if machine != layout.machine:
        name = _MACHINES.get(machine, f"machine {machine}")
        wanted = _MACHINES[layout.machine]
        raise ConfigError(f"{path}: a {layout.bits}-bit ELF made for another machine ({name}), not {wanted}")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise ConfigError(f"{path}: not an executable image (type {kind})")
    if phnum and phentsize != layout.phdr.size:
        raise ConfigError(f"{path}: program headers of {phentsize} bytes, not {layout.phdr.size}")
    if phoff + phnum * layout.phdr.size > len(data):
        raise ConfigError(f"{path}: truncated: program headers reach beyond the end of the file")
    rows = layout.phdr.iter_unpack(data[phoff : phoff + phnum * layout.phdr.size])
    return entry, [_ProgramHeader(*(row[index] for index in layout.fields)) for row in rows]


def _check_ident(path: str, data: bytes, elfclass: int, layout: _ElfClass) -> None:
    if data[:4] != ELF_MAGIC:
        raise ConfigError(f"{path}: not an ELF image")
    if len(data) < layout.ehdr.size:
        raise ConfigError(f"{path}: truncated ELF header ({len(data)} bytes)")
    if data[4] != elfclass or data[5] != _ELFDATA2LSB:
        raise ConfigError(f"{path}: not a {layout.bits}-bit little-endian ELF; build the guest for x86-64")


def _check_headers(path: str, headers: list[_ProgramHeader], size: int) -> None:
    for each in headers:
        if each.filesz > each.memsz:
            raise ConfigError(f"{path}: segment at {each.paddr:#x} has more bytes in the file than in memory")
        if each.offset + each.filesz > size:
            raise ConfigError(f"{path}: truncated: segment at {each.paddr:#x} reaches beyond the end of the file")
    if sum(each.filesz for each in headers) > size:
        raise ConfigError(f"{path}: its segments have more bytes than the file")
