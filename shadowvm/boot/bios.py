"""What SeaBIOS leaves in low memory for the kernel that it starts: interrupt vectors, the BIOS data area, the EBDA.

Kernels look into the areas for the serial ports, the size of memory and ACPI's root pointer. There is no BIOS to call:
its services, but for the equipment and the size of memory, say that they do not exist (CF set, AH 0x86). The handlers
of hardware interrupts acknowledge them, and the timer's counts.
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

IVT, BIOS_SEGMENT = Gpa(0), 0xF000
_HANDLERS_AT = 0xFF00
_DUMMY, _SERVICE, _EQUIPMENT_SERVICE, _MEMORY_SERVICE, _TIMER, _MASTER, _SLAVE = range(7)
_CODE = tuple(
    bytes.fromhex(code)
    for code in (
        "cf",  # iret
        "55 89e5 804e0601 5d b486 cf",  # push bp; mov bp, sp; or byte [bp + 6], 1; pop bp; mov ah, 0x86; iret
        f"b8 {_EQUIPMENT.to_bytes(2, 'little').hex()} cf",  # mov ax, ...; iret
        f"b8 {(EBDA >> 10).to_bytes(2, 'little').hex()} cf",
        # push ds; push ax; mov ax, 0x40; mov ds, ax; add word [0x6c], 1; adc word [0x6e], 0; and as the next
        "1e 50 b84000 8ed8 83066c0001 83166e0000 b020 e620 58 1f cf",
        "50 b020 e620 58 cf",  # push ax; mov al, 0x20; out 0x20, al; pop ax; iret
        "50 b020 e6a0 e620 58 cf",  # the same, with the slave first
    )
)
"""Real mode code of each kind of handler."""


def _kind(vector: int) -> int:
    """What a vector of the BIOS leads to."""
    special = {0x08: _TIMER, 0x11: _EQUIPMENT_SERVICE, 0x12: _MEMORY_SERVICE, 0x1C: _DUMMY}
    if vector in special:
        return special[vector]
    if 0x09 <= vector <= 0x0F:
        return _MASTER
    if 0x70 <= vector <= 0x77:
        return _SLAVE
    return _SERVICE if 0x10 <= vector <= 0x1A else _DUMMY


def bios_handlers() -> list[tuple[Gpa, bytes]]:
    """The interrupt vector table, and the code that it leads to."""
    places = [_HANDLERS_AT + sum(map(len, _CODE[:kind])) for kind in range(len(_CODE))]
    table = b"".join(struct.pack("<HH", places[_kind(vector)], BIOS_SEGMENT) for vector in range(256))
    return [(IVT, table), (Gpa((BIOS_SEGMENT << 4) + _HANDLERS_AT), b"".join(_CODE))]


def bios_data() -> list[tuple[Gpa, bytes]]:
    """Both areas, the EBDA with its size in KiB as its first byte."""
    area = bytearray(BDA_SIZE)
    for offset, word in _WORDS:
        struct.pack_into("<H", area, offset, word)
    for offset, byte in _BYTES:
        area[offset] = byte
    return [(BDA, bytes(area)), (EBDA, b"\1")]
