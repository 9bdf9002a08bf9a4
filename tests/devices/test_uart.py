from __future__ import annotations

import json

import pytest

from shadowvm.devices.clock import VirtualClock
from shadowvm.devices.irq import IrqLine
from shadowvm.devices.uart import COM1, Uart

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(COM1, COM1 + 8)
DLAB, LOOP = 0x80, 0x10


def uart() -> tuple[Uart, bytearray]:
    sent = bytearray()
    return Uart(sent.append, VirtualClock(lambda: 0), IrqLine()), sent


def test_bytes_are_sent_at_once_and_the_line_is_always_ready() -> None:
    device, sent = uart()
    for byte in b"\x00a\xff":
        assert device.port_read(LSR, 1) & 0x60 == 0x60
        device.port_write(DATA, 1, byte)
    assert sent == b"\x00a\xff"


def test_only_the_low_byte_of_a_wide_access_is_sent() -> None:
    device, sent = uart()
    device.port_write(DATA, 4, 0x64636261)
    assert sent == b"a"


def test_the_divisor_hides_behind_dlab_and_sends_nothing() -> None:
    device, sent = uart()
    device.port_write(IER, 1, 0x05)
    device.port_write(LCR, 1, DLAB | 3)
    device.port_write(DATA, 1, 0x34)
    device.port_write(IER, 1, 0x12)
    assert (device.port_read(DATA, 1), device.port_read(IER, 1)) == (0x34, 0x12)
    device.port_write(LCR, 1, 3)
    assert device.port_read(IER, 1) == 0x05
    assert device.port_read(DATA, 1) == 0
    assert sent == b""


def test_loopback_keeps_bytes_in_the_device() -> None:
    device, sent = uart()
    device.port_write(MCR, 1, LOOP)
    device.port_write(DATA, 1, 0x41)
    assert device.port_read(LSR, 1) & 1
    assert device.port_read(DATA, 1) == 0x41
    assert not device.port_read(LSR, 1) & 1
    assert sent == b""


def test_the_loop_shows_the_modem_lines_that_the_guest_drives() -> None:
    device, _ = uart()
    assert device.port_read(MSR, 1) == 0xB0
    for lines, status in ((0, 0), (1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80)):
        device.port_write(MCR, 1, LOOP | lines)
        assert device.port_read(MSR, 1) == status


@pytest.mark.parametrize(
    ("register", "written", "read"),
    [(SCR, 0xA5, 0xA5), (LCR, 0x1B, 0x1B), (MCR, 0xEF, 0x0F), (MCR, 0xFF, 0x1F), (IER, 0xFF, 0x0F)],
)
def test_registers_keep_the_bits_that_exist(register: int, written: int, read: int) -> None:
    device, _ = uart()
    device.port_write(register, 1, written)
    assert device.port_read(register, 1) == read


def test_the_fifo_shows_in_the_interrupt_register() -> None:
    device, _ = uart()
    assert device.port_read(IIR, 1) == 0x01
    device.port_write(IIR, 1, 0x01)
    assert device.port_read(IIR, 1) == 0xC1


def test_the_empty_transmitter_interrupts_until_it_is_identified_or_fed() -> None:
    edges = []
    irq = IrqLine([(lambda pin, level: edges.append(level), 4)])
    device = Uart(lambda byte: None, VirtualClock(lambda: 0), irq)
    device.port_write(DATA, 1, 0x41)
    assert device.port_read(IIR, 1) == 1
    device.port_write(IER, 1, 0x02)
    assert edges == [1]
    assert [device.port_read(IIR, 1), device.port_read(IIR, 1)] == [0x02, 0x01]
    assert edges == [1, 0]
    device.port_write(DATA, 1, 0x42)
    device.port_write(DATA, 1, 0x43)
    assert edges == [1, 0, 1, 0, 1]
    device.port_write(IER, 1, 0)
    assert irq.level == 0


def test_the_emptied_transmitter_interrupts_again() -> None:
    device, _ = uart()
    device.port_write(IER, 1, 2)
    assert [device.port_read(IIR, 1), device.port_read(IIR, 1)] == [0x02, 0x01]
    for control, identified in ((0x01, 0xC2), (0x01, 0xC1), (0x05, 0xC2), (0x00, 0x02)):
        device.port_write(IIR, 1, control)
        assert device.port_read(IIR, 1) == identified
        assert device.port_read(IIR, 1) & 0x3F == 0x01


def test_registers_at_power_on() -> None:
    device, _ = uart()
    assert [device.port_read(port, 1) for port in range(COM1, COM1 + 8)] == [0, 0, 1, 0, 8, 0x60, 0xB0, 0]


def test_state_round_trip() -> None:
    device, _ = uart()
    device.port_write(MCR, 1, LOOP | 8)
    device.port_write(DATA, 1, 0x41)
    device.port_write(IER, 1, 2)
    device.port_write(SCR, 1, 9)
    other, _ = uart()
    other.load(json.loads(json.dumps(device.state())))
    assert other.state() == device.state()
    assert [other.port_read(port, 1) for port in (DATA, IER, IIR, SCR)] == [0x41, 2, 2, 9]
