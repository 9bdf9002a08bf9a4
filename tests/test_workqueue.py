from __future__ import annotations

from functools import partial

from shadowvm.sync import Scheduler
from shadowvm.workqueue import Workqueue


def test_work_is_done_later_in_order_and_its_workers_are_reused() -> None:
    sched = Scheduler()
    queue = Workqueue(sched, "test")
    done: list[int] = []

    def user() -> None:
        for i in range(40):
            queue.queue_work(partial(done.append, i))
            assert len(done) == i
            sched.preempt()
        queue.flush()

    sched.spawn("user", user)
    sched.run()
    assert done == list(range(40))
    assert [task.name for task in sched.tasks] == ["user", "kworker/u:1-test"]


def test_work_that_sleeps_holds_up_neither_other_work_nor_the_flush_of_less() -> None:
    sched = Scheduler()
    queue = Workqueue(sched, "test")
    done: list[str] = []

    def sleeper() -> None:
        sched.wait("a page")
        done.append("slept")

    def user() -> None:
        queue.queue_work(sleeper)
        queue.queue_work(partial(done.append, "quick"))
        sched.preempt()
        assert done == ["quick"]
        sched.wake(sched.tasks[1])
        queue.flush()
        done.append("flushed")

    sched.spawn("user", user)
    sched.run()
    assert done == ["quick", "slept", "flushed"]


def test_flush_of_nothing_does_not_wait() -> None:
    sched = Scheduler()
    done: list[int] = []

    def user() -> None:
        Workqueue(sched, "test").flush()
        done.append(1)

    sched.spawn("user", user)
    sched.run()
    assert done == [1]
