"""The boot data of an ELF64: start info, map, modules, page tables, and what may not touch it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shadowvm.boot import pvh
from shadowvm.boot.image import BootImage, BootOptions, LongModeStart, Segment
from shadowvm.boot.memmap import memory_map
from shadowvm.errors import ConfigError

from .images import MIB, Load, elf64

PLACE = 64 * MIB - 0x28000 - 8192
IMAGE = elf64([Load(MIB, b"code", 0x5000)], MIB + 1)


def load(data: bytes = IMAGE, memory: int = 64 * MIB, **options: object) -> BootImage:
    return pvh.load_long_mode("x", data, BootOptions(memory, **options))  # type: ignore[arg-type]


def memory_of(image: BootImage) -> bytes:
    """The low 256 KiB as the machine fills them."""
    memory = bytearray(256 << 10)
    for gpa, data, _ in image.segments:
        if gpa < len(memory):
            memory[gpa : gpa + len(data)] = data
    return bytes(memory)


def test_start_info_leads_to_command_line_map_and_tables() -> None:
    image = load(append=b"a b", memory=5 << 30, rsdp=0xF5000)
    memory = memory_of(image)
    assert image.start == LongModeStart(MIB + 1, pvh.BOOT_START_INFO)
    info = struct.unpack_from("<IIIIQQQQII", memory, pvh.BOOT_START_INFO)
    assert info[:4] == (0x336EC578, 1, 0, 0)
    modlist, cmdline, rsdp, memmap, count, _ = info[4:]
    assert (modlist, rsdp) == (0, 0xF5000)
    assert memory[cmdline : cmdline + 4] == b"a b\0"
    entries = [struct.unpack_from("<QQII", memory, memmap + 24 * n) for n in range(count)]
    assert entries == [(*entry, 0) for entry in memory_map(5 << 30)]
    assert struct.unpack_from("<3Q", memory, pvh.BOOT_GDT) == pvh.GDT_ENTRIES


def test_page_tables_map_four_gib_to_itself() -> None:
    memory = memory_of(load())
    for gva in (0, 0x1234567, 0xC0000000, 0xFFFFFFFF):
        pml4e, pdpte, pde = 0, 0, 0
        (pml4e,) = struct.unpack_from("<Q", memory, pvh.BOOT_PML4 + 8 * (gva >> 39))
        (pdpte,) = struct.unpack_from("<Q", memory, (pml4e & ~0xFFF) + 8 * (gva >> 30))
        (pde,) = struct.unpack_from("<Q", memory, (pdpte & ~0xFFF) + 8 * (gva >> 21 & 511))
        assert pml4e & pdpte & pde & 3 == 3
        assert pde & 0x80
        assert (pde & ~0x1FFFFF) + (gva & 0x1FFFFF) == gva


def test_initrd_is_the_one_module_at_the_end_of_low_memory(tmp_path: Path) -> None:
    file = tmp_path / "initrd"
    file.write_bytes(b"m" * 5000)
    image = load(initrd=str(file))
    assert image.segments[-1] == Segment(PLACE, b"m" * 5000, 5000)  # type: ignore[arg-type]
    memory = memory_of(image)
    (count,) = struct.unpack_from("<I", memory, pvh.BOOT_START_INFO + 12)
    (modlist,) = struct.unpack_from("<Q", memory, pvh.BOOT_START_INFO + 16)
    assert count == 1
    assert struct.unpack_from("<4Q", memory, modlist) == (PLACE, 5000, 0, 0)


def test_initrd_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "initrd"
    file.write_bytes(bytes(MIB))
    with pytest.raises(ConfigError, match=r"^-initrd: .*initrd: segment .* overlaps the kernel at"):
        load(memory=2 * MIB, initrd=str(file))
    file.write_bytes(bytes(MIB + 1))
    with pytest.raises(ConfigError, match=r"^-initrd: .*initrd: larger than the 1048576 bytes that fit"):
        load(elf64([Load(0x30000, b"x")], 0x30000), memory=MIB, initrd=str(file))


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ([Load(64 * MIB - 4, b"12345")], "lies outside of guest memory; give more with -m"),
        ([Load(0x2FFFF, b"1")], "overlaps the boot data at 0x0-0x30000"),
        ([Load(MIB, b"12345678"), Load(MIB + 7, b"x")], "segments at 0x100000 and 0x100007 overlap"),
        ([Load(1 << 63, b"1", 1 << 62)], "lies outside of guest memory"),
    ],
)
def test_segments_that_have_no_place_are_refused(loads: list[Load], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^x: .*{message}"):
        load(elf64(loads, loads[0].paddr))


def test_command_line_longer_than_its_place_is_refused() -> None:
    load(append=b"x" * (pvh.CMDLINE_MAX - 1))
    with pytest.raises(ConfigError, match=r"^-append: 65536 bytes"):
        load(append=b"x" * pvh.CMDLINE_MAX)
