from __future__ import annotations

import json

import pytest

from shadowvm.devices.ioapic import NR_PINS, Ioapic
from shadowvm.events import attached, kvm_ioapic_set_irq
from tests.devices.apics import Apics

PIN = 0x0E
EDGE, LEVEL, MASKED, REMOTE_IRR = 0, 1 << 15, 1 << 16, 1 << 14


class Board(Apics):
    """Local APICs, and the IOAPIC driven as guests do it. x2APIC mode, as 8-bit destinations need no setup there."""

    def __init__(self, count=1):
        super().__init__(count)
        self.enable_x2apic()
        self.ioapic = Ioapic(self.bus, lambda: 0x71)

    def get(self, register):
        self.ioapic.mmio_write(0, 4, register)
        return self.ioapic.mmio_read(0x10, 4)

    def put(self, register, value):
        self.ioapic.mmio_write(0, 4, register)
        self.ioapic.mmio_write(0x10, 4, value)

    def route(self, low, dest=0, pin=PIN):
        self.put(0x10 + 2 * pin, low)
        self.put(0x11 + 2 * pin, dest << 24)

    def line(self, *levels, pin=PIN):
        for level in levels:
            self.ioapic.set_irq(pin, level)

    def begin(self, cpu=0):
        vector = self[cpu].pending_vector()
        if vector is not None:
            self[cpu].accept(vector)
        return vector

    def end(self, cpu=0):
        self[cpu].end_of_interrupt()


@pytest.fixture
def board():
    return Board()


def test_version_is_read_only_and_id_has_four_bits(board):
    assert board.get(1) == 0x170020
    board.put(1, 0)
    assert board.get(1) == 0x170020
    board.put(0, 0xFFFFFFFF)
    assert (board.get(0), board.get(2)) == (0x0F000000, 0x0F000000)
    board.put(2, 0)
    assert board.get(2) == 0x0F000000


def test_pins_start_masked_and_their_status_is_read_only(board):
    for pin in range(NR_PINS):
        assert (board.get(0x10 + 2 * pin), board.get(0x11 + 2 * pin)) == (MASKED, 0)
    board.put(0x10, 0xFFFFFFFF)
    board.put(0x11, 0xFFFFFFFF)
    assert (board.get(0x10), board.get(0x11)) == (0xFFFFAFFF, 0xFFFFFFFF)
    assert (board.get(0x40), board.get(0x0F)) == (0, 0)


def test_the_selector_has_eight_bits(board):
    board.ioapic.mmio_write(0, 4, 0x1234)
    assert board.ioapic.mmio_read(0, 4) == 0x34


def test_an_edge_interrupts_once(board):
    board.route(0x76 | EDGE)
    board.line(1, 0)
    assert (board.take(), board.take()) == (0x76, None)


def test_the_higher_of_two_vectors_goes_first(board):
    board.route(0x78, pin=14)
    board.route(0x66, pin=15)
    board.line(1, 0, pin=15)
    board.line(1, 0, pin=14)
    assert [board.take(), board.take()] == [0x78, 0x66]


def test_a_level_interrupts_until_it_is_down(board):
    board.route(0x77 | LEVEL)
    board.line(1)
    assert board.begin() == 0x77
    assert board.get(0x10 + 2 * PIN) == 0x77 | LEVEL | REMOTE_IRR
    board.end()
    assert board.begin() == 0x77
    board.line(0)
    board.end()
    assert (board.begin(), board.get(0x10 + 2 * PIN)) == (None, 0x77 | LEVEL)


def test_a_level_that_pulses_during_service_is_coalesced(board):
    board.route(0x98 | LEVEL)
    board.line(1)
    board.begin()
    board.line(0, 1, 0)
    board.end()
    assert board.begin() is None


def test_an_edge_on_a_masked_pin_is_lost(board):
    board.route(0x81 | MASKED)
    board.line(1, 0)
    board.route(0x81)
    assert board.take() is None
    board.line(1)
    assert board.take() == 0x81


def test_a_level_on_a_masked_pin_waits(board):
    board.route(0x82 | LEVEL | MASKED)
    board.line(1)
    assert board.take() is None
    board.route(0x82 | LEVEL)
    assert board.begin() == 0x82


def test_masking_in_the_handler_and_unmasking_later_interrupts_again(board):
    board.route(0x83 | LEVEL)
    board.line(1)
    assert board.begin() == 0x83
    board.route(0x83 | LEVEL | MASKED)
    board.end()
    assert board.begin() is None
    board.route(0x83 | LEVEL)
    assert board.begin() == 0x83


