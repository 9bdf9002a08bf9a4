from __future__ import annotations

import pytest

from shadowvm.devices.clock import VirtualClock, timer_state


class Source:
    """Instructions retired, moved by hand."""

    def __init__(self):
        self.retired = 0

    def __call__(self):
        return self.retired


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def clock(source):
    return VirtualClock(source)


def test_timers_fire_in_order_of_deadline_then_of_arming(clock, source):
    fired = []
    for name, deadline in (("b", 20), ("a", 10), ("c", 20), ("late", 21)):
        clock.at(deadline, lambda name=name: fired.append(name))
    source.retired = 20
    assert clock.run_due() == 3
    assert fired == ["a", "b", "c"]
    assert clock.next_deadline() == 21


def test_nothing_fires_before_its_deadline(clock, source):
    clock.at(10, lambda: pytest.fail("too early"))
    source.retired = 9
    assert clock.run_due() == 0


def test_a_cancelled_timer_neither_fires_nor_counts_as_deadline(clock, source):
    timer = clock.at(5, lambda: pytest.fail("cancelled"))
    clock.at(8, lambda: None)
    timer.cancel()
    assert clock.next_deadline() == 8
    source.retired = 100
    assert clock.run_due() == 1
    assert clock.next_deadline() is None


def test_a_callback_may_arm_a_timer_that_is_already_due(clock, source):
    fired = []
    clock.at(1, lambda: clock.at(2, lambda: fired.append(clock.now())))
    source.retired = 3
    clock.run_due()
    assert fired == [3]


def test_skipping_moves_time_to_the_next_deadline_and_not_the_instruction_count(clock, source):
    source.retired = 7
    clock.at(1000, lambda: None)
    assert clock.skip_to_next()
    assert (clock.now(), source.retired) == (1000, 7)
    source.retired = 17
    assert clock.now() == 1010
    clock.run_due()
    assert not clock.skip_to_next()


def test_skipping_never_moves_time_back(clock, source):
    clock.at(5, lambda: None)
    source.retired = 9
    assert clock.skip_to_next()
    assert clock.now() == 9


def test_on_earlier_is_called_only_when_the_next_deadline_moves_forward(clock):
    calls = []
    clock.on_earlier = lambda: calls.append(clock.next_deadline())
    for deadline in (50, 60, 50, 40):
        clock.at(deadline, lambda: None)
    assert calls == [50, 40]


def test_a_loaded_clock_fires_the_same_timers_in_the_same_order(clock, source):
    fired = []
    timers = {name: clock.at(10, lambda name=name: fired.append(name)) for name in "abc"}
    timers["b"].cancel()
    saved = clock.state(), {name: timer_state(timer) for name, timer in timers.items()}

    other = VirtualClock(source)
    other.load(saved[0])
    for name in "cba":
        other.rearm(saved[1][name], lambda name=name: fired.append(name.upper()))
    other.at(10, lambda: fired.append("new"))
    source.retired = 10
    other.run_due()
    assert fired == ["A", "C", "new"]


def test_loading_drops_the_timers_of_before(clock, source):
    saved = clock.state()
    clock.at(1, lambda: pytest.fail("dropped"))
    clock.load(saved)
    source.retired = 2
    assert clock.run_due() == 0
