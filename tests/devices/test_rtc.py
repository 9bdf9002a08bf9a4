from __future__ import annotations

import json

import pytest

from shadowvm.devices.irq import IrqLine
from shadowvm.devices.rtc import Rtc
from tests.devices.fake import FakeClock

MS, SECOND = 10**6, 10**9
NOW = (0, 2, 4, 6, 7, 8, 9, 0x32)


class Board:
    def __init__(self):
        self.clock = FakeClock()
        self.edges = []
        self.irq = IrqLine([(lambda pin, level: self.edges.append(self.clock.now()) if level else None, 8)])
        self.rtc = Rtc(self.clock, self.irq)

    def get(self, register):
        self.rtc.port_write(0x70, 1, register)
        return self.rtc.port_read(0x71, 1)

    def put(self, register, value):
        self.rtc.port_write(0x70, 1, register)
        self.rtc.port_write(0x71, 1, value)

    def time(self):
        return bytes(self.get(each) for each in NOW).hex()


@pytest.fixture
def board():
    return Board()


def test_every_machine_is_switched_on_at_new_year_2026(board):
    assert board.time() == "0000000501012620"
    assert [board.get(each) for each in (0xA, 0xB, 0xC, 0xD)] == [0x26, 0x02, 0, 0x80]


def test_time_follows_virtual_time(board):
    board.clock.advance(3661 * SECOND - 1)
    assert board.time() == "0001010501012620"
    board.clock.advance(1)
    assert board.time() == "0101010501012620"


def test_a_running_clock_can_be_set(board):
    board.clock.advance(300 * MS)
    for register, value in zip(NOW, bytes.fromhex("5859230128022420"), strict=True):
        board.put(register, value)
    assert board.time() == "5859230428022420", "the day of the week follows from the date"
    board.clock.advance(1700 * MS)
    assert board.time() == "0000000529022420"


def test_set_freezes_the_registers_until_it_is_cleared(board):
    board.put(0xB, 0x82)
    board.put(0, 0x41)
    board.put(7, 0x15)
    board.clock.advance(10 * SECOND)
    assert (board.get(0), board.get(7)) == (0x41, 0x15)
    board.put(0xB, 0x02)
    board.clock.advance(2 * SECOND)
    assert (board.get(0), board.get(7)) == (0x43, 0x15)


def test_clearing_set_together_with_a_change_of_format_reads_the_new_format(board):
    board.put(0xB, 0x86)
    board.put(4, 17)
    board.put(0xB, 0x06)
    assert board.get(4) == 17
    board.put(0xB, 0x00)
    assert board.get(4) == 0x85


def test_the_divider_in_reset_holds_the_clock_and_restarts_half_a_second_before_an_update(board):
    board.put(0xA, 0x76)
    board.clock.advance(5 * SECOND)
    assert board.get(0) == 0
    board.put(0xA, 0x26)
    board.clock.advance(499 * MS)
    assert board.get(0) == 0
    board.clock.advance(MS)
    assert board.get(0) == 1


def test_uip_warns_before_each_update(board):
    board.clock.advance(SECOND - 244_001)
    assert board.get(0xA) == 0x26
    board.clock.advance(1)
    assert board.get(0xA) == 0xA6
    board.clock.advance(244_000)
    assert (board.get(0xA), board.get(0)) == (0x26, 1)


def test_periodic_interrupts_wait_for_register_c_to_be_read(board):
    board.put(0xB, 0x42)
    board.clock.advance(SECOND)
    assert len(board.edges) == 1
    board.edges.clear()
    for _ in range(1024):
        assert board.get(0xC) & 0xC0 == 0xC0 or not board.edges
        board.clock.advance(976_563)
    assert len(board.edges) == 1024


@pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(board, rate, hz):
    board.put(0xA, 0x20 | rate)
    board.put(0xB, 0x42)
    while board.clock.now() < SECOND:
        board.get(0xC)
        board.clock.advance_to(board.clock.next_deadline())
    assert len(board.edges) == hz


def test_update_interrupts_come_once_a_second(board):
    board.put(0xB, 0x12)
    board.clock.advance(SECOND - 1)
    assert board.edges == []
    for _ in range(3):
        board.clock.advance(SECOND)
        assert board.get(0xC) & ~0x40 == 0x90
    assert board.edges == [SECOND, 2 * SECOND, 3 * SECOND]


