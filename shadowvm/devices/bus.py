"""The buses: which device answers at which port, and at which guest physical address outside memory.

A device registers a range and is called with the port (or its offset from the range's start), the size of the access
in bytes and, for a write, the value. Where no device answers, reads give all ones and writes are ignored, as on a PC.
The page of the local APIC is each vCPU's own and is not on a bus.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, Protocol

from ..addr import Gpa
from ..errors import ModelBug
from ..events import kvm_mmio, kvm_pio

KVM_TRACE_MMIO_READ_UNSATISFIED, KVM_TRACE_MMIO_READ, KVM_TRACE_MMIO_WRITE = range(3)


class PortDevice(Protocol):
    """What the bus asks of a device. `size` is 1, 2 or 4."""

    def port_read(self, port: int, size: int) -> int:
        """The value that `in` gets."""

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest executed `out`."""


class MmioDevice(Protocol):
    """The same in memory. `size` is 1, 2, 4 or 8."""

    def mmio_read(self, offset: int, size: int) -> int:
        """The value that a load gets."""

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """The guest stored `value`."""


class PortBus:
    """Port -> device."""

    __slots__ = ("_bytes", "_devices")

    def __init__(self) -> None:
        self._devices: dict[int, PortDevice] = {}
        self._bytes: set[int] = set()

    def register(self, device: PortDevice, base: int, count: int, *, byte_wide: bool = False) -> None:
        """Give `count` ports from `base` to a device; ModelBug if one is taken.

        byte_wide: an 8-bit ISA device; the bus cuts wider accesses into bytes at successive ports.
        """
        for port in range(base, base + count):
            if port in self._devices:
                raise ModelBug(f"port {port:#x} registered twice")
            self._devices[port] = device
            if byte_wide:
                self._bytes.add(port)

    @property
    def devices(self) -> dict[int, PortDevice]:
        """By port."""
        return self._devices

    def read(self, port: int, size: int) -> int:
        """Serve `in`."""
        value = self._read(port, size)
        if kvm_pio.on:
            kvm_pio(0, port, size, 1, value)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Serve `out`."""
        if kvm_pio.on:
            kvm_pio(1, port, size, 1, value)
        self._write(port, size, value)

    def _read(self, port: int, size: int) -> int:
        if size > 1 and port in self._bytes:
            return sum(self._read(port + i, 1) << 8 * i for i in range(size))
        device = self._devices.get(port)
        ones = (1 << 8 * size) - 1
        return ones if device is None else device.port_read(port, size) & ones

    def _write(self, port: int, size: int, value: int) -> None:
        if size > 1 and port in self._bytes:
            for i in range(size):
                self._write(port + i, 1, value >> 8 * i & 0xFF)
            return
        device = self._devices.get(port)
        if device is not None:
            device.port_write(port, size, value)


class MmioRegion(NamedTuple):
    """Guest physical [base, end) belongs to a device."""

    base: Gpa
    end: Gpa
    device: MmioDevice


class MmioBus:
    """Guest physical address -> device."""

    __slots__ = ("_bases", "_regions")

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._regions: list[MmioRegion] = []

    def register(self, device: MmioDevice, base: Gpa, size: int) -> None:
        """Give [base, base + size) to a device; ModelBug if part of it is taken."""
        region = MmioRegion(base, Gpa(base + size), device)
        index = bisect_right(self._bases, base)
        for other in self._regions[max(index - 1, 0) : index + 1]:
            if base < other.end and other.base < region.end:
                raise ModelBug(f"gpa {base:#x} and {other.base:#x} registered twice")
        self._bases.insert(index, base)
        self._regions.insert(index, region)

    @property
    def regions(self) -> list[MmioRegion]:
        """In order of address."""
        return self._regions

    def find(self, gpa: Gpa) -> MmioRegion | None:
        """Who answers at `gpa`."""
        index = bisect_right(self._bases, gpa) - 1
        if index < 0 or gpa >= self._regions[index].end:
            return None
        return self._regions[index]

    def read(self, gpa: Gpa, size: int) -> int:
        """Serve a load."""
        region = self.find(gpa)
        value = ones = (1 << 8 * size) - 1
        if region is not None:
            value = region.device.mmio_read(gpa - region.base, size) & ones
        if kvm_mmio.on:
            kind = KVM_TRACE_MMIO_READ_UNSATISFIED if region is None else KVM_TRACE_MMIO_READ
            kvm_mmio(kind, size, gpa, value)
        return value

    def write(self, gpa: Gpa, size: int, value: int) -> None:
        """Serve a store."""
        if kvm_mmio.on:
            kvm_mmio(KVM_TRACE_MMIO_WRITE, size, gpa, value)
        region = self.find(gpa)
        if region is not None:
            region.device.mmio_write(gpa - region.base, size, value)
