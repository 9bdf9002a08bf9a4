"""A file's content decides its loader; what nobody loads gets one line that says what it is."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from shadowvm.boot.image import BootOptions, LongModeStart, ProtectedModeStart, ResetStart
from shadowvm.boot.load import load_image, parse_image
from shadowvm.errors import ConfigError

from .images import MIB, PT_NOTE, Load, elf32, elf64, multiboot_elf, multiboot_header, note

BASE = 4 * MIB
OPTIONS = BootOptions(64 * MIB)
PVH = Load(MIB, note(18, struct.pack("<Q", BASE + 8)), kind=PT_NOTE, align=4)
LONG_MODE = Load(MIB, note(1, name=b"shadowvm\0"), kind=PT_NOTE, align=4)
FLAT = multiboot_header(1 << 16, [BASE, BASE, 0, 0, BASE + 32]) + b"\xf4"


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (elf64([Load(BASE, b"x")], BASE), LongModeStart),
        (elf64([Load(BASE, b"x" + bytes(3) + multiboot_header())], BASE), LongModeStart),
        (elf64([Load(BASE, bytes(40)), PVH], BASE), ProtectedModeStart),
        (elf64([Load(BASE, bytes(40)), PVH, LONG_MODE], BASE), LongModeStart),
        (elf64([Load(BASE, bytes(40)), LONG_MODE], BASE), LongModeStart),
        (elf32([Load(BASE, bytes(40)), PVH, LONG_MODE], BASE), ProtectedModeStart),
        (multiboot_elf(), ProtectedModeStart),
        (FLAT, ProtectedModeStart),
    ],
)
def test_content_decides_how_the_cpu_starts(tmp_path: Path, data: bytes, start: type) -> None:
    file = tmp_path / "anything.txt"
    file.write_bytes(data)
    assert isinstance(load_image(str(file), OPTIONS).start, start)


def test_the_entry_is_the_note_s_or_the_header_s() -> None:
    for loads, entry in (([PVH], BASE + 8), ([PVH, LONG_MODE], BASE), ([], BASE)):
        image = parse_image("x", elf64([Load(BASE, bytes(40)), *loads], BASE), OPTIONS)
        assert image.start.entry == entry  # type: ignore[union-attr]


def test_addresses_in_a_multiboot_header_come_first_as_under_qemu() -> None:
    base, header = BASE + 0x100, multiboot_header(1 << 16, [BASE + 0x120, BASE + 0x100, 0, 0, BASE + 0x140])
    data = elf64([Load(MIB, bytes(32) + header + b"x" * 32), PVH, LONG_MODE], MIB)
    image = parse_image("x", data, OPTIONS)
    assert (image.segments[0].gpa, image.start.entry) == (base, base + 0x40)  # type: ignore[union-attr]


def test_an_image_without_headers_goes_where_it_is_told() -> None:
    options = replace(OPTIONS, load_address=BASE + 1)
    for data in (b"hello", multiboot_elf()):
        image = parse_image("x", data, options)
        assert isinstance(image.start, LongModeStart)
        assert (image.start.entry, image.segments[-1]) == (BASE + 1, (BASE + 1, data, len(data)))
    for address, words in ((64 * MIB - 2, "outside of guest memory"), (0x2FFFC, "overlaps the boot data")):
        with pytest.raises(ConfigError, match=words):
            parse_image("x", b"hello", replace(OPTIONS, load_address=address))
    with pytest.raises(ConfigError, match="lies above the 4 GiB that are mapped"):
        parse_image("x", b"hello", BootOptions(5 << 30, load_address=4 << 30))
    with pytest.raises(ConfigError, match=r"^x: empty file$"):
        parse_image("x", b"", options)


def test_bios_alone_or_with_a_kernel_starts_at_the_reset_vector(tmp_path: Path) -> None:
    bios, kernel = tmp_path / "bios", tmp_path / "kernel"
    bios.write_bytes(bytes(65536))
    kernel.write_bytes(elf64([Load(BASE, b"x")], BASE))
    assert load_image(None, OPTIONS, str(bios)).start == ResetStart()
    assert load_image(str(kernel), OPTIONS, str(bios)).segments[-1].gpa == BASE
    with pytest.raises(ConfigError, match="nothing to boot"):
        load_image(None, OPTIONS)
    with pytest.raises(ConfigError, match=r"^--load-address: firmware has its place"):
        load_image(str(kernel), replace(OPTIONS, load_address=MIB), str(bios))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"hello", "not an ELF image, and no Multiboot header in its first 8 KiB; firmware is given with -bios, a"),
        (elf32([Load(BASE, b"x")], BASE), "without a Multiboot header in its first 8 KiB or a PVH note"),
        (bytes(8192) + FLAT, "no Multiboot header in its first 8 KiB"),
        (b"\x7fELF\x07" + bytes(60), "an ELF of unknown class 7"),
        (bytes(0x202) + b"HdrS" + bytes(100), "a Linux bzImage"),
        (bytes(16) + b"\xd6\x50\x52\xe8", "a Multiboot 2 image"),
    ],
)
def test_what_cannot_be_booted_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_image(str(file), OPTIONS)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert words in text
    assert "\n" not in text
