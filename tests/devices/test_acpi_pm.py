from __future__ import annotations

import json

import pytest

from shadowvm.devices.acpi_pm import PM_TIMER_HZ, AcpiPm
from tests.devices.fake import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


def test_the_timer_counts_and_wraps_at_24_bits(clock):
    pm = AcpiPm(clock, list)
    assert pm.port_read(0x608, 4) == 0
    clock.advance(10**9)
    assert pm.port_read(0x608, 4) == PM_TIMER_HZ
    assert pm.port_read(0x60A, 1) == PM_TIMER_HZ >> 16
    clock.advance(4 * 10**9)
    assert pm.port_read(0x608, 4) == 5 * PM_TIMER_HZ - (1 << 24)


@pytest.mark.parametrize(("value", "off"), [(0x2000, 1), (0x2001, 1), (0x0000, 0), (0x3400, 0)])
def test_sleeping_in_s5_switches_off(clock, value, off):
    calls = []
    AcpiPm(clock, lambda: calls.append(1)).port_write(0x604, 2, value)
    assert len(calls) == off


def test_enable_and_control_keep_their_bits(clock):
    pm = AcpiPm(clock, list)
    pm.port_write(0x602, 2, 0x120)
    pm.port_write(0x604, 2, 0x3400)
    pm.port_write(0x600, 2, 0xFFFF)
    assert [pm.port_read(port, 2) for port in (0x600, 0x602, 0x604)] == [0, 0x120, 0x1401]
    pm.port_write(0x600, 4, 0x04000000)
    assert pm.port_read(0x600, 4) == 0x04000000


def test_state_round_trip(clock):
    pm, other = AcpiPm(clock, list), AcpiPm(clock, list)
    pm.port_write(0x602, 2, 0x120)
    pm.port_write(0x604, 2, 0x0400)
    other.load(json.loads(json.dumps(pm.state())))
    assert other.state() == pm.state()
    assert other.port_read(0x604, 2) == 0x401
