"""A guest that scans for the MultiProcessor table finds every CPU and where the interrupts go."""

from __future__ import annotations

import struct

import pytest

from shadowvm.devices.mptable import mp_tables

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def read(cpus: int) -> tuple[bytes, list[bytes]]:
    """The header of the configuration table and its entries, as a guest gets to them."""
    memory = bytearray(1 << 20)
    for gpa, data in mp_tables(cpus, 0x806A6, 0x0FABFBFF):
        memory[gpa : gpa + len(data)] = data
    found = [gpa for gpa in range(0xF0000, 0x100000, 16) if memory[gpa : gpa + 4] == b"_MP_"]
    assert len(found) == 1
    assert sum(memory[found[0] : found[0] + 16]) % 256 == 0
    (at,) = struct.unpack_from("<I", memory, found[0] + 4)
    length, count = struct.unpack_from("<H", memory, at + 4)[0], struct.unpack_from("<H", memory, at + 34)[0]
    table = bytes(memory[at : at + length])
    assert sum(table) % 256 == 0
    entries, offset = [], 44
    while offset < length:
        size = SIZES[table[offset]]
        entries.append(table[offset : offset + size])
        offset += size
    assert (offset, len(entries)) == (length, count)
    return table[:44], entries


@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_every_cpu_is_there_and_the_first_boots(cpus: int) -> None:
    header, entries = read(cpus)
    assert header[:4] == b"PCMP"
    assert struct.unpack_from("<I", header, 36) == (0xFEE00000,)
    cpu_entries = [entry for entry in entries if entry[0] == 0]
    assert [entry[1] for entry in cpu_entries] == list(range(cpus))
    assert [entry[3] for entry in cpu_entries] == [3] + [1] * (cpus - 1)
    assert struct.unpack_from("<II", cpu_entries[0], 4) == (0x806A6, 0x0FABFBFF)


def test_interrupts_go_to_the_pins_of_their_number_but_the_timers() -> None:
    _, entries = read(2)
    pins = {entry[5]: entry[7] for entry in entries if entry[0] == 3}
    assert pins == {0: 2, **{irq: irq for irq in range(1, 16) if irq != 2}}
    assert [(entry[1], entry[6], entry[7]) for entry in entries if entry[0] == 4] == [(3, 0, 0), (1, 0xFF, 1)]
    assert [struct.unpack_from("<I", entry, 4)[0] for entry in entries if entry[0] == 2] == [0xFEC00000]
