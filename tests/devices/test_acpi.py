from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest

from shadowvm.addr import Gpa
from shadowvm.devices.acpi import (
    ACPI_TABLES_SIZE,
    LOADER_FILE,
    MAX_CPUS,
    RSDP_FILE,
    TABLES_FILE,
    acpi_files,
    acpi_tables,
)

BASE = Gpa(0xFE000)


class Memory:
    """Guest memory with the tables in it, read as a guest reads them."""

    def __init__(self, cpus=2):
        self.placed = acpi_tables(cpus, BASE)
        self.bytes = bytearray(1 << 20)
        for gpa, data in self.placed:
            assert not any(self.bytes[gpa : gpa + len(data)]), "tables overlap"
            self.bytes[gpa : gpa + len(data)] = data

    def table(self, gpa):
        size = struct.unpack_from("<I", self.bytes, gpa + 4)[0]
        return bytes(self.bytes[gpa : gpa + size])

    def rsdp(self):
        found = [gpa for gpa in range(0xE0000, 0x100000, 16) if self.bytes[gpa : gpa + 8] == b"RSD PTR "]
        assert len(found) == 1
        return bytes(self.bytes[found[0] : found[0] + 36])

    def tables(self):
        xsdt = self.table(struct.unpack_from("<Q", self.rsdp(), 24)[0])
        return {self.table(gpa)[:4]: self.table(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[36:])}


@pytest.fixture
def memory():
    return Memory()


def test_a_guest_finds_the_tables_by_scanning(memory):
    rsdp = memory.rsdp()
    assert sum(rsdp[:20]) % 256 == sum(rsdp) % 256 == 0
    rsdt = memory.table(struct.unpack_from("<I", rsdp, 16)[0])
    xsdt = memory.table(struct.unpack_from("<Q", rsdp, 24)[0])
    assert (rsdt[:4], xsdt[:4]) == (b"RSDT", b"XSDT")
    assert [each for (each,) in struct.iter_unpack("<I", rsdt[36:])] == [
        each for (each,) in struct.iter_unpack("<Q", xsdt[36:])
    ]
    assert set(memory.tables()) == {b"FACP", b"APIC"}


def test_every_checksum_is_right(memory):
    for _, data in memory.placed[1:]:
        if data[:4] != b"FACS":
            assert sum(data) % 256 == 0, data[:4]
            assert struct.unpack_from("<I", data, 4)[0] == len(data)


def test_madt_lists_processors_the_ioapic_and_overrides():
    madt = Memory(3).tables()[b"APIC"]
    assert struct.unpack_from("<I", madt, 36)[0] == 0xFEE00000
    entries, offset = [], 44
    while offset < len(madt):
        size = madt[offset + 1]
        entries.append(madt[offset : offset + size])
        offset += size
    assert [entry[3] for entry in entries if entry[0] == 0] == [0, 1, 2]
    assert [struct.unpack_from("<II", entry, 4) for entry in entries if entry[0] == 1] == [(0xFEC00000, 0)]
    assert [struct.unpack_from("<BIH", entry, 3) for entry in entries if entry[0] == 2] == [
        (0, 2, 0),
        *((irq, irq, 13) for irq in (5, 9, 10, 11)),
    ]


def test_fadt_points_to_facs_and_dsdt_and_the_hardware(memory):
    fadt = memory.tables()[b"FACP"]
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert (memory.table(facs)[:4], memory.table(dsdt)[:4], facs % 64) == (b"FACS", b"DSDT", 0)
    assert struct.unpack_from("<H", fadt, 46)[0] == 9
    assert [struct.unpack_from("<I", fadt, offset)[0] for offset in (56, 64, 76)] == [0x600, 0x604, 0x608]
    assert (fadt[108], fadt[117], fadt[128]) == (0x32, 8, 6)
    assert struct.unpack_from("<Q", fadt, 120)[0] == 0xCF9
    assert struct.unpack_from("<Q", fadt, 140)[0] == dsdt
    assert len(fadt) == 268


@pytest.mark.parametrize("cpus", [1, 16, MAX_CPUS])
def test_the_tables_fit(cpus):
    placed = acpi_tables(cpus, BASE)
    assert placed[0][0] in range(0xE0000, 0x100000, 16)
    assert all(gpa >= BASE and gpa + len(data) <= BASE + ACPI_TABLES_SIZE for gpa, data in placed[1:])


@pytest.mark.skipif(shutil.which("iasl") is None, reason="acpica-tools is not installed")
def test_the_reference_disassembler_accepts_them(memory, tmp_path):
    for _, data in memory.placed[1:]:
        path = tmp_path / f"{data[:4].decode()}.aml"
        path.write_bytes(data)
        result = subprocess.run(["iasl", "-d", str(path)], capture_output=True, text=True, check=False)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        assert not re.search("warning|error|invalid", output, re.IGNORECASE), output
        source = path.with_suffix(".dsl").read_text()
        assert data[:4] != b"DSDT" or "Name (_S5, Package (0x04)" in source


def follow(script, files, places):
    """Firmware's part: the files as they lie in memory when the script has been obeyed."""
    memory = {}
    for at in range(0, len(script), 128):
        kind, *_ = struct.unpack_from("<I", script, at)
        if kind == 1:
            name, align, zone = struct.unpack_from("<56sIB", script, at + 4)
            name = name.rstrip(b"\0").decode()
            assert places[name] % align == 0
            assert zone == (2 if name == RSDP_FILE else 1)
            memory[name] = bytearray(files[name])
        elif kind == 2:
            one, other, offset, size = struct.unpack_from("<56s56sIB", script, at + 4)
            data = memory[one.rstrip(b"\0").decode()]
            pointer = int.from_bytes(data[offset : offset + size], "little") + places[other.rstrip(b"\0").decode()]
            data[offset : offset + size] = pointer.to_bytes(size, "little")
        else:
            assert kind == 3
            name, offset, start, length = struct.unpack_from("<56sIII", script, at + 4)
            data = memory[name.rstrip(b"\0").decode()]
            data[offset] = (data[offset] - sum(data[start : start + length])) % 256
    return memory


@pytest.mark.parametrize("cpus", [1, 16])
def test_firmware_that_follows_the_script_has_the_same_tables(cpus):
    files = acpi_files(cpus)
    places = {RSDP_FILE: 0xF5000, TABLES_FILE: BASE}
    memory = follow(files[LOADER_FILE], files, places)
    (rsdp_at, rsdp), *tables = acpi_tables(cpus, BASE)
    assert (rsdp_at, memory[RSDP_FILE]) == (places[RSDP_FILE], rsdp)
    for gpa, data in tables:
        assert memory[TABLES_FILE][gpa - BASE : gpa - BASE + len(data)] == data, data[:4]
