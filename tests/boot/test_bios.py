"""The areas that SeaBIOS leaves below 640 KiB, compared with those that a guest finds under QEMU."""

from __future__ import annotations

import struct
from pathlib import Path

from shadowvm.boot.bios import BDA, BDA_SIZE, bios_data, bios_handlers
from shadowvm.boot.memmap import EBDA

from .images import LEAVE, multiboot_elf, qemu, send

TICKS = range(0x6C, 0x71)


def test_words_lead_to_the_serial_port_and_the_ebda() -> None:
    (bda_at, bda), (ebda_at, ebda) = bios_data()
    assert (bda_at, len(bda), ebda_at) == (0x400, 0x100, 0x9FC00)
    serial, ebda_segment, kilobytes = (struct.unpack_from("<H", bda, at)[0] for at in (0, 0x0E, 0x13))
    assert (serial, ebda_segment << 4, kilobytes << 10) == (0x3F8, EBDA, EBDA)
    assert EBDA + (ebda[0] << 10) == 0xA0000


def test_they_are_what_a_guest_finds_under_qemu(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(multiboot_elf(send(BDA, BDA_SIZE) + send(EBDA, 1) + LEAVE))
    status, output = qemu("-kernel", tmp_path / "image")
    assert status == 0
    (_, bda), (_, ebda) = bios_data()
    assert {at for at in range(BDA_SIZE) if bda[at] != output[at]} <= set(TICKS)
    assert output[BDA_SIZE:] == ebda


def test_every_vector_names_code_that_is_there() -> None:
    (ivt_at, ivt), (code_at, code) = bios_handlers()
    assert (ivt_at, len(ivt)) == (0, 1024)
    for offset, segment in struct.iter_unpack("<HH", ivt):
        assert code_at <= (segment << 4) + offset < code_at + len(code)
