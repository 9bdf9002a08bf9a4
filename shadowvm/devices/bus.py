"""The I/O port bus: which device answers at which port.

A device registers a range and is called with the port, the size of the access in bytes and, for a write, the value.
Ports without a device read as all ones and ignore writes, as on a PC.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import ModelBug
from ..events import kvm_pio


class PortDevice(Protocol):
    """What the bus asks of a device. `size` is 1, 2 or 4."""

    def port_read(self, port: int, size: int) -> int:
        """The value that `in` gets."""

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest executed `out`."""


class PortBus:
    """Port -> device."""

    __slots__ = ("_devices",)

    def __init__(self) -> None:
        self._devices: dict[int, PortDevice] = {}

    def register(self, device: PortDevice, base: int, count: int) -> None:
        """Give `count` ports from `base` to a device; ModelBug if one is taken."""
        for port in range(base, base + count):
            if port in self._devices:
                raise ModelBug(f"port {port:#x} registered twice")
            self._devices[port] = device

    def read(self, port: int, size: int) -> int:
        """Serve `in`."""
        device = self._devices.get(port)
        ones = (1 << 8 * size) - 1
        value = ones if device is None else device.port_read(port, size) & ones
        if kvm_pio.on:
            kvm_pio(0, port, size, 1, value)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Serve `out`."""
        if kvm_pio.on:
            kvm_pio(1, port, size, 1, value)
        device = self._devices.get(port)
        if device is not None:
            device.port_write(port, size, value)
