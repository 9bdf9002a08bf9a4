"""Tasks run in the order in which they wake; locks exclude, and Lockdep sees what must not be."""

from __future__ import annotations

import pytest

from shadowvm.errors import InvariantViolation, ModelBug
from shadowvm.events import might_sleep
from shadowvm.sync import Lock, Lockdep, LockRank, RandomPreemption, RwLock, RwSemaphore, Scheduler


def test_tasks_run_in_the_order_in_which_they_were_made() -> None:
    sched, order = Scheduler(), []
    for name in "abc":
        sched.spawn(name, lambda name=name: order.append(name))
    sched.run()
    assert order == ["a", "b", "c"]


def test_a_task_that_gives_way_goes_to_the_end_of_the_queue() -> None:
    sched, order = Scheduler(), []

    def work(name: str) -> None:
        order.append(name)
        sched.preempt()
        order.append(name)

    for name in "abc":
        sched.spawn(name, lambda name=name: work(name))
    sched.run()
    assert "".join(order) == "abcabc"


def test_waiting_tasks_run_when_they_are_woken_and_only_once() -> None:
    sched, order = Scheduler(), []

    def sleeper() -> None:
        sched.wait("bell")
        order.append("awake")

    task = sched.spawn("sleeper", sleeper)

    def waker() -> None:
        sched.wake(task)
        sched.wake(task)
        order.append("rang")

    sched.spawn("waker", waker)
    sched.run()
    assert order == ["rang", "awake"]


def test_a_daemon_does_not_keep_a_run_alive_but_drains() -> None:
    sched, order = Scheduler(), []

    def daemon() -> None:
        while True:
            order.append("daemon")
            sched.wait("work")

    task = sched.spawn("daemon", daemon, daemon=True)
    sched.spawn("main", lambda: sched.wake(task))
    sched.run()
    assert order == []
    sched.run(drain=True)
    assert order == ["daemon"]


def test_tasks_that_wait_for_each_other_are_a_deadlock() -> None:
    sched = Scheduler()
    sched.spawn("one", lambda: sched.wait("two"))
    with pytest.raises(ModelBug, match="deadlock: one waits"):
        sched.run()


def test_an_exception_of_a_task_comes_out_of_run() -> None:
    sched = Scheduler()
    sched.spawn("bad", lambda: {}["x"])
    with pytest.raises(KeyError):
        sched.run()


def test_a_lock_excludes_and_its_waiters_get_it_in_turn() -> None:
    sched, order = Scheduler(), []
    lock = Lock(sched, "lock", LockRank.MMU_LOCK)

    def work(name: str) -> None:
        lock.acquire()
        order.append(name)
        sched.preempt()
        order.append(name)
        lock.release()

    for name in "abc":
        sched.spawn(name, lambda name=name: work(name))
    sched.run()
    assert "".join(order) == "aabbcc"


def test_a_lock_taken_twice_is_a_bug() -> None:
    sched = Scheduler()
    lock = Lock(sched, "lock", LockRank.MMU_LOCK)
    lock.acquire()
    assert not lock.trylock()
    with pytest.raises(ModelBug, match="twice"):
        lock.acquire()


def test_readers_share_and_a_writer_waits_for_them() -> None:
    sched, order = Scheduler(), []
    sem = RwSemaphore(sched, "sem", LockRank.MMAP_LOCK)

    def reader(name: str) -> None:
        sem.acquire_read()
        order.append(f"{name}+")
        sched.preempt()
        order.append(f"{name}-")
        sem.release_read()

    def writer() -> None:
        sem.acquire()
        order.append("w")
        sem.release()

    sched.spawn("a", lambda: reader("a"))
    sched.spawn("w", writer)
    sched.spawn("b", lambda: reader("b"))
    sched.run()
    assert order == ["a+", "b+", "a-", "b-", "w"]


def locks(sched: Scheduler) -> tuple[RwSemaphore, Lock, Lock]:
    return (
        RwSemaphore(sched, "mmap_lock", LockRank.MMAP_LOCK),
        Lock(sched, "mmu_lock", LockRank.MMU_LOCK),
        Lock(sched, "page_table_lock", LockRank.PAGE_TABLE_LOCK),
    )


def test_lockdep_accepts_the_kernels_order() -> None:
    sched = Scheduler()
    mmap_lock, mmu_lock, page_table_lock = locks(sched)
    with Lockdep(sched).watching():
        mmap_lock.acquire_read()
        might_sleep("alloc_page")
        mmu_lock.acquire()
        page_table_lock.acquire()
        page_table_lock.release()
        mmu_lock.release()
        mmap_lock.release_read()


