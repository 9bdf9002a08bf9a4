"""What is handed to call_rcu() waits for the readers of that moment, and for no others."""

from __future__ import annotations

import pytest

from shadowvm.errors import ModelBug
from shadowvm.rcu import Rcu
from shadowvm.sync import Scheduler


def test_without_readers_nothing_waits() -> None:
    rcu, done = Rcu(Scheduler()), []
    rcu.call_rcu(lambda: done.append("freed"))
    assert done == ["freed"]


def test_a_reader_is_waited_for_even_if_it_is_the_caller() -> None:
    rcu, done = Rcu(Scheduler()), []
    rcu.read_lock()
    rcu.call_rcu(lambda: done.append("freed"))
    assert not done
    rcu.read_unlock()
    assert done == ["freed"]


def test_readers_that_come_later_are_not_waited_for() -> None:
    sched = Scheduler()
    rcu, done = Rcu(sched), []

    def early() -> None:
        rcu.read_lock()
        sched.preempt()
        done.append("early passes")
        rcu.read_unlock()

    def freer() -> None:
        rcu.call_rcu(lambda: done.append("freed"))
        sched.preempt()

    def late() -> None:
        rcu.read_lock()
        sched.preempt()
        sched.preempt()
        done.append("late passes")
        rcu.read_unlock()

    for task in (early, freer, late):
        sched.spawn(task.__name__, task)
    sched.run()
    assert done == ["early passes", "freed", "late passes"]


def test_callbacks_run_in_the_order_in_which_they_were_given() -> None:
    rcu, done = Rcu(Scheduler()), []
    rcu.read_lock()
    for number in range(3):
        rcu.call_rcu(lambda number=number: done.append(number))
    rcu.read_unlock()
    assert done == [0, 1, 2]


def test_sections_do_not_nest() -> None:
    rcu = Rcu(Scheduler())
    rcu.read_lock()
    with pytest.raises(ModelBug, match="reader already"):
        rcu.read_lock()