def test_tmr_follows_the_trigger_mode(board):
    for mode, levels in ((EDGE, (1, 0)), (LEVEL, (1,)), (LEVEL, (1,)), (EDGE, (1, 0))):
        board.route(0x79 | mode)
        board.line(*levels)
        assert bool(board[0].tmr >> 0x79 & 1) == bool(mode)
        board.begin()
        board.line(0)
        board.end()


def test_changing_the_destination_in_service_does_not_disturb_the_eoi():
    board = Board(2)
    board.route(0x84 | LEVEL)
    board.line(1)
    assert board.begin(0) == 0x84
    board.line(0)
    board.put(0x11 + 2 * PIN, 1 << 24)
    board.end(0)
    assert not board.get(0x10 + 2 * PIN) & REMOTE_IRR
    board.line(1)
    assert (board.begin(0), board.begin(1)) == (None, 0x84)


def test_switching_to_edge_clears_remote_irr(board):
    board.route(0x84 | LEVEL)
    board.line(1)
    board.route(0x84)
    assert board.get(0x10 + 2 * PIN) == 0x84


def test_logical_destination_reaches_all_it_names():
    board = Board(4)
    board.route(0x86 | LEVEL | 1 << 11, dest=0xD)
    board.line(1)
    assert [board.begin(cpu) for cpu in range(4)] == [0x86, None, 0x86, 0x86]


def test_lowest_priority_reaches_one():
    board = Board(4)
    board.route(0x86 | 1 << 8 | 1 << 11, dest=0xF)
    board.line(1)
    assert sorted(board.begin(cpu) or 0 for cpu in range(4)) == [0, 0, 0, 0x86]


def test_nmi_init_and_extint(board):
    board.route(4 << 8 | LEVEL)
    board.line(1, 0)
    assert board[0].take_nmi()
    assert not board.get(0x10 + 2 * PIN) & REMOTE_IRR
    board.route(7 << 8)
    board.line(1, 0)
    assert board.take() == 0x71
    board.route(5 << 8)
    board.line(1, 0)
    assert board[0].take_init()


def test_a_level_that_nobody_accepts_is_not_remembered_as_sent(board):
    board.route(0x77 | LEVEL, dest=9)
    board.line(1)
    assert not board.get(0x10 + 2 * PIN) & REMOTE_IRR


def test_the_eoi_register_ends_a_vector(board):
    board.route(0x77 | LEVEL)
    board.line(1)
    board.line(0)
    board.ioapic.mmio_write(0x40, 4, 0x77)
    assert not board.get(0x10 + 2 * PIN) & REMOTE_IRR


def test_the_window_takes_four_bytes_only(board):
    board.ioapic.mmio_write(0, 1, 1)
    assert (board.ioapic.mmio_read(0x10, 1), board.ioapic.mmio_read(0x10, 4)) == (0, 0x170020)


def test_tracing(board):
    lines = []
    board.route(0x98 | LEVEL)
    with attached(lambda point, args: lines.append(point.format(args)), [kvm_ioapic_set_irq]):
        board.line(1, 0, 1)
    assert lines == [
        "pin 14 dst 0 vec 152 (Fixed|physical|level)",
        "pin 14 dst 0 vec 152 (Fixed|physical|level) (coalesced)",
    ]


def test_state_round_trip(board):
    board.route(0x77 | LEVEL)
    board.line(1)
    board.line(1, pin=3)
    other = Board()
    other.ioapic.load(json.loads(json.dumps(board.ioapic.state())))
    assert other.ioapic.state() == board.ioapic.state()
    other.ioapic.end_of_interrupt(0x77)
    assert other.begin() == 0x77


def test_an_edge_pin_whose_line_is_up_does_not_fire_when_its_entry_is_written(board):
    board.line(1)
    board.route(0x76 | MASKED)
    board.route(0x76)
    assert board.begin() is None


def test_eoi_concerns_its_vector_only(board):
    board.route(0x77 | LEVEL)
    board.line(1)
    board.begin()
    board.line(0)
    board.ioapic.end_of_interrupt(0x76)
    assert board.get(0x10 + 2 * PIN) & REMOTE_IRR
    board.route(0x55 | LEVEL, pin=3)
    board.line(1, pin=3)
    board.ioapic.end_of_interrupt(0x77)
    assert board.get(0x16) & REMOTE_IRR
    assert not board.get(0x10 + 2 * PIN) & REMOTE_IRR


def test_an_unrelated_level_line_that_is_up_stays_quiet_at_eoi(board):
    board.route(0x77 | LEVEL | MASKED)
    board.line(1)
    board.ioapic.end_of_interrupt(0x77)
    assert board.begin() is None


def test_the_id_is_where_it_belongs(board):
    board.put(0, 0x05FFFFFF)
    assert board.get(0) == 0x05000000