def test_lockdep_sees_the_wrong_order() -> None:
    sched = Scheduler()
    _, mmu_lock, page_table_lock = locks(sched)
    with Lockdep(sched).watching():
        page_table_lock.acquire()
        with pytest.raises(InvariantViolation, match="takes mmu_lock while holding page_table_lock"):
            mmu_lock.acquire()


def test_lockdep_sees_two_locks_of_one_class() -> None:
    sched = Scheduler()
    with Lockdep(sched).watching():
        Lock(sched, "one", LockRank.MMU_LOCK).acquire()
        with pytest.raises(InvariantViolation):
            Lock(sched, "two", LockRank.MMU_LOCK).acquire()


def test_lockdep_sees_sleep_under_a_spinlock() -> None:
    sched = Scheduler()
    mmap_lock, mmu_lock, _ = locks(sched)
    with Lockdep(sched).watching():
        mmu_lock.acquire()
        with pytest.raises(InvariantViolation, match="may sleep"):
            might_sleep("alloc_page")
        with pytest.raises(InvariantViolation):
            mmap_lock.acquire()


def test_lockdep_sees_the_release_of_a_lock_that_is_not_held() -> None:
    sched = Scheduler()
    lock = Lock(sched, "mmu_lock", LockRank.MMU_LOCK)
    with Lockdep(sched).watching(), pytest.raises(InvariantViolation, match="does not hold"):
        lock.release()


def interleaving(seed: int) -> str:
    sched = Scheduler()
    lock = Lock(sched, "lock", LockRank.MMU_LOCK)
    order: list[str] = []

    def work(name: str) -> None:
        for _ in range(20):
            order.append(name)
            lock.acquire()
            lock.release()

    for name in "ab":
        sched.spawn(name, lambda name=name: work(name))
    with RandomPreemption(sched, seed).watching():
        sched.run()
    return "".join(order)


def test_a_seed_is_an_interleaving() -> None:
    assert interleaving(1) == interleaving(1)
    assert len({interleaving(seed) for seed in range(1, 9)}) > 4


def test_a_vcpu_need_not_give_way_to_another_but_to_a_host_thread() -> None:
    sched, seen = Scheduler(), []
    host = sched.spawn("kswapd0", lambda: None, daemon=True)

    def vcpu() -> None:
        seen.append(sched.need_resched)
        sched.wake(host)
        seen.append(sched.need_resched)

    sched.spawn("CPU 0/KVM", vcpu, vcpu=0)
    sched.spawn("CPU 1/KVM", lambda: None, vcpu=1)
    sched.run()
    assert seen == [False, True]


def test_a_host_thread_gives_way_to_a_vcpu() -> None:
    sched, order = Scheduler(), []

    def work() -> None:
        sched.cond_resched()
        order.append("host")

    sched.spawn("host", work)
    sched.spawn("CPU 0/KVM", lambda: order.append("vcpu"), vcpu=0)
    sched.run()
    assert order == ["vcpu", "host"]


def test_when_nobody_can_run_the_idle_hook_may_wake_somebody() -> None:
    sched, order = Scheduler(), []

    def sleeper() -> None:
        sched.wait("timer")
        order.append("awake")

    task = sched.spawn("sleeper", sleeper)

    def idle() -> bool:
        order.append("idle")
        sched.wake(task)
        return True

    sched.idle = idle
    sched.run()
    assert order == ["idle", "awake"]


def test_readers_share_a_lock_that_a_writer_has_alone() -> None:
    sched = Scheduler()
    lock = RwLock(sched, "rw", LockRank.MMU_LOCK)
    order: list[str] = []

    def reader(name: str) -> None:
        lock.acquire_read()
        order.append(f"{name} in")
        sched.preempt()
        order.append(f"{name} out")
        lock.release_read()

    def writer() -> None:
        assert not lock.trylock()
        lock.acquire()
        lock.assert_held_write()
        order.append("writer in")
        sched.preempt()
        order.append("writer out")
        lock.release()

    for name in "ab":
        sched.spawn(name, lambda name=name: reader(name))
    sched.spawn("writer", writer)
    sched.spawn("c", lambda: reader("c"))
    sched.run()
    assert order == ["a in", "b in", "c in", "a out", "b out", "c out", "writer in", "writer out"]
    assert not lock.held


def test_who_only_reads_may_not_do_what_needs_the_lock_for_write() -> None:
    lock = RwLock(Scheduler(), "rw", LockRank.MMU_LOCK)
    lock.acquire_read()
    assert lock.held
    with pytest.raises(ModelBug, match="needs rw for write"):
        lock.assert_held_write()
