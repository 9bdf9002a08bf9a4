from __future__ import annotations

import pytest

from shadowvm.devices.bus import MmioBus, PortBus
from shadowvm.errors import ModelBug
from shadowvm.events import attached, kvm_mmio, kvm_pio


class Recorder:
    """A device that answers with what it was asked."""

    def __init__(self, value=0):
        self.value = value
        self.calls = []

    def port_read(self, port, size):
        self.calls.append(("in", port, size))
        return self.value

    def port_write(self, port, size, value):
        self.calls.append(("out", port, size, value))

    def mmio_read(self, offset, size):
        self.calls.append(("load", offset, size))
        return self.value

    def mmio_write(self, offset, size, value):
        self.calls.append(("store", offset, size, value))


@pytest.fixture
def traced():
    lines = []
    with attached(lambda point, args: lines.append(point.format(args)), [kvm_pio, kvm_mmio]):
        yield lines


def test_a_port_access_reaches_its_device_and_is_traced(traced):
    bus, device = PortBus(), Recorder(0x1234)
    bus.register(device, 0x60, 5)
    assert bus.read(0x64, 2) == 0x1234
    assert bus.read(0x60, 1) == 0x34
    bus.write(0x61, 4, 0xDEADBEEF)
    assert device.calls == [("in", 0x64, 2), ("in", 0x60, 1), ("out", 0x61, 4, 0xDEADBEEF)]
    assert traced[-1] == "pio_write at 0x61 size 4 count 1 val 0xdeadbeef"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ports_without_a_device_read_as_ones(size):
    bus = PortBus()
    bus.write(0x80, size, 1)
    assert bus.read(0x80, size) == (1 << 8 * size) - 1


def test_the_bus_cuts_wide_accesses_of_byte_wide_devices():
    bus, low, high = PortBus(), Recorder(0x11), Recorder(0x22)
    bus.register(low, 0x70, 1, byte_wide=True)
    bus.register(high, 0x71, 1, byte_wide=True)
    bus.write(0x70, 2, 0xAB0F)
    assert bus.read(0x70, 2) == 0x2211
    assert bus.read(0x71, 2) == 0xFF22
    assert low.calls == [("out", 0x70, 1, 0x0F), ("in", 0x70, 1)]
    assert high.calls == [("out", 0x71, 1, 0xAB), ("in", 0x71, 1), ("in", 0x71, 1)]


def test_no_port_has_two_devices():
    bus = PortBus()
    bus.register(Recorder(), 0x60, 5)
    with pytest.raises(ModelBug, match="0x64"):
        bus.register(Recorder(), 0x64, 1)


def test_an_mmio_access_reaches_its_device_by_offset_and_is_traced(traced):
    bus, first, second = MmioBus(), Recorder(0xAABBCCDD), Recorder(7)
    bus.register(second, 0xFEC00000, 0x1000)
    bus.register(first, 0xFEB00000, 0x2000)
    assert bus.read(0xFEB01FFE, 2) == 0xCCDD
    bus.write(0xFEC00010, 4, 5)
    assert first.calls == [("load", 0x1FFE, 2)]
    assert second.calls == [("store", 0x10, 4, 5)]
    assert traced == ["mmio read len 2 gpa 0xfeb01ffe val 0xccdd", "mmio write len 4 gpa 0xfec00010 val 0x5"]


@pytest.mark.parametrize("gpa", [0, 0xFEBFFFFF, 0xFEC01000, 1 << 40])
def test_addresses_without_a_device_read_as_ones(gpa, traced):
    bus, device = MmioBus(), Recorder()
    bus.register(device, 0xFEC00000, 0x1000)
    bus.write(gpa, 8, 1)
    assert bus.find(gpa) is None
    assert bus.read(gpa, 4) == 0xFFFFFFFF
    assert device.calls == []
    assert traced[-1] == f"mmio unsatisfied-read len 4 gpa {gpa:#x} val 0xffffffff"


@pytest.mark.parametrize(("base", "size"), [(0x1000, 1), (0x2FFF, 1), (0, 0x1001), (0x2FFF, 5), (0, 0x9000)])
def test_no_address_has_two_devices(base, size):
    bus = MmioBus()
    bus.register(Recorder(), 0x1000, 0x2000)
    with pytest.raises(ModelBug):
        bus.register(Recorder(), base, size)
