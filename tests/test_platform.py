"""What a kernel finds in the memory of a whole machine: ACPI tables, placed by the loader or by the firmware."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shadowvm.boot.memmap import EBDA, acpi_base
from shadowvm.config import MIB, MachineConfig
from shadowvm.devices.mptable import MP_GPA
from shadowvm.guests import guests_directory
from shadowvm.machine import Machine
from tests.boot.images import LEAVE, PT_NOTE, Load, elf32, elf64, note, send

FIRMWARE = str(guests_directory().parent / "firmware/shadowvm-fw.bin")
ENTRY = 0x30000
SEND_RSDP = bytes.fromhex("8b7320 b924000000 66baf803 ac ee e2fc")
"""mov esi, [ebx+32]; mov ecx, 36; and out with it. Like send() it means the same in 64-bit code."""


def output_of(path: Path, data: bytes, **more: object) -> bytes:
    """What an image sends before it leaves with status 0."""
    path.write_bytes(data)
    output = bytearray()
    machine = Machine(MachineConfig(image=str(path), host_memory=16 * MIB, **more), output.append)  # type: ignore[arg-type]
    try:
        outcome = machine.run()
    finally:
        machine.close()
    assert (outcome.reason.value, outcome.status) == ("debug-exit", 0), outcome
    return bytes(output)


def kernel(size: int) -> tuple[bytes, bytes]:
    """(PVH ELF32, ELF64) that send the root pointer and the page of the tables."""
    code = SEND_RSDP + send(acpi_base(size), 0x1000) + LEAVE
    start = Load(0x40000, note(18, struct.pack("<I", ENTRY)), kind=PT_NOTE, align=4)
    return elf32([Load(ENTRY, code), start], 0), elf64([Load(ENTRY, code)], ENTRY)


def check_tables(output: bytes, base: int) -> None:
    """The root pointer leads to tables that are right."""
    rsdp, memory = output[:36], output[36:]
    assert (rsdp[:8], sum(rsdp[:20]) % 256, sum(rsdp) % 256) == (b"RSD PTR ", 0, 0)

    def table(gpa: int) -> bytes:
        (length,) = struct.unpack_from("<I", memory, gpa - base + 4)
        found = memory[gpa - base : gpa - base + length]
        assert len(found) == length
        assert sum(found) % 256 == 0
        return found

    rsdt, xsdt = table(struct.unpack_from("<I", rsdp, 16)[0]), table(struct.unpack_from("<Q", rsdp, 24)[0])
    tables = [table(gpa) for (gpa,) in struct.iter_unpack("<I", rsdt[36:])]
    assert tables == [table(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[36:])]
    assert [each[:4] for each in tables] == [b"FACP", b"APIC"]
    assert table(struct.unpack_from("<I", tables[0], 40)[0])[:4] == b"DSDT"


@pytest.mark.parametrize("size", [MIB, 2 * MIB, 64 * MIB, 5 << 30])
def test_start_info_leads_to_acpi_tables(size: int, tmp_path: Path) -> None:
    protected, long_mode = kernel(size)
    for data in (protected, long_mode):
        check_tables(output_of(tmp_path / "image", data, memory=size), acpi_base(size))


def test_root_pointer_is_found_below_1_mib(tmp_path: Path) -> None:
    data = elf64([Load(ENTRY, send(0xE0000, 0x20000) + LEAVE)], ENTRY)
    area = output_of(tmp_path / "image", data)
    assert [at for at in range(0, len(area), 16) if area[at : at + 8] == b"RSD PTR "] == [0xF5000 - 0xE0000]


@pytest.mark.parametrize("size", [2 * MIB, 5 << 30])
def test_firmware_places_acpi_tables(size: int, tmp_path: Path) -> None:
    _, long_mode = kernel(size)
    output = output_of(tmp_path / "image", long_mode, memory=size, bios=FIRMWARE)
    check_tables(output[output.index(b"RSD PTR ") :], acpi_base(size))


def test_firmware_s_root_pointer_is_in_the_ebda(tmp_path: Path) -> None:
    data = elf64([Load(ENTRY, send(0x40E, 2) + send(EBDA, 0x400) + LEAVE)], ENTRY)
    output = output_of(tmp_path / "image", data, bios=FIRMWARE)[-0x402:]
    assert struct.unpack_from("<H", output)[0] << 4 == EBDA
    assert output[2:].index(b"RSD PTR ") % 16 == 0


@pytest.mark.parametrize("smp", [1, 4])
def test_a_kernel_finds_every_cpu_in_the_multiprocessor_table(smp: int, tmp_path: Path) -> None:
    image = elf64([Load(ENTRY, send(MP_GPA, 0x400) + LEAVE)], ENTRY)
    memory = output_of(tmp_path / "kernel", image, smp=smp, timeout_instructions=10_000_000)
    assert memory[:4] == b"_MP_"
    table = memory[struct.unpack_from("<I", memory, 4)[0] - MP_GPA :]
    assert table[:4] == b"PCMP"
    assert sum(table[: struct.unpack_from("<H", table, 4)[0]]) % 256 == 0
    assert [table[44 + 20 * cpu] for cpu in range(smp + 1)] == [0] * smp + [1]


def test_the_madt_has_every_cpu(tmp_path: Path) -> None:
    image = elf64([Load(ENTRY, send(acpi_base(64 * MIB), 0x1000) + LEAVE)], ENTRY)
    memory = output_of(tmp_path / "kernel", image, smp=5, timeout_instructions=10_000_000)
    at = memory.index(b"APIC")
    found = [tuple(memory[at + 44 + 8 * cpu : at + 48 + 8 * cpu]) for cpu in range(5)]
    assert found == [(0, 8, cpu, cpu) for cpu in range(5)]
