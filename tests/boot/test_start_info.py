"""The start info and what it points to, wherever it lies; and where an initrd lies."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.boot.image import BootOptions, Kernel, Reserved, Segment
from shadowvm.boot.memmap import memory_map
from shadowvm.boot.start_info import Places, initrd_module, start_info
from shadowvm.errors import ConfigError

from .images import MIB

PLACES = Places(Gpa(0x1000), Gpa(0x2000), Gpa(0x3000), Gpa(0x4000), 8)
KERNEL = Kernel(Gpa(MIB), [Segment(Gpa(MIB), b"code", 0x1000)])
LOW = Reserved("the boot data", 0, 0x5000)


def test_every_part_is_where_it_belongs() -> None:
    options = BootOptions(5 << 30, b"one two", rsdp=0xF5000)
    placed = dict(start_info(options, Segment(Gpa(0x700000), b"12345", 5), PLACES))
    count = len(memory_map(5 << 30))
    words = (0x336EC578, 1, 0, 1, 0x2000, 0x4000, 0xF5000, 0x3000, count, 0)
    assert struct.unpack("<IIIIQQQQII", placed[PLACES.start_info]) == words
    assert struct.unpack("<4Q", placed[PLACES.modlist]) == (0x700000, 5, 0, 0)
    assert placed[PLACES.cmdline] == b"one two\0"
    entries = list(struct.iter_unpack("<QQII", placed[PLACES.memmap]))
    assert entries == [(*entry, 0) for entry in memory_map(5 << 30)]


def test_without_a_module_there_is_no_list() -> None:
    placed = dict(start_info(BootOptions(64 * MIB), None, PLACES))
    assert set(placed) == {PLACES.start_info, PLACES.memmap, PLACES.cmdline}
    assert struct.unpack_from("<IQ", placed[PLACES.start_info], 12) == (0, 0)


def test_command_line_and_its_zero_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"^-append: 8 bytes are more than the 7 that fit$"):
        start_info(BootOptions(64 * MIB, b"12345678"), None, PLACES)


@pytest.mark.parametrize(
    ("size", "memory", "gpa"),
    [(0x1388, 64, 0x3FD6000), (0x2000, 64, 0x3FD5000), (1, 2, 0x1D7000), (0x1388, 5 << 10, 0xBFFD6000)],
)
def test_initrd_lies_where_qemu_puts_it(size: int, memory: int, gpa: int, tmp_path: Path) -> None:
    file = tmp_path / "initrd"
    file.write_bytes(bytes(size))
    assert initrd_module(KERNEL, BootOptions(memory * MIB, initrd=str(file)), LOW) == (gpa, bytes(size), size)
    assert initrd_module(KERNEL, BootOptions(memory * MIB), LOW) is None


def test_initrd_must_not_reach_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "initrd"
    file.write_bytes(bytes(MIB))
    with pytest.raises(ConfigError, match=r"^-initrd: .*initrd: segment .* overlaps the kernel at"):
        initrd_module(KERNEL, BootOptions(2 * MIB, initrd=str(file)), LOW)
