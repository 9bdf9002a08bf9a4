from __future__ import annotations

import json

import pytest

from shadowvm.devices.pit_channel import PitChannel


def programmed(mode, count=None, *, rw=3, bcd=False, gate=True, now=0):
    channel = PitChannel(gate=gate)
    channel.control(now, rw << 4 | mode << 1 | bcd)
    if count is not None:
        set_count(channel, now, count)
    return channel


def set_count(channel, now, count):
    if channel.rw & 1:
        channel.write(now, count & 0xFF)
    if channel.rw & 2:
        channel.write(now, count >> 8)


def wave(channel, first, ticks):
    return "".join(str(channel.output(now)) for now in range(first, first + ticks))


def count_of(channel, now):
    channel.control(now, 0)
    value = channel.read(now)
    return value | channel.read(now) << 8 if channel.rw == 3 else value


# Waveforms of the data sheet; tick 0 is the write, the count is loaded at tick 1.
@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [
        (0, 4, "0000011111111"),
        (2, 3, "1110110110110"),
        (2, 4, "1111011101110"),
        (3, 4, "1110011001100"),
        (3, 5, "1111001110011"),
        (4, 3, "1111011111111"),
    ],
)
def test_waveforms_of_modes_that_the_write_starts(mode, count, expected):
    assert wave(programmed(mode, count), 0, len(expected)) == expected


@pytest.mark.parametrize(("mode", "expected"), [(1, "1" * 10 + "1000111"), (5, "1" * 10 + "1111011")])
def test_waveforms_of_modes_that_the_gate_starts(mode, expected):
    channel = programmed(mode, 3, gate=False)
    before = wave(channel, 0, 10)
    channel.set_gate(10, True)
    assert before + wave(channel, 10, 7) == expected


def test_a_one_shot_can_be_retriggered_with_a_new_count():
    channel = programmed(1, 3, gate=False)
    channel.set_gate(0, True)
    channel.set_gate(2, False)
    set_count(channel, 2, 5)
    assert wave(channel, 2, 3) == "001", "the new count waits for a trigger"
    channel.set_gate(10, True)
    assert wave(channel, 10, 8) == "10000011"


def test_outputs_change_exactly_where_next_change_says():
    for mode, count in ((0, 7), (2, 2), (2, 5), (3, 2), (3, 7), (4, 3), (5, 3), (1, 3)):
        channel = programmed(mode, count, gate=mode not in (1, 5))
        channel.set_gate(0, True)
        seen, now = [channel.output(0)], 0
        while len(seen) < 60:
            change = channel.next_change(now)
            until = 60 - len(seen) if change is None else min(change - now, 60 - len(seen))
            seen += [channel.output(now)] * (until - 1) + [channel.output(now + until)]
            now += until
        assert "".join(map(str, seen)) == wave(channel, 0, 60), (mode, count)


def test_a_count_of_one_in_a_periodic_mode_does_not_oscillate():
    channel = programmed(2, 1)
    assert (wave(channel, 0, 5), channel.next_change(3)) == ("11111", None)


def test_a_new_count_of_the_rate_generator_waits_for_the_end_of_the_period():
    channel = programmed(2, 6)
    set_count(channel, 3, 2)
    assert wave(channel, 1, 12) == "111110" + "101010"


def test_a_new_count_of_the_square_wave_waits_for_the_end_of_the_half_cycle():
    channel = programmed(3, 8)
    set_count(channel, 2, 4)
    assert wave(channel, 1, 10) == "1111" + "00" + "1100"
    channel = programmed(3, 8)
    set_count(channel, 6, 4)
    assert wave(channel, 1, 12) == "11110000" + "1100"


def test_of_two_new_counts_in_one_period_the_last_counts():
    channel = programmed(2, 6)
    set_count(channel, 2, 9)
    set_count(channel, 3, 3)
    assert wave(channel, 1, 12) == "111110" + "110110"


