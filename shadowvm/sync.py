"""Tasks and locks of the simulated host, over greenlet.

A task is a host thread: a vCPU, kswapd, a VMM thread. One runs at a time; it gives way when it blocks, when it
asks (`cond_resched`), or where a scheduling policy preempts it at a tracepoint marked as a point. Order of wake-up
decides; nothing depends on wall clock or hash order.

A lock has a class rank: a task may take it only while every lock it holds has a lower rank (Documentation/mm and
mm/rmap.c give the kernel's order). `Lockdep` checks that, and that nobody sleeps under a spinlock, when attached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from random import Random
from typing import Any

import greenlet

from .errors import InvariantViolation, ModelBug
from .events import (
    REGISTRY,
    Tracepoint,
    attached,
    lock_acquire,
    lock_acquired,
    lock_release,
    might_sleep,
    sched_switch,
    sched_wakeup,
    trace_clock,
)


class LockRank(IntEnum):
    """Lock classes from outermost to innermost."""

    SLOTS_LOCK = 5
    MMAP_LOCK = 10
    FOLIO_LOCK = 20
    ANON_VMA = 30
    MMU_LOCK = 50
    PAGE_TABLE_LOCK = 60
    LRU_LOCK = 70
    SWAP_LOCK = 80


class Task:
    """A host thread. `daemon` tasks (kswapd) do not keep a run alive.

    vcpu: the index of the virtual CPU that it runs, or None. Such threads take turns of their own length: that another
    of them is runnable does not set need_resched.
    """

    __slots__ = ("daemon", "glet", "held", "name", "pid", "vcpu", "waiting")

    def __init__(self, name: str, pid: int, daemon: bool, vcpu: int | None = None) -> None:
        self.name = name
        self.pid = pid
        self.daemon = daemon
        self.vcpu = vcpu
        self.waiting: object | None = None
        self.held: list[Lock] = []
        self.glet: Any = None


class Scheduler:
    """Run queue of the simulated host: first woken, first run.

    need_resched: somebody waits to whom the current task should give way soon. idle: called when nobody can run; it
    lets virtual time pass and says whether somebody can now.
    """

    __slots__ = ("current", "idle", "need_resched", "runnable", "tasks")

    def __init__(self) -> None:
        self.idle: Callable[[], bool] = lambda: False
        self.tasks: list[Task] = []
        self.runnable: deque[Task] = deque()
        self.need_resched = False
        self.current = Task("swapper", 0, daemon=True)
        self.current.glet = greenlet.getcurrent()

    def spawn(self, name: str, main: Callable[[], None], *, daemon: bool = False, vcpu: int | None = None) -> Task:
        """kthread_run(): a new task, runnable at once unless a daemon (which waits for its first wake-up)."""
        task = Task(name, 100 + len(self.tasks), daemon, vcpu)
        task.glet = greenlet.greenlet(main)
        self.tasks.append(task)
        if daemon:
            task.waiting = self
        else:
            self.runnable.append(task)
        return task

    def run(self, *, drain: bool = False) -> None:
        """Run until every task that is no daemon has ended and, to `drain`, until the daemons have gone to sleep.

        An exception in a task comes out here.

        Raises ModelBug when all tasks wait for each other.
        """
        root = self.current
        root.glet = greenlet.getcurrent()
        try:
            while any(not task.daemon and not task.glet.dead for task in self.tasks) or (drain and self.runnable):
                if not self.runnable and not self.idle():
                    raise ModelBug("deadlock: " + ", ".join(f"{t.name} waits" for t in self.tasks if t.waiting))
                self._switch(self.runnable.popleft())
        finally:
            self.current = root
            trace_clock.ticks += 1

    def _switch(self, task: Task) -> None:
        if sched_switch.on:
            sched_switch(self.current.name, task.name)
        self.need_resched = any(other.vcpu is None or task.vcpu is None for other in self.runnable)
        self.current = task
        trace_clock.ticks += 1
        task.glet.parent = greenlet.getcurrent()
        task.glet.switch()

    def schedule(self) -> None:
        """Give way to the next task; the current one must be on the run queue or have somebody to wake it."""
        self.current.glet.parent.switch()

    def cond_resched(self) -> None:
        """Give way if somebody else was woken. May sleep."""
        if self.need_resched and self.runnable:
            self.preempt()

    def preempt(self) -> None:
        """Put the current task at the end of the run queue and run the next one."""
        if self.runnable and self.current.glet.parent is not None:
            self.runnable.append(self.current)
            self.schedule()

    def wait(self, on: object) -> None:
        """Block the current task until wake(); `on` says what for."""
        self.current.waiting = on
        self.schedule()

    def wake(self, task: Task) -> None:
        """wake_up_process(): make a waiting task runnable; no effect on a runnable one."""
        if task.waiting is None or task.glet.dead:
            return
        task.waiting = None
        self.runnable.append(task)
        if task.vcpu is None or self.current.vcpu is None:
            self.need_resched = True
        if sched_wakeup.on:
            sched_wakeup(task.name)


class Lock:
    """A spinlock or, with `sleeps`, a mutex. Not recursive."""

    __slots__ = ("name", "owner", "rank", "sched", "sleeps", "waiters")

    def __init__(self, sched: Scheduler, name: str, rank: LockRank, *, sleeps: bool = False) -> None:
        self.sched = sched
        self.name = name
        self.rank = rank
        self.sleeps = sleeps
        self.owner: Task | None = None
        self.waiters: list[Task] = []

    def acquire(self) -> None:
        """Take the lock, waiting for its owner if there is one."""
        if lock_acquire.on:
            lock_acquire(self)
        while self.owner is not None:
            self._contend()
        self.owner = self.sched.current
        if lock_acquired.on:
            lock_acquired(self)

    def trylock(self) -> bool:
        """Take the lock if it is free."""
        if self.owner is not None:
            return False
        self.owner = self.sched.current
        if lock_acquired.on:
            lock_acquired(self)
        return True

    def release(self) -> None:
        """Let go and wake whoever waits."""
        self.owner = None
        if self.waiters:
            waiters, self.waiters = self.waiters, []
            for task in waiters:
                self.sched.wake(task)
        if lock_release.on:
            lock_release(self)

    def _contend(self) -> None:
        task = self.sched.current
        if self.owner is task:
            raise ModelBug(f"{task.name} takes {self.name} twice")
        self.waiters.append(task)
        self.sched.wait(self)


class RwLock(Lock):
    """One writer or many readers: a spinning rwlock or, with `sleeps`, a semaphore. acquire() is the writer's."""

    __slots__ = ("readers",)

    def __init__(self, sched: Scheduler, name: str, rank: LockRank, *, sleeps: bool = False) -> None:
        super().__init__(sched, name, rank, sleeps=sleeps)
        self.readers: list[Task] = []

    def acquire(self) -> None:
        """write_lock(), down_write()."""
        if lock_acquire.on:
            lock_acquire(self)
        while self.owner is not None or self.readers:
            self._contend()
        self.owner = self.sched.current
        if lock_acquired.on:
            lock_acquired(self)

    def trylock(self) -> bool:
        """write_trylock(): take the lock if neither a writer nor a reader has it."""
        return not self.readers and super().trylock()

    def acquire_read(self) -> None:
        """read_lock(), down_read()."""
        if lock_acquire.on:
            lock_acquire(self)
        while self.owner is not None:
            self._contend()
        self.readers.append(self.sched.current)
        if lock_acquired.on:
            lock_acquired(self)

    def release_read(self) -> None:
        """read_unlock(), up_read()."""
        self.readers.remove(self.sched.current)
        self.release()

    def assert_held_write(self) -> None:
        """lockdep_assert_held_write()."""
        if self.owner is not self.sched.current:
            raise InvariantViolation(f"lockdep: {self.sched.current.name} needs {self.name} for write", "LOCKDEP")

    @property
    def held(self) -> bool:
        """By a writer or a reader."""
        return self.owner is not None or bool(self.readers)


