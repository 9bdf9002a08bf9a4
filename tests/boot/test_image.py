"""Files are read up to a limit; the platform's tables are kept clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.boot.image import BootOptions, Segment, check_placement, page_align, read_file
from shadowvm.errors import ConfigError

from .images import MIB


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_file(str(file), 5) == b"12345"
    with pytest.raises(ConfigError, match=r"^-bios: /dev/zero: larger than the 100000 bytes that fit$"):
        read_file("/dev/zero", 100_000, "-bios")


@pytest.mark.parametrize("path", ["/nonexistent", "/", "nul\0byte", "/etc/passwd/x"])
def test_a_file_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_file(path, 5)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_very_long_name_is_cut_short() -> None:
    with pytest.raises(ConfigError, match=r"^-initrd: x{200}\.\.\.: File name too long$"):
        read_file("x" * 70000, 5, "-initrd")


def test_segments_may_touch_neither_the_platforms_tables_nor_the_hole() -> None:
    options = BootOptions(5 << 30, extra=((Gpa(0xE0000), b"RSD PTR "),))
    for gpa in (0xE0000 - 4, 0xE0007):
        with pytest.raises(ConfigError, match="overlaps the tables of the platform at 0xe0000-0xe0008"):
            check_placement("x", [Segment(Gpa(gpa), b"12345", 5)], options)
    check_placement("x", [Segment(Gpa(0xE0008), b"", 5), Segment(Gpa(4 << 30), b"", 2 << 30)], options)
    with pytest.raises(ConfigError, match="outside of guest memory"):
        check_placement("x", [Segment(Gpa(0xBFFFF000), b"", 0x2000)], options)


def test_page_align_rounds_up() -> None:
    assert [page_align(each) for each in (0, 1, 4096, MIB - 1)] == [0, 4096, 4096, MIB]
