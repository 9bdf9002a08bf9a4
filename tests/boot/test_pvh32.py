"""Kernels with a PVH note: their entry, and the boot data, compared with QEMU's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shadowvm.addr import Gpa
from shadowvm.boot.elf import ELFCLASS32, ELFCLASS64, Note
from shadowvm.boot.image import BootImage, BootOptions, ProtectedModeStart
from shadowvm.boot.memmap import memory_map
from shadowvm.boot.pvh32 import load_pvh, pvh_entry
from shadowvm.errors import ConfigError

from .images import LEAVE, MIB, PT_NOTE, Load, elf32, elf64, note, qemu, send

BASE = 4 * MIB
INFO, CMDLINE, LOW_DATA = 0x21E0, 0x11C0, 0x2300
SEND_INFO = bytes.fromhex("89de b938000000 66baf803 ac ee e2fc")
"""mov esi, ebx; mov ecx, 56; and out with them."""


def load(data: bytes, memory: int = 64 * MIB, entry: int = BASE, **options: object) -> BootImage:
    return load_pvh("x", data, ELFCLASS64, entry, BootOptions(memory, **options))  # type: ignore[arg-type]


def memory_of(image: BootImage) -> bytes:
    memory = bytearray(LOW_DATA + 0x100)
    for gpa, data, _ in image.segments:
        if gpa < len(memory):
            assert not any(memory[gpa : gpa + len(data)]), "nothing is loaded twice"
            memory[gpa : gpa + len(data)] = data
    return bytes(memory)


IMAGE = elf64([Load(BASE, b"code")], 0)


def test_notes_give_a_32_bit_entry() -> None:
    assert pvh_entry([]) is None
    assert pvh_entry([Note(b"Xen\0", 17, bytes(8)), Note(b"Xen\0", 18, b"123")]) is None
    for desc in (struct.pack("<I", BASE), struct.pack("<Q", BASE), struct.pack("<Q", 1 << 32 | BASE)):
        assert pvh_entry([Note(b"other\0", 1, b""), Note(b"Xen\0", 18, desc)]) == BASE


def test_entry_is_in_protected_mode_with_the_start_info_in_ebx() -> None:
    image = load(IMAGE, append=b"a b", rsdp=0xF5000, memory=5 << 30)
    start, memory = image.start, memory_of(image)
    assert isinstance(start, ProtectedModeStart)
    assert (start.entry, start.eax, start.ebx, start.gdt_limit) == (BASE, 0, INFO, 39)
    assert struct.unpack_from("<3Q", memory, start.gdt_base) == (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    info = struct.unpack_from("<IIIIQQQQII", memory, INFO)
    modlist, cmdline, rsdp, memmap, count, _ = info[4:]
    assert (info[:4], modlist, rsdp) == ((0x336EC578, 1, 0, 0), 0, 0xF5000)
    assert memory[cmdline : cmdline + 4] == b"a b\0"
    entries = [struct.unpack_from("<QQII", memory, memmap + 24 * n) for n in range(count)]
    assert entries == [(*entry, 0) for entry in memory_map(5 << 30)]


@pytest.mark.parametrize("gpa", [0x500, 0x6FFF, 0x400])
def test_segments_keep_off_the_boot_data(gpa: int) -> None:
    extra = ((Gpa(0x400), b"BIOS data"),)
    load(elf64([Load(0x7000, b"x")], 0), entry=0x7000, extra=extra)
    with pytest.raises(ConfigError, match=r"overlaps the (boot data|tables of the platform)"):
        load(elf64([Load(gpa, b"x")], 0), entry=gpa, extra=extra)


def test_command_line_longer_than_qemu_s_is_refused() -> None:
    load(IMAGE, append=b"x" * 4095)
    with pytest.raises(ConfigError, match=r"^-append: 4096 bytes are more than the 4095 that fit$"):
        load(IMAGE, append=b"x" * 4096)


def test_entry_outside_of_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^x: entry 0x400004 is in no segment$"):
        load(IMAGE, entry=BASE + 4)


@pytest.mark.parametrize(("make", "elfclass"), [(elf32, ELFCLASS32), (elf64, ELFCLASS64)])
def test_guest_finds_what_it_finds_under_qemu(make, elfclass: int, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd " * 1000)
    place = 64 * MIB - 0x28000 - 0x2000
    code = SEND_INFO + send(0x500, LOW_DATA - 0x500) + send(place, 7000) + LEAVE
    desc = struct.pack("<I" if elfclass == ELFCLASS32 else "<Q", BASE)
    data = make([Load(BASE, code), Load(8 * MIB, note(18, desc), kind=PT_NOTE, align=4)], 0)
    (tmp_path / "image").write_bytes(data)
    initrd, append = str(tmp_path / "initrd"), "some  words"
    status, output = qemu("-kernel", tmp_path / "image", "-append", append, "-initrd", initrd)
    assert status == 0
    image = load_pvh("x", data, elfclass, BASE, BootOptions(64 * MIB, append.encode(), initrd))
    memory = memory_of(image)
    theirs, ours = output[:56], memory[INFO : INFO + 56]
    # The root pointer is each platform's own; the map of QEMU's AMD CPU has one entry more.
    assert theirs[:32] == ours[:32]
    assert theirs[40:48] == ours[40:48]
    low = bytes(0x500) + output[56:-7000]
    end = 0x5A8 + 24 * len(memory_map(64 * MIB))
    assert low[0x5A8:end] == memory[0x5A8:end]
    assert low[CMDLINE : CMDLINE + len(append) + 1] == memory[CMDLINE : CMDLINE + len(append) + 1]
    assert low[0x21C0:0x21E0] == memory[0x21C0:0x21E0]
    assert output[-7000:] == b"initrd " * 1000
    assert (image.segments[-1].gpa, image.segments[-1].data) == (place, b"initrd " * 1000)
