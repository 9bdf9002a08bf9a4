"""Guest RAM around the PCI hole, and the map of it."""

from __future__ import annotations

import pytest

from shadowvm.boot.memmap import E820_RAM, E820_RESERVED, memory_layout, memory_map

GIB = 1 << 30


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, 3 * GIB, 3 * GIB + 4096, 5 * GIB])
def test_layout_and_map_hold_all_memory_and_leave_the_hole_free(size: int) -> None:
    layout = [(each.base << 12, each.npages << 12) for each in memory_layout(size)]
    assert sum(length for _, length in layout) == size
    assert all(base + length <= 3 * GIB or base >= 4 * GIB for base, length in layout)
    entries = memory_map(size)
    assert entries == sorted(entries)
    ram = sum(each.length for each in entries if each.kind == E820_RAM)
    reserved = sum(each.length for each in entries if each.kind == E820_RESERVED)
    assert (ram, reserved) == ((0xA0000, 0) if size == 1 << 20 else (size - 0x60000, 0x60000))
    for each in entries:
        assert any(base <= each.base and each.base + each.length <= base + length for base, length in layout)
