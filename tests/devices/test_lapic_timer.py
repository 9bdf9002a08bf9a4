from __future__ import annotations

import json

import pytest

from shadowvm.devices.lapic_timer import LapicTimer
from tests.devices.apics import DEADLINE_MSR, LVTT, TDCR, TMCCT, TMICT, Apics
from tests.devices.fake import FakeClock

VECTOR = 0xEE
ONE_SHOT, PERIODIC, DEADLINE = 0, 1 << 17, 2 << 17


@pytest.fixture
def apics():
    apics = Apics()
    apics[0].write(TDCR, 0xB)
    apics[0].write(LVTT, VECTOR)
    return apics


def mode(apics, bits):
    apics[0].write(LVTT, bits | VECTOR)


def test_one_shot_expires_once_after_its_count(apics):
    apics[0].write(TMICT, 0x10000)
    apics.clock.advance(0xFFFF)
    assert (apics.take(), apics[0].read(TMCCT)) == (None, 1)
    apics.clock.advance(1)
    assert (apics.take(), apics[0].read(TMCCT)) == (VECTOR, 0)
    apics.clock.advance(10**9)
    assert apics.take() is None


@pytest.mark.parametrize(("divide", "divider"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_divider(apics, divide, divider):
    apics[0].write(TDCR, divide)
    apics[0].write(TMICT, 100)
    apics.clock.advance(40 * divider - 1)
    assert apics[0].read(TMCCT) == 61
    apics.clock.advance(1)
    assert apics[0].read(TMCCT) == 60
    apics.clock.advance(60 * divider)
    assert apics.take() == VECTOR


def test_a_new_divider_applies_to_what_is_left(apics):
    apics[0].write(TMICT, 1000)
    apics.clock.advance(400)
    apics[0].write(TDCR, 0)
    assert apics[0].read(TMCCT) == 600
    apics.clock.advance(1199)
    assert apics.take() is None
    apics.clock.advance(1)
    assert apics.take() == VECTOR


def test_periodic_comes_again_without_drift(apics):
    mode(apics, PERIODIC)
    apics[0].write(TMICT, 1000)
    for _ in range(5):
        apics.clock.advance(999)
        assert apics.take() is None
        apics.clock.advance(1)
        assert apics.take() == VECTOR
    apics.clock.jump(3500)
    assert (apics.take(), apics.take()) == (VECTOR, None), "late periods are one interrupt"
    assert apics[0].read(TMCCT) == 500


def test_zero_stops_the_timer(apics):
    apics[0].write(TMICT, 1000)
    apics[0].write(TMICT, 0)
    assert apics[0].read(TMCCT) == 0
    assert apics.clock.next_deadline() is None


def test_a_masked_timer_runs_without_interrupting(apics):
    apics[0].write(LVTT, 0x10000 | VECTOR)
    apics[0].write(TMICT, 1000)
    apics.clock.advance(600)
    assert apics[0].read(TMCCT) == 400
    apics.clock.advance(600)
    assert apics.take() is None


def test_changing_between_one_shot_and_periodic_leaves_the_count_alone(apics):
    apics[0].write(TMICT, 1000)
    apics.clock.advance(600)
    mode(apics, PERIODIC)
    assert (apics[0].read(TMCCT), apics[0].read(TMICT)) == (400, 1000)
    apics.clock.advance(500)
    assert apics[0].read(TMCCT) == 900, "it wrapped"
    mode(apics, ONE_SHOT)
    assert apics[0].read(TMCCT) == 900
    apics.clock.advance(900)
    assert apics[0].read(TMCCT) == 0
    mode(apics, PERIODIC)
    apics.clock.advance(10**6)
    assert apics[0].read(TMCCT) == 0, "it stays at zero"


def test_tsc_deadline_expires_once_and_reads_zero_then(apics):
    lapic = apics[0]
    mode(apics, DEADLINE)
    apics.clock.advance(50)
    assert lapic.write_msr(DEADLINE_MSR, 150)
    assert lapic.read_msr(DEADLINE_MSR) == 150
    apics.clock.advance(99)
    assert apics.take() is None
    apics.clock.advance(1)
    assert (apics.take(), lapic.read_msr(DEADLINE_MSR)) == (VECTOR, 0)


def test_a_tsc_deadline_in_the_past_expires_at_once(apics):
    mode(apics, DEADLINE)
    apics.clock.advance(50)
    apics[0].write_msr(DEADLINE_MSR, 50)
    assert (apics.take(), apics[0].read_msr(DEADLINE_MSR)) == (VECTOR, 0)


def test_deadline_and_count_belong_to_their_modes(apics):
    apics[0].write_msr(DEADLINE_MSR, 100)
    assert apics[0].read_msr(DEADLINE_MSR) == 0
    mode(apics, DEADLINE)
    apics[0].write(TMICT, 100)
    assert apics.clock.next_deadline() is None
    apics[0].write_msr(DEADLINE_MSR, 100)
    mode(apics, ONE_SHOT)
    assert apics.clock.next_deadline() is None
    mode(apics, DEADLINE)
    assert apics[0].read_msr(DEADLINE_MSR) == 0


def test_writing_zero_disarms_the_deadline(apics):
    mode(apics, DEADLINE)
    apics[0].write_msr(DEADLINE_MSR, 100)
    apics[0].write_msr(DEADLINE_MSR, 0)
    apics.clock.advance(1000)
    assert apics.take() is None


def test_the_deadline_follows_the_counter_that_the_guest_moved(apics):
    mode(apics, DEADLINE)
    apics.clock.advance(1000)
    apics[0].timer.set_tsc_offset(-1000)
    assert apics[0].timer.tsc == 0
    apics[0].write_msr(DEADLINE_MSR, 100)
    apics[0].timer.set_tsc_offset(-950)
    apics.clock.advance(49)
    assert apics.take() is None
    apics.clock.advance(1)
    assert apics.take() == VECTOR


def test_without_the_feature_there_is_no_deadline_mode():
    apics = Apics(tsc_deadline=False)
    mode(apics, DEADLINE)
    assert apics[0].read(LVTT) == VECTOR
    assert apics[0].read_msr(DEADLINE_MSR) is None
    assert not apics[0].write_msr(DEADLINE_MSR, 1)


@pytest.mark.parametrize("bits", [ONE_SHOT, PERIODIC])
def test_state_round_trip(bits):
    timers = []
    for _ in range(2):
        clock, fired = FakeClock(), []
        timers.append((clock, LapicTimer(clock, lambda clock=clock, fired=fired: fired.append(clock.now())), fired))
    (clock, timer, fired), (other_clock, other, other_fired) = timers
    timer.set_mode(bits >> 17)
    timer.set_initial(700)
    clock.advance(300)
    saved = json.loads(json.dumps([clock.state(), timer.state()]))
    other_clock.retired = clock.retired
    other_clock.load(saved[0])
    other.load(saved[1])
    assert other.state() == timer.state()
    clock.advance(5000)
    other_clock.advance(5000)
    assert other_fired == fired != []
