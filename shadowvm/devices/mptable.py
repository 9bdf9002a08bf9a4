"""The MultiProcessor table, by which kernels older than ACPI find CPUs and interrupts (Intel MP specification 1.4).

The floating pointer and, behind it, the configuration table, with the entries that a PC's BIOS makes for QEMU: every
CPU, the ISA bus, the IOAPIC, and where the sixteen ISA interrupts and the 8259 pair go.
"""

from __future__ import annotations

import struct

from ..addr import Gpa
from .apic_bits import APIC_DEFAULT_BASE
from .ioapic import IOAPIC_BASE

MP_GPA = Gpa(0xF_5100)
"""Guests look at multiples of 16 from 0xf0000 to 0xfffff."""

_CPU_ENABLED, _CPU_BOOT = 1, 2
_LAPIC_VERSION, _IOAPIC_VERSION = 0x14, 0x11
_INT, _NMI, _EXTINT = 0, 1, 3
_ISA_BUS = 0
_EVERY_LAPIC = 0xFF
_ISA_IRQS = 16
_TIMER_PIN = 2


def _checked(data: bytes, at: int) -> bytes:
    """With the byte `at` such that all add up to 0."""
    return data[:at] + bytes((-sum(data) & 0xFF,)) + data[at + 1 :]


def _processor(cpu: int, signature: int, features: int) -> bytes:
    flags = _CPU_ENABLED | (0 if cpu else _CPU_BOOT)
    return struct.pack("<BBBBII8x", 0, cpu, _LAPIC_VERSION, flags, signature, features)


def _isa_interrupt(irq: int) -> bytes | None:
    """IRQ 0 arrives at pin 2, where the second 8259 would be; its own line is no source."""
    if irq == _TIMER_PIN:
        return None
    return struct.pack("<BBHBBBB", 3, _INT, 0, _ISA_BUS, irq, 0, irq or _TIMER_PIN)


def mp_tables(cpus: int, signature: int, features: int) -> list[tuple[Gpa, bytes]]:
    """(gpa, bytes) of the floating pointer and the configuration table. signature, features: CPUID.1's EAX and EDX."""
    entries = [_processor(cpu, signature, features) for cpu in range(cpus)]
    entries.append(struct.pack("<BB6s", 1, _ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, 0, _IOAPIC_VERSION, 1, IOAPIC_BASE))
    entries += [entry for entry in map(_isa_interrupt, range(_ISA_IRQS)) if entry is not None]
    entries.append(struct.pack("<BBHBBBB", 4, _EXTINT, 0, _ISA_BUS, 0, 0, 0))
    entries.append(struct.pack("<BBHBBBB", 4, _NMI, 0, _ISA_BUS, 0, _EVERY_LAPIC, 1))
    body = b"".join(entries)
    header = struct.pack("<4sHBB8s12s", b"PCMP", 44 + len(body), 4, 0, b"SHADOWVM", b"PC          ")
    header += struct.pack("<IHHIHBx", 0, 0, len(entries), APIC_DEFAULT_BASE, 0, 0)
    config = _checked(header + body, 7)
    pointer = struct.pack("<4sIBBBBB3x", b"_MP_", MP_GPA + 16, 1, 4, 0, 0, 0)
    return [(MP_GPA, _checked(pointer, 10)), (Gpa(MP_GPA + 16), config)]
