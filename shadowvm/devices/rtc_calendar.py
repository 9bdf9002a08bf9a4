"""Dates in the registers of an MC146818: BCD or binary, 12 or 24 hours. Time is seconds since 1970-01-01 UTC.

The algorithm of days is the proleptic Gregorian calendar over years that begin in March. Registers that the guest
fills with nonsense (month 0, day 40) give some date, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
CENTURY, CENTURY_PS2 = 0x32, 0x37
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY)
ALARM_ANY = 0xC0
"""An alarm byte with both high bits set matches always."""

_DAY = 86_400
_PM = 0x80


class RtcFormat(NamedTuple):
    """How register B says that numbers are kept."""

    binary: bool
    hours_24: bool

    def encode(self, number: int) -> int:
        """A number of two digits as a register."""
        return number if self.binary else number // 10 << 4 | number % 10

    def decode(self, register: int) -> int:
        """A register as a number."""
        return register if self.binary else (register >> 4) * 10 + (register & 15)

    def encode_hour(self, hour: int) -> int:
        """An hour from 0 to 23 as a register: 12-hour clocks have bit 7 in the afternoon."""
        if self.hours_24:
            return self.encode(hour)
        return self.encode(hour % 12 or 12) | (_PM if hour >= 12 else 0)

    def decode_hour(self, register: int) -> int:
        """The inverse."""
        if self.hours_24:
            return self.decode(register)
        return self.decode(register & ~_PM) % 12 + (12 if register & _PM else 0)


class Date(NamedTuple):
    """A civil date; month and day count from 1."""

    year: int
    month: int
    day: int


def days_from_date(date: Date) -> int:
    """Days since 1970-01-01; a day past the month's end runs on into the next."""
    year, month = date.year - (date.month <= 2), (date.month + 9) % 12
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * month + 2) // 5 + date.day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def date_from_days(days: int) -> Date:
    """The inverse."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    year = year_of_era + era * 400 + (month >= 10)
    return Date(year, month + 3 if month < 10 else month - 9, day_of_year - (153 * month + 2) // 5 + 1)


def read_time(seconds: int, register: int, layout: RtcFormat) -> int:
    """What a time register holds at `seconds`."""
    days, second = divmod(seconds, _DAY)
    if register == HOURS:
        return layout.encode_hour(second // 3600)
    date = date_from_days(days)
    number = {
        SECONDS: second % 60,
        MINUTES: second // 60 % 60,
        DAY_OF_WEEK: (days + 4) % 7 + 1,
        DAY_OF_MONTH: date.day,
        MONTH: date.month,
        YEAR: date.year % 100,
        CENTURY: date.year // 100,
    }[register]
    return layout.encode(number)


def with_register(seconds: int, register: int, value: int, layout: RtcFormat) -> int:
    """`seconds` after the guest has set one register. The day of the week follows from the date."""
    days, second = divmod(seconds, _DAY)
    number = layout.decode_hour(value) if register == HOURS else layout.decode(value)
    unit = {SECONDS: 1, MINUTES: 60, HOURS: 3600}.get(register)
    if unit is not None:
        modulus = 24 if register == HOURS else 60
        return seconds + (number - second // unit % modulus) * unit
    date = date_from_days(days)
    if register == DAY_OF_MONTH:
        date = date._replace(day=number)
    elif register == MONTH:
        date = date._replace(month=min(max(number, 1), 12))
    elif register == YEAR:
        date = date._replace(year=date.year // 100 * 100 + number)
    elif register == CENTURY:
        date = date._replace(year=number * 100 + date.year % 100)
    return days_from_date(date) * _DAY + second


def next_alarm(after: int, alarm: Sequence[int], layout: RtcFormat) -> int | None:
    """The first second later than `after` that the alarm bytes (second, minute, hour) match, None for never."""
    second, minute, hour = alarm
    wanted = (
        None if hour >= ALARM_ANY else layout.decode_hour(hour),
        None if minute >= ALARM_ANY else layout.decode(minute),
        None if second >= ALARM_ANY else layout.decode(second),
    )
    time, limit = after + 1, after + 1 + _DAY
    while time < limit:
        if wanted[0] not in (None, time // 3600 % 24):
            time += 3600 - time % 3600
        elif wanted[1] not in (None, time // 60 % 60):
            time += 60 - time % 60
        elif wanted[2] not in (None, time % 60):
            time += 1
        else:
            return time
    return None