def test_a_count_takes_over_though_nobody_looked():
    channel = programmed(2, 6)
    set_count(channel, 3, 10)
    assert count_of(channel, 8) == 9, "the second of ten"
    set_count(channel, 8, 3)
    assert wave(channel, 7, 14) == "1111111110" + "1101"
    channel = programmed(2, 6)
    set_count(channel, 3, 10)
    set_count(channel, 9, 3)
    assert wave(channel, 7, 14) == "1111111110" + "1101"


def test_a_count_written_while_the_gate_is_low_waits_for_the_gate():
    channel = programmed(3, 4)
    channel.set_gate(4, False)
    set_count(channel, 5, 6)
    assert wave(channel, 5, 10) == "1" * 10
    assert count_of(channel, 15) == count_of(channel, 4)
    channel.set_gate(20, True)
    assert wave(channel, 20, 13) == "1" + "111000" * 2
    set_count(channel, 22, 2)
    channel.set_gate(23, False)
    channel.set_gate(30, True)
    assert wave(channel, 30, 6) == "110101"


def test_writing_mode_0_again_restarts_it_and_its_first_byte_stops_it():
    channel = programmed(0, 4)
    channel.write(3, 2)
    assert wave(channel, 3, 6) == "000000"
    channel.write(9, 0)
    assert wave(channel, 9, 5) == "00011"


def test_the_gate_pauses_mode_0():
    channel = programmed(0, 10)
    channel.set_gate(5, False)
    assert count_of(channel, 50) == 6
    assert channel.next_change(50) is None
    channel.set_gate(100, True)
    assert count_of(channel, 101) == 6
    assert wave(channel, 101, 8) == "00000011"


def test_the_gate_holds_the_square_wave_high_and_restarts_it():
    channel = programmed(3, 4)
    channel.set_gate(4, False)
    assert wave(channel, 4, 6) == "111111"
    channel.set_gate(20, True)
    assert wave(channel, 20, 9) == "111001100"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0, [5, 4, 3, 2, 1, 0, 65535]), (2, [5, 4, 3, 2, 1, 5, 4]), (3, [4, 2, 0, 4, 2, 4, 2])],
)
def test_counting(mode, expected):
    channel = programmed(mode, 5)
    assert [count_of(channel, now) for now in range(1, 8)] == expected


def test_zero_is_the_largest_count():
    assert count_of(programmed(0, 0), 2) == 0xFFFF
    assert count_of(programmed(0, 0, bcd=True), 2) == 0x9999


def test_bcd_counts_in_decimal():
    channel = programmed(0, 0x1000, bcd=True)
    assert [count_of(channel, now) for now in (1, 2, 901, 1001, 1002)] == [0x1000, 0x999, 0x100, 0, 0x9999]


def test_reading_while_it_counts_takes_low_and_high_byte_in_turn():
    channel = programmed(2, 0x1234)
    assert [channel.read(1), channel.read(1), channel.read(1)] == [0x34, 0x12, 0x34]
    assert [programmed(2, 0x77, rw=1).read(1) for _ in range(2)] == [0x77, 0x77]
    assert programmed(2, 0x1200, rw=2).read(1) == 0x12


def test_a_latch_holds_the_count_and_a_second_one_is_ignored():
    channel = programmed(2, 0x1234)
    channel.control(1, 0)
    channel.control(9, 0)
    assert [channel.read(20), channel.read(30)] == [0x34, 0x12]
    assert channel.read(2) == 0x33


def test_status_shows_output_null_count_and_mode():
    channel = programmed(3, now=5)
    channel.read_back(6, count=False, status=True)
    assert channel.read(6) == 0x80 | 0x40 | 0x36
    set_count(channel, 6, 4)
    channel.read_back(10, count=True, status=True)
    assert [channel.read(10), channel.read(10), channel.read(10)] == [0x36, 2, 0]


def test_modes_6_and_7_are_2_and_3():
    assert [programmed(mode).mode for mode in (6, 7)] == [2, 3]


def test_state_round_trip():
    channel = programmed(3, 9)
    set_count(channel, 3, 5)
    channel.control(3, 0)
    channel.write(4, 7)
    other = PitChannel(gate=False)
    other.load(json.loads(json.dumps(channel.state())))
    assert other.state() == channel.state()
    assert wave(other, 5, 40) == wave(channel, 5, 40)
