"""A small ELF loader: maps x86-64 relocatable objects into executable memory of this process.

Knows what LLVM emits for our callbacks: code and read-only data, relocations R_X86_64_64, PC32, PLT32 and PC64
against symbols of the same object (gABI chapter 4, x86-64 psABI 4.4.1). Anything else is refused with ModelBug.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import NamedTuple

from ...errors import ModelBug

SHT_SYMTAB, SHT_RELA = 2, 4
SHF_ALLOC = 2
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00
STT_SECTION = 3
R_64, R_PC32, R_PLT32, R_PC64 = 1, 2, 4, 24
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
RELA = struct.Struct("<QQq")
ALIGN = 16


class Section(NamedTuple):
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int


class Symbol(NamedTuple):
    name: str
    section: int
    value: int


def _string(blob: bytes, at: int) -> str:
    return blob[at : blob.index(b"\0", at)].decode()


def sections_of(blob: bytes) -> list[Section]:
    """The section table of a relocatable x86-64 object."""
    head = EHDR.unpack_from(blob)
    if head[0][:6] != b"\x7fELF\x02\x01" or head[1:3] != (1, 62):
        raise ModelBug("native code: not a relocatable x86-64 object")
    raw = [SHDR.unpack_from(blob, head[6] + i * SHDR.size) for i in range(head[12])]
    names = raw[head[13]][4]
    return [Section(_string(blob, names + s[0]), s[1], s[2], s[4], s[5], s[6], s[7]) for s in raw]


def symbols_of(blob: bytes, sections: list[Section]) -> list[Symbol]:
    table = next(s for s in sections if s.type == SHT_SYMTAB)
    strings = sections[table.link].offset
    symbols = []
    for at in range(table.offset, table.offset + table.size, SYM.size):
        name, _info, _other, section, value, _size = SYM.unpack_from(blob, at)
        symbols.append(Symbol(_string(blob, strings + name), section, value))
    return symbols


def _is_loaded(section: Section) -> bool:
    return bool(section.flags & SHF_ALLOC) and section.name != ".eh_frame"


def _patch(image: bytearray, at: int, kind: int, target: int, place: int) -> None:
    if kind == R_64:
        struct.pack_into("<Q", image, at, target)
    elif kind == R_PC64:
        struct.pack_into("<q", image, at, target - place)
    elif kind in (R_PC32, R_PLT32):
        struct.pack_into("<i", image, at, target - place)
    else:
        raise ModelBug(f"native code: relocation type {kind} is not known")


def _place(objects: dict[str, bytes]) -> tuple[int, dict[str, dict[int, int]]]:
    """Offsets of every loaded section in one image: its size, and {object: {section: offset}}."""
    size = 0
    places: dict[str, dict[int, int]] = {}
    for name, blob in objects.items():
        places[name] = {}
        for i, section in enumerate(sections_of(blob)):
            if _is_loaded(section):
                size = -(-size // ALIGN) * ALIGN
                places[name][i] = size
                size += section.size
    return size, places


def _relocate(image: bytearray, base: int, blob: bytes, placed: dict[int, int]) -> list[Symbol]:
    sections = sections_of(blob)
    symbols = symbols_of(blob, sections)
    for i, offset in placed.items():
        section = sections[i]
        image[offset : offset + section.size] = blob[section.offset : section.offset + section.size]
    for table in sections:
        if table.type != SHT_RELA or table.info not in placed:
            continue
        for at in range(table.offset, table.offset + table.size, RELA.size):
            offset, info, addend = RELA.unpack_from(blob, at)
            symbol = symbols[info >> 32]
            if symbol.section not in placed:
                raise ModelBug(f"native code: {symbol.name or 'a symbol'} is not in the object")
            target = base + placed[symbol.section] + symbol.value + addend
            where = placed[table.info] + offset
            _patch(image, where, info & 0xFFFF_FFFF, target, base + where)
    return symbols


class NativeCode:
    """The loaded callbacks: `address[name]`. The memory lives as long as this object."""

    __slots__ = ("_anchor", "_map", "address")

    def __init__(self, objects: dict[str, bytes]) -> None:
        size, places = _place(objects)
        self._map = mmap.mmap(-1, -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        base = ctypes.addressof(self._anchor)
        image = bytearray(size)
        self.address: dict[str, int] = {}
        for name, blob in objects.items():
            for symbol in _relocate(image, base, blob, places[name]):
                if symbol.name.startswith("cfunc."):
                    self.address[name] = base + places[name][symbol.section] + symbol.value
        self._map[:size] = bytes(image)
        self._protect(base)
        if missing := objects.keys() - self.address.keys():
            raise ModelBug(f"native code: no entry point in {', '.join(sorted(missing))}")

    def _protect(self, base: int) -> None:
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if mprotect(base, len(self._map), mmap.PROT_READ | mmap.PROT_EXEC):
            raise ModelBug(f"native code: this system refuses executable memory (errno {ctypes.get_errno()})")
