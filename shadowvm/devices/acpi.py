"""ACPI tables of the PC, built here rather than by firmware (ACPI specification 6.4, chapters 5 and 19).

RSDP, RSDT, XSDT, FADT, FACS, MADT, and a DSDT that says no more than how to switch off. Interrupt routing as QEMU's:
IRQ 0 is pin 2 of the IOAPIC; 5, 9, 10 and 11 are active-high and level-triggered; LINT1 is NMI.

A loader puts them into memory with acpi_tables(); firmware gets them as files, with a script that says how to place
them (hw/acpi/bios-linker-loader.c of QEMU), from acpi_files().
"""

from __future__ import annotations

import struct

from ..addr import Gpa
from .a20 import RESET_CONTROL
from .acpi_pm import PM1_CONTROL, PM1_EVENT, PM_TIMER
from .apic_bits import APIC_DEFAULT_BASE
from .ioapic import IOAPIC_BASE
from .rtc_calendar import CENTURY

ACPI_TABLES_SIZE = 0x1000
"""Bytes that acpi_tables() needs from `base` on, for as many CPUs as there may be."""
RSDP_GPA = Gpa(0xF_5000)
MAX_CPUS = 255

_OEM_ID, _OEM_TABLE, _CREATOR = b"SHADOW", b"SHADOWVM", b"SHVM"
_SCI_IRQ = 9
_LEVEL_IRQS = (5, 9, 10, 11)
_ACTIVE_HIGH_LEVEL = 0x0D
_FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 10  # WBINVD, C1, sleep button by method, reset register
_BOOT_ARCH = 1 << 0 | 1 << 1  # ISA devices, 8042
_IO_SPACE = 1
_CHECKSUM_AT = 9
_FACS_ALIGN, _RSDP_ALIGN = 64, 16
_NO_C_STATE = 0x0FFF


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header and checksum."""
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM_ID, _OEM_TABLE, 1, _CREATOR, 1)
    table = bytearray(header + body)
    table[_CHECKSUM_AT] = _checksum(table)
    return bytes(table)


def _gas(port: int, bits: int, access: int) -> bytes:
    """A generic address structure for I/O ports; all zeros for none."""
    return struct.pack("<BBBBQ", _IO_SPACE, bits, 0, access, port) if port else bytes(12)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, rsdt, 36, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp)


def _madt(cpus: int) -> bytes:
    parts = [struct.pack("<II", APIC_DEFAULT_BASE, 1)]
    parts += [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus)]
    parts.append(struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_BASE, 0))
    parts.append(struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0))
    parts += [struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _ACTIVE_HIGH_LEVEL) for irq in _LEVEL_IRQS]
    parts.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))
    return _table(b"APIC", 3, b"".join(parts))


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _fadt(facs: int, dsdt: int) -> bytes:
    body = struct.pack("<IIBBHIBBBB", facs, dsdt, 0, 0, _SCI_IRQ, 0, 0, 0, 0, 0)
    body += struct.pack("<8I", PM1_EVENT, 0, PM1_CONTROL, 0, 0, PM_TIMER, 0, 0)
    body += struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0)
    body += struct.pack(
        "<HHHHBBBBBHBI", _NO_C_STATE, _NO_C_STATE, 0, 0, 0, 0, 0, 0, CENTURY, _BOOT_ARCH, 0, _FADT_FLAGS
    )
    body += _gas(RESET_CONTROL, 8, 1) + struct.pack("<BHB", 0x06, 0, 1)
    body += struct.pack("<QQ", 0, dsdt)
    body += _gas(PM1_EVENT, 32, 2) + _gas(0, 0, 0) + _gas(PM1_CONTROL, 16, 2) + _gas(0, 0, 0) + _gas(0, 0, 0)
    body += _gas(PM_TIMER, 32, 3) + _gas(0, 0, 0) + _gas(0, 0, 0)
    body += _gas(0, 0, 0) + _gas(0, 0, 0)
    return _table(b"FACP", 5, body)


def _dsdt() -> bytes:
    r"""Name (\_S5_, Package (4) {Zero, Zero, Zero, Zero}): sleep type 0 is off."""
    package = bytes((0x12, 0x06, 0x04, 0, 0, 0, 0))
    return _table(b"DSDT", 1, b"\x08_S5_" + package)


def acpi_tables(cpus: int, base: Gpa, rsdp: Gpa = RSDP_GPA) -> list[tuple[Gpa, bytes]]:
    """What to put where: the RSDP at `rsdp`, all else in [base, base + ACPI_TABLES_SIZE).

    `base` is page-aligned. Guests find an RSDP at multiples of 16 from 0xe0000 to 0xfffff.
    """
    assert 1 <= cpus <= MAX_CPUS
    placed: list[tuple[Gpa, bytes]] = []
    end = base

    def place(data: bytes) -> Gpa:
        nonlocal end
        gpa = end
        placed.append((gpa, data))
        end = Gpa(gpa + (len(data) + _FACS_ALIGN - 1 & -_FACS_ALIGN))
        return gpa

    facs = place(_facs())
    dsdt = place(_dsdt())
    tables = [place(_fadt(facs, dsdt)), place(_madt(cpus))]
    rsdt = place(_table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    assert end - base <= ACPI_TABLES_SIZE
    return [(rsdp, _rsdp(rsdt, xsdt)), *placed]


RSDP_FILE, TABLES_FILE, LOADER_FILE = "etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_BIOS = 1, 2
_COMMAND_SIZE = 128
_RSDP_POINTERS = ((16, 4), (24, 8))
_FADT_POINTERS = ((36, 4), (40, 4), (140, 8))


def acpi_files(cpus: int) -> dict[str, bytes]:
    """The same tables as files of fw_cfg: pointers are offsets into TABLES_FILE until the firmware has moved them."""
    (_, rsdp), *tables = acpi_tables(cpus, Gpa(0), Gpa(0))
    script = [_allocate(RSDP_FILE, _RSDP_ALIGN, _ZONE_BIOS), _allocate(TABLES_FILE, _FACS_ALIGN, _ZONE_HIGH)]
    blob = bytearray()
    for offset, table in tables:
        blob[offset:] = bytes(offset - len(blob)) + table
        if pointers := _pointers(table):
            script += [_add_pointer(TABLES_FILE, offset + at, size) for at, size in pointers]
            script.append(_add_checksum(TABLES_FILE, offset + _CHECKSUM_AT, offset, len(table)))
    script += [_add_pointer(RSDP_FILE, at, size) for at, size in _RSDP_POINTERS]
    script += [_add_checksum(RSDP_FILE, 8, 0, 20), _add_checksum(RSDP_FILE, 32, 0, 36)]
    return {RSDP_FILE: rsdp, TABLES_FILE: bytes(blob), LOADER_FILE: b"".join(script)}


def _pointers(table: bytes) -> list[tuple[int, int]]:
    """(offset, size) of each pointer to another table."""
    size = {b"RSDT": 4, b"XSDT": 8}.get(table[:4])
    if size is not None:
        return [(at, size) for at in range(36, len(table), size)]
    return list(_FADT_POINTERS) if table[:4] == b"FACP" else []


def _command(kind: int, fmt: str, *values: object) -> bytes:
    return struct.pack(f"<I{fmt}", kind, *values).ljust(_COMMAND_SIZE, b"\0")


def _allocate(file: str, align: int, zone: int) -> bytes:
    return _command(_ALLOCATE, "56sIB", file.encode(), align, zone)


def _add_pointer(file: str, offset: int, size: int) -> bytes:
    return _command(_ADD_POINTER, "56s56sIB", file.encode(), TABLES_FILE.encode(), offset, size)


def _add_checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return _command(_ADD_CHECKSUM, "56sIII", file.encode(), offset, start, length)