class RwSemaphore(RwLock):
    """A sleeping lock with one writer or many readers (mmap_lock)."""

    __slots__ = ()

    def __init__(self, sched: Scheduler, name: str, rank: LockRank) -> None:
        super().__init__(sched, name, rank, sleeps=True)


class Lockdep:
    """Checks lock order and sleeping under spinlocks (kernel/locking/lockdep.c) while attached."""

    def __init__(self, sched: Scheduler) -> None:
        self.sched = sched

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check inside the block."""
        with attached(self._sink, (lock_acquire, lock_acquired, lock_release, might_sleep)):
            yield

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        task = self.sched.current
        if tracepoint is might_sleep:
            self._check_sleep(task, args[0])
            return
        lock: Lock = args[0]
        if tracepoint is lock_acquire:
            self._check_order(task, lock)
        elif tracepoint is lock_acquired:
            task.held.append(lock)
        elif lock in task.held:
            task.held.remove(lock)
        else:
            raise InvariantViolation(f"lockdep: {task.name} releases {lock.name}, which it does not hold", "LOCKDEP")

    def _check_order(self, task: Task, lock: Lock) -> None:
        for held in task.held:
            if held.rank >= lock.rank:
                raise InvariantViolation(f"lockdep: {task.name} takes {lock.name} while holding {held.name}", "LOCKDEP")
        if lock.sleeps:
            self._check_sleep(task, lock.name)

    def _check_sleep(self, task: Task, where: str) -> None:
        for held in task.held:
            if not held.sleeps:
                raise InvariantViolation(
                    f"lockdep: {task.name} may sleep in {where} while holding {held.name}", "LOCKDEP"
                )


class RandomPreemption:
    """Seeded preemption at points: an ordinary run under another interleaving for every seed."""

    def __init__(self, sched: Scheduler, seed: int, one_in: int = 16) -> None:
        self.sched = sched
        self.random = Random(seed)
        self.one_in = one_in

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Preempt inside the block."""
        with attached(self._sink, [tp for tp in REGISTRY.values() if tp.point]):
            yield

    def _sink(self, _tracepoint: Tracepoint, _args: tuple[Any, ...]) -> None:
        if self.sched.runnable and self.random.randrange(self.one_in) == 0:
            self.sched.preempt()
