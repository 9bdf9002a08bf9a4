from __future__ import annotations

import json

import pytest

from shadowvm.devices.irq import IrqLine
from shadowvm.devices.pit import PIT_HZ, Pit, tick_ns, ticks
from tests.devices.fake import FakeClock


class Board:
    def __init__(self):
        self.clock = FakeClock()
        self.edges = []
        self.irq = IrqLine([(self._level, 0)])
        self.pit = Pit(self.clock, self.irq)

    def _level(self, pin, level):
        if level:
            self.edges.append(self.clock.now())

    def out(self, port, *values):
        for value in values:
            self.pit.port_write(port, 1, value)

    def read(self, port):
        return self.pit.port_read(port, 1)


@pytest.fixture
def board():
    return Board()


def test_ticks_and_nanoseconds_agree():
    for tick in (0, 1, 2, 1000, PIT_HZ, 10**12 + 7):
        assert ticks(tick_ns(tick)) == tick
        assert tick == 0 or ticks(tick_ns(tick) - 1) == tick - 1
    assert tick_ns(PIT_HZ) == 10**9


def test_channel_0_interrupts_at_its_rate(board):
    board.out(0x43, 0x34)
    board.out(0x40, 11932 & 0xFF, 11932 >> 8)
    board.edges.clear()
    board.clock.advance(10**9)
    assert len(board.edges) == 99
    assert board.edges[0] == tick_ns(1 + 11932)
    assert {b - a for a, b in zip(board.edges, board.edges[1:], strict=False)} <= {10_000_150, 10_000_151}


def test_programming_a_periodic_mode_is_no_interrupt(board):
    for mode in (0x34, 0x36, 0x34):
        board.out(0x43, mode)
        board.out(0x40, 0, 0)
    assert board.edges == []


def test_a_one_shot_interrupts_once_and_can_be_set_again(board):
    for _ in range(2):
        board.edges.clear()
        board.out(0x43, 0x30)
        board.out(0x40, 100, 0)
        board.clock.advance(10**7)
        assert len(board.edges) == 1


def test_edges_are_not_lost_when_time_overruns(board):
    board.out(0x43, 0x34)
    board.out(0x40, 100, 0)
    board.edges.clear()
    board.clock.jump(tick_ns(1050))
    assert len(board.edges) == 10


def test_reprogramming_stops_the_old_count(board):
    board.out(0x43, 0x34)
    board.out(0x40, 100, 0)
    board.out(0x43, 0x30)
    board.edges.clear()
    board.clock.advance(10**7)
    assert board.edges == []
    assert board.clock.next_deadline() is None


def test_only_channel_0_needs_timers(board):
    board.out(0x43, 0x30, 0xB6, 0x76)
    for port in (0x41, 0x42):
        board.out(port, 10, 0)
    assert board.clock.next_deadline() is None


def test_port_61_gates_channel_2_and_shows_its_output(board):
    board.out(0x61, 0)
    board.out(0x43, 0xB0)
    board.out(0x42, 50, 0)
    board.clock.advance(tick_ns(500))
    assert board.read(0x61) & 0x23 == 0
    board.out(0x61, 1)
    board.clock.advance(tick_ns(50))
    assert board.read(0x61) & 0x23 == 0x01
    board.clock.advance(tick_ns(2))
    assert board.read(0x61) & 0x23 == 0x21


def test_port_61_keeps_only_gate_and_speaker(board):
    board.out(0x61, 0xFF)
    assert board.read(0x61) & 0xCF == 0x03


def test_the_refresh_bit_toggles_with_time(board):
    seen = []
    for _ in range(8):
        seen.append(board.read(0x61) >> 4 & 1)
        board.clock.advance(15_085)
    assert seen == [0, 1] * 4


def test_read_back_takes_several_channels(board):
    board.out(0x43, 0x34, 0x54)
    board.out(0x40, 0, 0x10)
    board.out(0x41, 9)
    board.clock.advance(tick_ns(2))
    board.out(0x43, 0xC6)
    assert [board.read(0x40) for _ in range(3)] == [0xB4, 0xFF, 0x0F]
    assert [board.read(0x41) for _ in range(2)] == [0x94, 8]


def test_state_round_trip(board):
    board.out(0x43, 0x36)
    board.out(0x40, 200, 0)
    board.out(0x61, 3)
    board.clock.advance(tick_ns(333))
    saved = json.loads(json.dumps([board.clock.state(), board.pit.state()]))
    other = Board()
    other.clock.retired = board.clock.retired
    other.clock.load(saved[0])
    other.pit.load(saved[1])
    assert other.pit.state() == board.pit.state()
    for each in (board, other):
        each.edges.clear()
        each.clock.advance(tick_ns(1000))
    assert other.edges == board.edges != []
