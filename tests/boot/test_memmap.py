"""Guest RAM around the PCI hole, and the map of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shadowvm.boot.memmap import (
    E820_RAM,
    E820_RESERVED,
    acpi_base,
    initrd_end,
    memory_layout,
    memory_map,
)

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, 3 * GIB, 3 * GIB + 4096, 5 * GIB])
def test_layout_and_map_hold_all_memory_and_leave_the_hole_free(size: int) -> None:
    layout = [(each.base << 12, each.npages << 12) for each in memory_layout(size)]
    assert sum(length for _, length in layout) == size
    assert all(base + length <= 3 * GIB or base >= 4 * GIB for base, length in layout)
    entries = memory_map(size)
    assert entries == sorted(entries)
    assert all(one.base + one.length <= two.base for one, two in pairwise(entries))
    for each in entries:
        inside = any(base <= each.base and each.base + each.length <= base + length for base, length in layout)
        assert inside or each.kind == E820_RESERVED
    ram = sum(each.length for each in entries if each.kind == E820_RAM)
    tables = 0x20000 if size >= 2 * MIB else 0
    assert ram == 0x9FC00 + max(0, size - MIB - tables)


def test_map_is_the_one_that_seabios_hands_out() -> None:
    assert [(hex(base), hex(length), kind) for base, length, kind in memory_map(5 * GIB)] == [
        ("0x0", "0x9fc00", 1),
        ("0x9fc00", "0x400", 2),
        ("0xf0000", "0x10000", 2),
        ("0x100000", "0xbfee0000", 1),
        ("0xbffe0000", "0x20000", 2),
        ("0xfffc0000", "0x40000", 2),
        ("0x100000000", "0x80000000", 1),
    ]
    assert memory_map(64 * MIB)[3:5] == [(MIB, 0x3EE0000, E820_RAM), (0x3FE0000, 0x20000, E820_RESERVED)]


@pytest.mark.parametrize("size", [MIB, 2 * MIB - 4096, 2 * MIB, 64 * MIB, 5 * GIB])
def test_acpi_tables_lie_in_reserved_memory_and_an_initrd_below_them(size: int) -> None:
    base = acpi_base(size)
    entries = memory_map(size)
    assert [each.kind for each in entries if each.base <= base < each.base + each.length] == [E820_RESERVED]
    assert base < MIB or initrd_end(size) <= base
    assert initrd_end(size) <= min(size, 3 * GIB)
