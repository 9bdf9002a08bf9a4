"""The symbols of a guest's image, by name and by address.

An image without a symbol table, or with one that cannot be read, has none: that is no error.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_SHT_SYMTAB = 2
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_SHN_LORESERVE = 0xFF00
_MAX_SYMBOLS, _MAX_NAME = 1 << 20, 4096


class Symbol(NamedTuple):
    """size: bytes; for one that does not say, up to the next one or to the end of its section."""

    address: int
    size: int
    name: str
    is_function: bool


class Symbols:
    """See the module."""

    def __init__(self, symbols: list[Symbol]) -> None:
        best: dict[int, Symbol] = {}
        self._by_name: dict[str, Symbol] = {}
        for each in symbols:
            known = best.get(each.address)
            if known is None or (each.is_function and not known.is_function):
                best[each.address] = each
            self._by_name.setdefault(each.name, each)
        self._sorted = [best[address] for address in sorted(best)]
        self._addresses = [each.address for each in self._sorted]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return list(self._by_name)

    def find(self, name: str) -> Symbol | None:
        """By name; the first of several."""
        return self._by_name.get(name)

    def at(self, address: int) -> Symbol | None:
        """Which one an address is in."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        found = self._sorted[index]
        return found if address < found.address + max(found.size, 1) else None

    def text(self, address: int) -> str:
        """` <name+offset>`, or nothing."""
        symbol = self.at(address)
        if symbol is None:
            return ""
        offset = address - symbol.address
        return f" <{symbol.name}{f'+{offset}' if offset else ''}>"


class _Section(NamedTuple):
    kind: int
    address: int
    offset: int
    size: int
    link: int


@lru_cache(maxsize=4)
def load_symbols(path: str | None) -> Symbols:
    """Of an image."""
    if path is None:
        return Symbols([])
    try:
        return Symbols(list(_read(Path(path).read_bytes())))
    except (OSError, struct.error, ValueError, IndexError):
        return Symbols([])


def _read(data: bytes) -> Iterator[Symbol]:
    if data[:4] != b"\x7fELF" or data[5] != 1:
        return
    wide = data[4] == 2
    shoff, shentsize, shnum = _section_table(data, wide)
    sections = [_section(data, shoff + number * shentsize, wide) for number in range(shnum)]
    for section in sections:
        if section.kind == _SHT_SYMTAB:
            yield from _table(data, section, sections, wide)


def _section_table(data: bytes, wide: bool) -> tuple[int, int, int]:
    """(offset, size of an entry, number of them)."""
    offset = struct.unpack_from("<Q", data, 40)[0] if wide else struct.unpack_from("<I", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    return offset, size, count


def _section(data: bytes, at: int, wide: bool) -> _Section:
    if wide:
        _, kind, _, address, offset, size, link = struct.unpack_from("<IIQQQQI", data, at)
    else:
        _, kind, _, address, offset, size, link = struct.unpack_from("<IIIIIII", data, at)
    return _Section(kind, address, offset, size, link)


def _table(data: bytes, section: _Section, sections: list[_Section], wide: bool) -> Iterator[Symbol]:
    entry = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")
    strings = sections[section.link].offset
    count = min(section.size // entry.size, _MAX_SYMBOLS)
    found = []
    for fields in entry.iter_unpack(data[section.offset : section.offset + count * entry.size]):
        name, info, _, index, value, size = fields if wide else (fields[0], *fields[3:], fields[1], fields[2])
        if index == 0 or index >= min(len(sections), _SHN_LORESERVE) or info & 15 > _STT_FUNC:
            continue
        at = strings + name
        end = data.find(b"\0", at, at + _MAX_NAME)
        text = data[at : max(end, at)].decode("utf-8", "replace")
        if text:
            found.append((value, size, text, info & 15 == _STT_FUNC, sections[index]))
    addresses = sorted({each[0] for each in found})
    for value, size, text, is_function, where in found:
        following = bisect_right(addresses, value)
        bound = where.address + where.size
        if following < len(addresses):
            bound = min(bound, addresses[following])
        yield Symbol(value, size or max(bound - value, 0), text, is_function)
