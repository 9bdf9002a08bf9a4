"""What the CPU needs to deliver an exception by itself, as it does under two-dimensional paging: one page.

It holds an IDT and a TSS for each kind of mode, a GDT, and the stack. Handlers are exits in the code page; the page is
mapped for the supervisor at an address that depends on the mode.
"""

from __future__ import annotations

import struct

from .layout import PAE, PT32, PT64, VECTORS, handler_address, traps_address

STACK_TOP = 0xFF0
GDT, GDT_LIMIT, TSS_LIMIT, IDT_LIMIT = 0x300, 31, 0x67, 0xFF
TASK, DATA = 0x28, 0x10
_CODE64, _CODE32 = 0x08, 0x18
_PLACES = {PT64: (0x000, 0x400), PAE: (0x100, 0x480), PT32: (0x200, 0x500)}
"""By kind of mode: where the IDT and the TSS are."""
_DESCRIPTORS = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF)
_INTERRUPT_GATE = 0x8E


def places_for(mode: int) -> tuple[int, int]:
    """(IDT, TSS) inside the page. Without paging nothing that an operation does is an exception."""
    return _PLACES[min(max(mode, PT32), PT64)]


def traps_page() -> bytes:
    """The contents at the beginning."""
    page = bytearray(4096)
    struct.pack_into("<4Q", page, GDT, *_DESCRIPTORS)
    for mode in (PT64, PAE, PT32):
        idt, tss = places_for(mode)
        stack = traps_address(mode) + STACK_TOP
        if mode == PT64:
            struct.pack_into("<Q", page, tss + 4, stack)
        else:
            struct.pack_into("<II", page, tss + 4, stack, DATA)
        for vector in VECTORS:
            handler = handler_address(mode, vector)
            if mode == PT64:
                gate = struct.pack(
                    "<HHBBHII", handler & 0xFFFF, _CODE64, 0, _INTERRUPT_GATE, handler >> 16 & 0xFFFF, handler >> 32, 0
                )
            else:
                gate = struct.pack("<HHBBH", handler & 0xFFFF, _CODE32, 0, _INTERRUPT_GATE, handler >> 16)
            page[idt + len(gate) * vector : idt + len(gate) * (vector + 1)] = gate
    return bytes(page)
