"""What SeaBIOS leaves in low memory for the kernel that it starts: the BIOS data area and the extended one.

There is no BIOS here to call; kernels look into these for the serial ports, the size of memory and the EBDA, where
they search for ACPI's root pointer.
"""

from __future__ import annotations

import struct

from ..addr import Gpa
from .memmap import EBDA

BDA, BDA_SIZE = Gpa(0x400), 0x100
_COM1 = 0x3F8
_EQUIPMENT = 0x0206
"""One serial port, a mouse, an x87."""
_KEYS, _KEYS_END = 0x1E, 0x3E
_WORDS = (
    *((0x00, _COM1), (0x0E, EBDA >> 4), (0x10, _EQUIPMENT), (0x13, EBDA >> 10)),
    *((0x1A, _KEYS), (0x1C, _KEYS), (0x80, _KEYS), (0x82, _KEYS_END)),
)
_BYTES = ((0x76, 0xC0), (0x7C, 10), (0x96, 0x10))
"""Disk flags, seconds until COM1 times out, an enhanced keyboard."""


def bios_data() -> list[tuple[Gpa, bytes]]:
    """Both areas, the EBDA with its size in KiB as its first byte."""
    area = bytearray(BDA_SIZE)
    for offset, word in _WORDS:
        struct.pack_into("<H", area, offset, word)
    for offset, byte in _BYTES:
        area[offset] = byte
    return [(BDA, bytes(area)), (EBDA, b"\1")]
