"""Program headers of both classes: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from shadowvm.boot.elf import ELFCLASS32, ELFCLASS64, elf_class, elf_notes, parse_elf
from shadowvm.errors import ConfigError

from .images import EM_X86_64, MIB, PT_NOTE, Load, elf32, elf64, note

ROOT = Path(__file__).resolve().parents[2]
BASE = MIB


def refusal(data: bytes, elfclass: int = ELFCLASS64) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_elf("x", data, elfclass)
    text = str(caught.value)
    assert text.startswith("x: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", sorted((ROOT / "guests").glob("*/*.elf")), ids=lambda path: path.stem)
def test_bundled_images_are_read_as_pyelftools_reads_them(path: Path) -> None:
    with path.open("rb") as file:
        elf = ELFFile(file)
        elfclass = {32: ELFCLASS32, 64: ELFCLASS64}[elf.elfclass]
        wanted = [(s["p_paddr"], s.data(), s["p_memsz"]) for s in elf.iter_segments("PT_LOAD") if s["p_memsz"]]
        entry = elf["e_entry"]
    data = path.read_bytes()
    assert elf_class(data) == elfclass
    assert parse_elf(str(path), data, elfclass) == (entry, wanted)


@pytest.mark.parametrize(("make", "elfclass"), [(elf32, ELFCLASS32), (elf64, ELFCLASS64)])
def test_segments_go_to_their_physical_addresses_and_the_entry_with_them(make, elfclass: int) -> None:
    high = 0xC0000000
    loads = [Load(BASE, b"code", 0x100, vaddr=high), Load(BASE + 0x1000, b"", 0), Load(BASE, b"note", kind=PT_NOTE)]
    kernel = parse_elf("x", make([*loads, Load(BASE + 0x2000, b"data", 9)], high + 2), elfclass)
    assert kernel.entry == BASE + 2
    assert kernel.segments == [(BASE, b"code", 0x100), (BASE + 0x2000, b"data", 9)]
    assert kernel.end == BASE + 0x2009


@pytest.mark.parametrize(("make", "elfclass"), [(elf32, ELFCLASS32), (elf64, ELFCLASS64)])
def test_an_entry_outside_of_the_virtual_addresses_is_physical(make, elfclass: int) -> None:
    loads = [Load(BASE, b"code", vaddr=0x80000000), Load(BASE + 0x1000, b"data", vaddr=BASE)]
    assert parse_elf("x", make(loads[:1], BASE + 3), elfclass).entry == BASE + 3
    assert parse_elf("x", make(loads, BASE + 3), elfclass).entry == BASE + 0x1003, "virtual addresses come first"
    assert refusal(make(loads[:1], BASE + 4), elfclass).endswith("entry 0x100004 is in no segment")


def test_files_that_are_no_executable_for_this_cpu_are_refused() -> None:
    good = elf64([Load(BASE, b"code")], BASE)
    assert refusal(b"hello").endswith("not an ELF image")
    assert refusal(good[:63]).endswith("truncated ELF header (63 bytes)")
    assert "not a 64-bit little-endian ELF" in refusal(elf32([Load(BASE, b"code")], BASE).ljust(64))
    assert "not a 64-bit little-endian ELF" in refusal(good[:5] + b"\x02" + good[6:])
    assert "made for another machine (AArch64), not x86-64" in refusal(elf64([Load(BASE, b"x")], BASE, machine=183))
    assert "(x86-64), not i386" in refusal(elf32([Load(BASE, b"x")], BASE, machine=EM_X86_64), ELFCLASS32)
    assert refusal(elf64([Load(BASE, b"x")], BASE, kind=1)).endswith("not an executable image (type 1)")
    shared = elf64([Load(BASE, b"x")], BASE, kind=3)
    assert refusal(shared).endswith("a shared object, not an executable image")
    assert parse_elf("x", shared, ELFCLASS64, shared=True).entry == BASE


def test_program_headers_that_cannot_be_are_refused() -> None:
    assert refusal(elf64([], BASE)).endswith("no segments to load")
    assert refusal(elf64([Load(BASE, b"", 0)], BASE)).endswith("no segments to load")
    assert "program headers of 57 bytes, not 56" in refusal(elf64([Load(BASE, b"x")], BASE, phentsize=57))
    cut = elf64([Load(BASE, b"x")], BASE)[:100]
    assert "program headers reach beyond the end of the file" in refusal(cut)
    assert "reaches beyond the end of the file" in refusal(elf64([Load(BASE, b"x", filesz=5, memsz=5)], BASE))
    assert "more bytes in the file than in memory" in refusal(elf64([Load(BASE, b"xyz", 2)], BASE))
    assert refusal(elf64([Load(BASE, b"x")], BASE + 1)).endswith("entry 0x100001 is in no segment")


def test_many_segments_of_the_same_bytes_cost_no_memory() -> None:
    loads = [Load(BASE + (n << 20), b"", filesz=4 << 20, memsz=4 << 20, offset=0) for n in range(60000)]
    assert "more bytes than the file" in refusal(elf64(loads, BASE).ljust(4 << 20))


@pytest.mark.parametrize(("make", "elfclass"), [(elf32, ELFCLASS32), (elf64, ELFCLASS64)])
@pytest.mark.parametrize("align", [1, 4, 8])
def test_notes_are_read_by_the_alignment_of_their_segment(make, elfclass: int, align: int) -> None:
    step = max(align, 4)
    data = note(18, b"12345", align=step) + note(1, b"", b"another\0", align=step)
    image = make([Load(BASE, b"x"), Load(MIB, data, kind=PT_NOTE, align=align)], BASE)
    assert elf_notes("x", image, elfclass) == [(b"Xen\0", 18, b"12345"), (b"another\0", 1, b"")]


@pytest.mark.parametrize("cut", [0, 11, 16, 19])
def test_notes_that_are_cut_off_are_left_out(cut: int) -> None:
    whole = note(18, bytes(8))
    loads = [Load(BASE, b"x"), Load(MIB, whole + note(18, b"1234")[:cut], kind=PT_NOTE)]
    assert elf_notes("x", elf64(loads, BASE), ELFCLASS64) == [(b"Xen\0", 18, bytes(8))]
    loads[1] = Load(MIB, note(18, b"1234") * 10, kind=PT_NOTE, filesz=1 << 62)
    assert len(elf_notes("x", elf64(loads, BASE), ELFCLASS64)) == 10


def test_no_more_notes_are_read_than_anybody_needs() -> None:
    loads = [Load(BASE, b"x"), Load(MIB, note(1) * 5000, kind=PT_NOTE)]
    loads += [Load(MIB, kind=PT_NOTE, offset=0x100, filesz=80000) for _ in range(1000)]
    assert len(elf_notes("x", elf64(loads, BASE), ELFCLASS64)) < 5000


def test_a_given_entry_takes_the_place_of_the_header_s() -> None:
    image = elf64([Load(BASE, b"code", vaddr=1 << 40)], 0)
    assert parse_elf("x", image, ELFCLASS64, BASE + 3).entry == BASE + 3
    with pytest.raises(ConfigError, match=r"^x: entry 0x100004 is in no segment$"):
        parse_elf("x", image, ELFCLASS64, BASE + 4)
