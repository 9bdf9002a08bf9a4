from __future__ import annotations

import json

import pytest

from shadowvm.devices.a20 import A20Gate
from shadowvm.devices.i8042 import I8042
from shadowvm.devices.irq import IrqLine


class Board:
    def __init__(self):
        self.resets = 0
        self.a20 = A20Gate()
        self.irq = IrqLine()
        self.chip = I8042(self.irq, self.a20, self.reset)

    def reset(self):
        self.resets += 1

    def command(self, *values):
        for value in values:
            self.chip.port_write(0x64, 1, value)

    def data(self, *values):
        for value in values:
            self.chip.port_write(0x60, 1, value)

    def status(self):
        return self.chip.port_read(0x64, 1)

    def drain(self):
        answers = []
        while self.status() & 1:
            answers.append(self.chip.port_read(0x60, 1))
        return answers


@pytest.fixture
def board():
    return Board()


def test_self_test_sets_the_system_flag(board):
    assert board.status() == 0x18
    board.command(0xAA)
    assert board.status() == 0x1D
    assert (board.drain(), board.status()) == ([0x55], 0x1C)
    assert board.chip.port_read(0x60, 1) == 0x55, "the last byte stays"


def test_a20_by_the_output_port_and_by_commands(board):
    board.command(0xD1)
    board.data(0xDD)
    assert not board.a20.enabled
    board.command(0xD0)
    assert board.drain()[0] & 3 == 1
    board.command(0xD1)
    board.data(0xDF)
    assert board.a20.enabled
    board.command(0xDD)
    assert not board.a20.enabled
    board.command(0xDF)
    assert board.a20.enabled
    assert board.resets == 0


def test_resets(board):
    board.command(0xFF)
    assert board.resets == 0
    board.command(0xFE)
    assert board.resets == 1
    board.command(0xD1)
    board.data(0xCE)
    assert board.resets == 2


def test_the_command_byte(board):
    board.command(0x60)
    board.data(0x41)
    board.command(0x20)
    assert board.drain() == [0x41]
    board.command(0xAD, 0x20)
    assert board.drain() == [0x51]
    board.command(0xAE, 0x20)
    assert board.drain() == [0x41]


def test_tests_and_ports(board):
    for command, answer in ((0xAB, 0), (0xA9, 0), (0xC0, 0x80)):
        board.command(command)
        assert board.drain() == [answer]
    board.command(0x33, 0xA7, 0xA8)
    assert board.drain() == []


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        ((0xFF,), [0xFA, 0xAA]),
        ((0xF2,), [0xFA, 0xAB, 0x83]),
        ((0xED, 0x07), [0xFA, 0xFA]),
        ((0xF3, 0x20), [0xFA, 0xFA]),
        ((0xEE,), [0xEE]),
        ((0xF4,), [0xFA]),
        ((0x77,), [0xFE]),
    ],
)
def test_the_keyboard_answers(board, sent, answers):
    board.data(*sent)
    assert board.drain() == answers


def test_answers_interrupt_if_the_command_byte_says_so(board):
    board.data(0xF2)
    levels = []
    board.irq.sinks = ((lambda pin, level: levels.append(level), 1),)
    while board.status() & 1:
        levels.append(hex(board.chip.port_read(0x60, 1)))
    assert levels == [0, 1, "0xfa", 0, 1, "0xab", 0, "0x83"]
    board.command(0x60)
    board.data(0)
    board.data(0xEE)
    assert board.irq.level == 0


def test_a_guest_that_never_reads_fills_no_memory(board):
    board.data(*[0xF2] * 100)
    assert len(board.drain()) == 16


def test_state_round_trip(board):
    board.data(0xF2)
    board.command(0xD1)
    other = Board()
    other.chip.load(json.loads(json.dumps(board.chip.state())))
    assert (other.chip.state(), other.irq.level) == (board.chip.state(), 1)
    other.data(0xDD)
    assert not other.a20.enabled


def test_a_byte_as_if_from_the_keyboard(board):
    board.command(0xD2)
    board.data(0x1E)
    assert board.drain() == [0x1E]
