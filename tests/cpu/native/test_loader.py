"""The ELF loader refuses what it does not know; what it loads works."""

from __future__ import annotations

import ctypes
import struct

import pytest

from shadowvm.cpu.native import cache, loader
from shadowvm.errors import ModelBug


def objects() -> dict[str, bytes]:
    return cache._split(cache._read(cache.cache_directory() / f"native-{cache.source_key()}.bin") or b"{}\n")


@pytest.fixture(autouse=True)
def _warm() -> None:
    cache.load()


def test_every_callback_has_an_address_in_executable_memory() -> None:
    code = loader.NativeCode(objects())
    assert {"fill", "interrupt", "exception", "block", "port_out"} <= code.address.keys()
    assert ctypes.string_at(code.address["block"], 1)


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(ModelBug, match="not a relocatable"):
        loader.NativeCode({"x": b"\x7fELF" + bytes(100)})


def make_object(kind: int, section_of_symbol: int) -> bytes:
    """A minimal object: .text of 16 bytes with one relocation, symbols `cfunc.f` (defined) and `g`."""
    names = b"\0.text\0.rela.text\0.symtab\0.strtab\0cfunc.f\0g\0"
    text, symbols = b"\xc3" + bytes(15), bytes(24)
    symbols += struct.pack("<IBBHQQ", names.index(b"cfunc.f"), 0x12, 0, 1, 0, 16)
    symbols += struct.pack(
        "<IBBHQQ", names.index(b"g\0", names.index(b"cfunc.f") + 7), 0x10, 0, section_of_symbol, 1, 0
    )
    rela = struct.pack("<QQq", 8, 2 << 32 | kind, 3)
    parts, at, offsets = [text, rela, symbols, names], 64, []
    for part in parts:
        offsets.append(at)
        at += len(part)
    header = loader.EHDR.pack(b"\x7fELF\x02\x01" + bytes(10), 1, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, 5, 4)
    rows = [(0, 0, 0, 0, 0, 0, 0)]
    for name, kind_of, flags, part, link, info in (
        (b".text", 1, 6, 0, 0, 0),
        (b".rela.text", 4, 0, 1, 3, 1),
        (b".symtab", 2, 0, 2, 4, 0),
        (b".strtab", 3, 0, 3, 0, 0),
    ):
        rows.append((names.index(name), kind_of, flags, offsets[part], len(parts[part]), link, info))
    table = b"".join(loader.SHDR.pack(n, t, f, 0, o, s, li, i, 1, 0) for n, t, f, o, s, li, i in rows)
    return header + b"".join(parts) + table


@pytest.mark.parametrize(("kind", "size", "relative"), [(1, 8, False), (2, 4, True), (4, 4, True), (24, 8, True)])
def test_relocations_are_applied(kind: int, size: int, relative: bool) -> None:
    code = loader.NativeCode({"f": make_object(kind, 1)})
    at = code.address["f"]
    value = int.from_bytes(ctypes.string_at(at + 8, size), "little", signed=True)
    assert value == (at + 1 + 3) - (at + 8 if relative else 0)


def test_an_unknown_relocation_and_an_external_symbol_are_refused() -> None:
    with pytest.raises(ModelBug, match="relocation type 9"):
        loader.NativeCode({"f": make_object(9, 1)})
    with pytest.raises(ModelBug, match="g is not in the object"):
        loader.NativeCode({"f": make_object(1, 0)})
