"""Symbols of images of both classes; broken tables are none."""

from __future__ import annotations

from pathlib import Path
from random import Random

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from shadowvm.debug.symbols import load_symbols
from shadowvm.guests import find_image


def image_of(guest: str) -> str:
    return find_image(guest)[1]


def test_functions_are_what_another_reader_finds() -> None:
    for guest in ("memtouch", "traps32"):
        found = load_symbols(image_of(guest))
        with open(image_of(guest), "rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            functions = [each for each in table.iter_symbols() if each["st_info"]["type"] == "STT_FUNC"]
        assert len(functions) > 20
        for each in functions:
            start, size = each["st_value"], each["st_size"]
            symbol = found.at(start + size - 1)
            assert symbol is not None
            assert (symbol.address, symbol.size) == (start, size)
            known = found.find(each.name)
            assert known is not None
            if known.address == start:
                assert found.text(start + 1) == f" <{symbol.name}+1>"


def test_an_address_in_no_symbol_has_none() -> None:
    found = load_symbols(image_of("memtouch"))
    assert found.at(0) is None
    assert found.text(1 << 60) == ""
    assert found.find("nosuch") is None


def test_a_broken_image_has_no_symbols_or_some(tmp_path: Path) -> None:
    random, path = Random(1), tmp_path / "image"
    whole = Path(image_of("traps32")).read_bytes()
    for number in range(100):
        data = bytearray(whole[: random.randrange(len(whole) + 1)] if number % 2 else whole)
        for _ in range(random.randrange(1, 9)):
            if data:
                data[
                    random.choice((random.randrange(len(data)), len(data) - 1 - random.randrange(min(len(data), 600))))
                ] = random.randrange(256)
        path.write_bytes(data)
        load_symbols.cache_clear()
        load_symbols(str(path)).text(0x100000)
    assert load_symbols(str(tmp_path / "none")).names == []
    assert load_symbols(None).names == []