def test_the_alarm_interrupts_at_its_time(board):
    for register, value in ((1, 0x30), (3, 0x01), (5, 0xFF)):
        board.put(register, value)
    board.put(0xB, 0x22)
    board.clock.advance(200 * SECOND)
    assert board.edges == [90 * SECOND]
    assert board.get(0xC) == 0xF0


def test_flags_can_be_polled_without_interrupts(board):
    assert board.clock.next_deadline() is None
    board.clock.advance(2 * SECOND)
    assert board.get(0xC) == 0x50
    assert board.get(0xC) == 0
    assert board.edges == []


def test_enabling_an_interrupt_whose_flag_is_up_interrupts_at_once(board):
    board.clock.advance(SECOND)
    board.put(0xB, 0x12)
    assert board.irq.level == 1
    assert board.get(0xC) & 0x90 == 0x90
    assert board.irq.level == 0


def test_set_turns_update_interrupts_off(board):
    board.put(0xB, 0x92)
    assert board.get(0xB) == 0x82


def test_registers_c_and_d_are_read_only(board):
    board.put(0xC, 0xFF)
    board.put(0xD, 0)
    assert (board.get(0xC), board.get(0xD)) == (0, 0x80)


def test_nvram_keeps_bytes_and_the_index_port_has_the_nmi_mask(board):
    board.put(0x0F, 0x0A)
    assert board.get(0x8F) == 0x0A
    assert board.rtc.nmi_masked
    assert board.get(0x0F) == 0x0A
    assert not board.rtc.nmi_masked
    assert board.rtc.port_read(0x70, 1) == 0xFF


def test_memory_sizes_and_cpus_where_a_bios_looks(board):
    board.rtc.set_machine(64 << 20, 0, 4)
    assert [board.get(each) for each in (0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35)] == [
        *(0x80, 0x02, 0x00, 0xFC, 0x00, 0xFC, 0x00, 0x03)
    ]
    assert board.get(0x5F) == 3
    board.rtc.set_machine(3 << 30, 5 << 30, 1)
    assert [board.get(each) for each in (0x17, 0x18, 0x34, 0x35)] == [0xFF, 0xFF, 0x00, 0xBF]
    assert [board.get(each) for each in (0x5B, 0x5C, 0x5D)] == [0, 0x40, 1]


def test_state_round_trip(board):
    board.put(0x42, 0x77)
    board.put(0xB, 0x12)
    board.put(4, 0x20)
    board.clock.advance(1500 * MS)
    board.get(0xC)
    saved = json.loads(json.dumps([board.clock.state(), board.rtc.state()]))
    other = Board()
    other.clock.retired = board.clock.retired
    other.clock.load(saved[0])
    other.rtc.load(saved[1])
    assert other.rtc.state() == board.rtc.state()
    for each in (board, other):
        each.edges.clear()
        each.clock.advance(10 * SECOND)
    assert other.edges == board.edges == [2 * SECOND]
    assert other.time() == board.time()


def test_freezing_keeps_the_whole_date(board):
    board.clock.advance(3 * 86_400 * SECOND + 7384 * SECOND)
    before = board.time()
    assert before == "0403020104012620"
    board.put(0xB, 0x82)
    assert board.time() == before
    board.clock.advance(SECOND)
    board.put(0xB, 0x02)
    assert board.time() == before


@pytest.mark.parametrize("control", [0x20, 0x66, 0x76])
def test_without_a_rate_or_with_the_divider_in_reset_nothing_is_periodic(board, control):
    board.put(0xA, control)
    board.put(0xB, 0x42)
    assert board.clock.next_deadline() is None
    board.clock.advance(5 * SECOND)
    assert board.get(0xC) & 0x40 == 0


def test_memory_sizes_beyond_what_fits(board):
    board.rtc.set_machine(8 << 20, 0, 1)
    assert [board.get(each) for each in (0x17, 0x18, 0x34, 0x35)] == [0x00, 0x1C, 0, 0]
    board.rtc.set_machine(1 << 20, 0, 1)
    assert [board.get(each) for each in (0x15, 0x16, 0x17, 0x18)] == [0x80, 2, 0, 0]
    board.rtc.set_machine(4 << 30, 1 << 41, 1)
    assert [board.get(each) for each in (0x34, 0x35, 0x5B, 0x5C, 0x5D)] == [0x00, 0xFF, 0xFF, 0xFF, 0xFF]
