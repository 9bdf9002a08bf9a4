from __future__ import annotations

import json

import pytest

from shadowvm.devices.irq import IrqLine
from shadowvm.devices.testdev import ShutdownPort, TestDevice


class Board:
    def __init__(self):
        self.seen = []
        self.flushed = []
        lines = [IrqLine([(lambda pin, level: self.seen.append((pin, level)), irq)]) for irq in range(24)]
        self.device = TestDevice(lines, self.flushed.append)


@pytest.fixture
def board():
    return Board()


def test_the_scratch_register_in_all_sizes(board):
    device = board.device
    device.port_write(0xE0, 4, 0x11223344)
    assert [device.port_read(0xE0 + i, 1) for i in range(4)] == [0x44, 0x33, 0x22, 0x11]
    device.port_write(0xE2, 2, 0xAABB)
    device.port_write(0xE1, 1, 0xCC)
    assert device.port_read(0xE0, 4) == 0xAABBCC44
    assert device.port_read(0xE2, 2) == 0xAABB


def test_a_byte_drives_an_interrupt_line(board):
    for port, value in ((0x200E, 1), (0x200E, 0), (0x2017, 0x80)):
        board.device.port_write(port, 1, value)
    board.device.port_write(0x2003, 4, 1)
    assert board.seen == [(14, 1), (14, 0), (23, 1)]
    assert board.device.port_read(0x200E, 1) == 0


def test_a_page_to_forget(board):
    board.device.port_write(0xE4, 4, 0x12345678)
    board.device.port_write(0xE4, 2, 0x1000)
    assert board.flushed == [0x12345000]


def test_the_memory(board):
    device = board.device
    device.mmio_write(0x100, 8, 0x1122334455667788)
    assert [device.mmio_read(0x100, 1), device.mmio_read(0x104, 4), device.mmio_read(0x106, 2)] == [
        *(0x88, 0x11223344, 0x1122)
    ]
    device.mmio_write(0xFFFE, 4, 0xAABBCCDD)
    assert (device.mmio_read(0xFFFE, 4), len(device.ioram)) == (0xCCDD, 0x10000)


def test_testdev_state_round_trip(board):
    board.device.port_write(0xE0, 4, 77)
    board.device.mmio_write(0x20, 4, 0x55)
    other = Board().device
    other.mmio_write(0x3000, 4, 1)
    other.load(json.loads(json.dumps(board.device.state())))
    assert other.state() == board.device.state()
    assert (other.port_read(0xE0, 4), other.mmio_read(0x20, 4), other.mmio_read(0x3000, 4)) == (77, 0x55, 0)


@pytest.mark.parametrize(
    ("text", "stops"),
    [(b"Shutdown", 1), (b"SShutdown", 1), (b"ShutShutdown", 1), (b"shutdown", 0), (b"Shutdow", 0)],
)
def test_the_word_shutdown_ends_the_run(text, stops):
    calls = []
    port = ShutdownPort(lambda: calls.append(1))
    for index, letter in enumerate(text):
        if index == 3:
            saved = port.state()
            port = ShutdownPort(lambda: calls.append(1))
            port.load(json.loads(json.dumps(saved)))
        port.port_write(0x8900, 1, letter)
    assert len(calls) == stops
