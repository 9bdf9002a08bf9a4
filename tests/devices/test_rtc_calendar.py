from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from shadowvm.devices.rtc_calendar import (
    CENTURY,
    DAY_OF_MONTH,
    HOURS,
    MONTH,
    SECONDS,
    TIME_REGISTERS,
    YEAR,
    Date,
    RtcFormat,
    date_from_days,
    days_from_date,
    next_alarm,
    read_time,
    with_register,
)

BCD = RtcFormat(binary=False, hours_24=True)
BINARY = RtcFormat(binary=True, hours_24=True)
UNIX = datetime(1970, 1, 1, tzinfo=timezone.utc)


def at(*args):
    return int((datetime(*args, tzinfo=timezone.utc) - UNIX).total_seconds())


def test_days_agree_with_the_library_over_centuries():
    day = datetime(1899, 12, 1, tzinfo=timezone.utc)
    while day.year < 2110:
        days = (day - UNIX).days
        assert days_from_date(Date(day.year, day.month, day.day)) == days
        assert date_from_days(days) == (day.year, day.month, day.day)
        day += timedelta(days=13)


def test_registers_in_bcd_and_binary():
    when = at(2026, 12, 31, 23, 59, 58)
    assert [read_time(when, each, BCD) for each in TIME_REGISTERS] == [
        *(0x58, 0x59, 0x23, 0x05, 0x31, 0x12, 0x26, 0x20)
    ]
    assert [read_time(when, each, BINARY) for each in TIME_REGISTERS] == [58, 59, 23, 5, 31, 12, 26, 20]


@pytest.mark.parametrize(("hour", "register"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_twelve_hour_clocks(hour, register):
    layout = RtcFormat(binary=False, hours_24=False)
    assert layout.encode_hour(hour) == register
    assert layout.decode_hour(register) == hour


def test_setting_registers_one_by_one_gives_the_date():
    when = at(1999, 1, 31, 5, 6, 7)
    for register, value in (
        (DAY_OF_MONTH, 0x01),
        (MONTH, 0x02),
        (YEAR, 0x24),
        (CENTURY, 0x20),
        (DAY_OF_MONTH, 0x29),
    ):
        when = with_register(when, register, value, BCD)
    assert when == at(2024, 2, 29, 5, 6, 7)
    assert with_register(with_register(when, HOURS, 0x23, BCD), SECONDS, 0, BCD) == at(2024, 2, 29, 23, 6, 0)


def test_nonsense_gives_some_date():
    for register in TIME_REGISTERS:
        for value in range(256):
            for layout in (BCD, BINARY):
                when = with_register(at(2026, 1, 1), register, value, layout)
                assert all(0 <= read_time(when, each, BCD) < 1 << 12 for each in TIME_REGISTERS)


@pytest.mark.parametrize(
    ("alarm", "expected"),
    [
        ((0x30, 0x15, 0x10), (2026, 1, 1, 10, 15, 30)),
        ((0x30, 0x15, 0x09), (2026, 1, 2, 9, 15, 30)),
        ((0x30, 0x15, 0xFF), (2026, 1, 1, 10, 15, 30)),
        ((0x00, 0x00, 0xC0), (2026, 1, 1, 11, 0, 0)),
        ((0xFF, 0xFF, 0xFF), (2026, 1, 1, 10, 0, 1)),
        ((0x05, 0xFF, 0xFF), (2026, 1, 1, 10, 0, 5)),
        ((0x00, 0x00, 0x10), (2026, 1, 2, 10, 0, 0)),
    ],
)
def test_the_next_alarm(alarm, expected):
    assert next_alarm(at(2026, 1, 1, 10, 0, 0), alarm, BCD) == at(*expected)


def test_an_impossible_alarm_never_comes():
    assert next_alarm(0, (0x99, 0xFF, 0xFF), BCD) is None
