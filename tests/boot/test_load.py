"""A file's content decides its loader; what nobody loads gets one line that says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.boot.image import BootOptions, LongModeStart, ProtectedModeStart, ResetStart
from shadowvm.boot.load import load_image
from shadowvm.errors import ConfigError

from .images import MIB, Load, elf32, elf64, multiboot_elf, multiboot_header

BASE = 4 * MIB
OPTIONS = BootOptions(64 * MIB)
FLAT = multiboot_header(1 << 16, [BASE, BASE, 0, 0, BASE + 32]) + b"\xf4"


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (elf64([Load(BASE, b"x")], BASE), LongModeStart),
        (elf64([Load(BASE, b"x" + bytes(3) + multiboot_header())], BASE), LongModeStart),
        (multiboot_elf(), ProtectedModeStart),
        (FLAT, ProtectedModeStart),
    ],
)
def test_content_decides_how_the_cpu_starts(tmp_path: Path, data: bytes, start: type) -> None:
    file = tmp_path / "anything.txt"
    file.write_bytes(data)
    assert isinstance(load_image(str(file), OPTIONS).start, start)


def test_bios_alone_or_with_a_kernel_starts_at_the_reset_vector(tmp_path: Path) -> None:
    bios, kernel = tmp_path / "bios", tmp_path / "kernel"
    bios.write_bytes(bytes(65536))
    kernel.write_bytes(elf64([Load(BASE, b"x")], BASE))
    assert load_image(None, OPTIONS, str(bios)).start == ResetStart()
    assert load_image(str(kernel), OPTIONS, str(bios)).segments[-1].gpa == BASE
    with pytest.raises(ConfigError, match="nothing to boot"):
        load_image(None, OPTIONS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"hello", "not an ELF image, and no Multiboot header in its first 8 KiB; firmware is given with -bios"),
        (elf32([Load(BASE, b"x")], BASE), "a 32-bit ELF without a Multiboot header in its first 8 KiB"),
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
