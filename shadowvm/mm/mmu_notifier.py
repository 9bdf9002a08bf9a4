"""mmu notifiers: secondary MMUs (hypervisors, devices) hear of every change to a process's mappings.

Whoever takes a mapping away or narrows it calls `invalidate_range_start`, changes the host page table, frees
nothing before start returned, then calls `invalidate_range_end` with the same range. When start returned, no
secondary MMU may use the range; until end, none may map any of it. Ranges nest and overlap.
(mm/mmu_notifier.c, include/linux/mmu_notifier.h, of Linux 6.x to 7.x.)
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ..addr import Hva
from ..errors import ModelBug
from ..events import might_sleep
from ..events import mmu_notifier_invalidate_range_end as trace_range_end
from ..events import mmu_notifier_invalidate_range_failed as trace_range_failed
from ..events import mmu_notifier_invalidate_range_start as trace_range_start
from ..events import mmu_notifier_release as trace_release

if TYPE_CHECKING:
    from .mm_struct import MmStruct


class MmuNotifierEvent(IntEnum):
    """Why a range is invalidated (enum mmu_notifier_event)."""

    UNMAP = 0
    CLEAR = 1
    PROTECTION_VMA = 2
    PROTECTION_PAGE = 3
    SOFT_DIRTY = 4
    RELEASE = 5
    MIGRATE = 6
    EXCLUSIVE = 7


class MmuNotifierRange:
    """One invalidation: addresses [start, end) of an mm. `blockable` says whether subscribers may sleep."""

    __slots__ = ("blockable", "end", "event", "mm", "start", "started")

    def __init__(self, mm: MmStruct, start: Hva, end: Hva, event: MmuNotifierEvent, blockable: bool = True) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        self.event = event
        self.blockable = blockable
        self.started: Subscriptions | None = None


class MmuNotifier:
    """A subscriber. It overrides what it needs; what it leaves alone is never called.

    All run in the context of whoever changes the mapping, who may hold mmap_lock and the folio lock.
    """

    def release(self, mm: MmStruct) -> None:
        """The address space goes away: drop every mapping of it. Nothing is freed before this returned."""

    def clear_flush_young(self, mm: MmStruct, start: Hva, end: Hva) -> bool:
        """Was the range accessed? Clear the mark, and see to it that the next access sets it again."""
        return False

    def clear_young(self, mm: MmStruct, start: Hva, end: Hva) -> bool:
        """As clear_flush_young, but a later access through a TLB may go unnoticed."""
        return False

    def test_young(self, mm: MmStruct, address: Hva) -> bool:
        """Was the page accessed? Changes nothing."""
        return False

    def invalidate_range_start(self, range_: MmuNotifierRange) -> bool:
        """Unmap the range and flush. False: would have to sleep (only if not blockable, and without range_end)."""
        return True

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        """The host page table has its new contents."""

    def arch_invalidate_secondary_tlbs(self, mm: MmStruct, start: Hva, end: Hva) -> None:
        """The CPU's TLB is being flushed: flush a TLB that walks the same table. Under page_table_lock."""


class Subscriptions:
    """Subscribers of one mm, sorted by what they implement. Never changed, only replaced, so walkers need no lock."""

    __slots__ = ("clear_flush_young", "clear_young", "everyone", "range_end", "range_start", "secondary_tlbs", "young")

    def __init__(self, everyone: tuple[MmuNotifier, ...] = ()) -> None:
        def having(name: str) -> tuple[MmuNotifier, ...]:
            return tuple(s for s in everyone if getattr(type(s), name) is not getattr(MmuNotifier, name))

        self.everyone = everyone
        self.range_start = having("invalidate_range_start")
        self.range_end = having("invalidate_range_end")
        self.clear_flush_young = having("clear_flush_young")
        self.clear_young = having("clear_young")
        self.young = having("test_young")
        self.secondary_tlbs = having("arch_invalidate_secondary_tlbs")


NO_SUBSCRIPTIONS = Subscriptions()


def mmu_notifier_register(subscription: MmuNotifier, mm: MmStruct) -> None:
    """Subscribe. Takes mmap_lock for writing. A range that is open now stays unknown to the newcomer."""
    mm.mmap_lock.acquire()
    try:
        if subscription in mm.notifiers.everyone:
            raise ModelBug("a subscriber registers twice")
        mm.notifiers = Subscriptions((*mm.notifiers.everyone, subscription))
    finally:
        mm.mmap_lock.release()


def mmu_notifier_unregister(subscription: MmuNotifier, mm: MmStruct) -> None:
    """Unsubscribe: release is called if the mm did not call it; no callback runs once this returned. May sleep."""
    if subscription in mm.notifiers.everyone:
        subscription.release(mm)
        if subscription in mm.notifiers.everyone:
            _unlink(mm, subscription)
    _synchronize(mm)


def mmu_notifier_release(mm: MmStruct) -> None:
    """exit_mmap() calls this first: every subscriber lets go of the mm and is unlinked after that."""
    if trace_release.on:
        trace_release(mm.id)
    for subscription in mm.notifiers.everyone:
        subscription.release(mm)
        if subscription in mm.notifiers.everyone:
            _unlink(mm, subscription)
    _synchronize(mm)


def _unlink(mm: MmStruct, subscription: MmuNotifier) -> None:
    left = tuple(other for other in mm.notifiers.everyone if other is not subscription)
    mm.notifiers = Subscriptions(left) if left else NO_SUBSCRIPTIONS


def _synchronize(mm: MmStruct) -> None:
    """synchronize_srcu(): wait until callbacks that run in other tasks have returned."""
    sched = mm.host.sched
    while mm.notifier_readers:
        mm.notifier_waiters.append(sched.current)
        sched.wait(mm)


def _leave(mm: MmStruct) -> None:
    """srcu_read_unlock()."""
    mm.notifier_readers -= 1
    if mm.notifier_waiters and not mm.notifier_readers:
        waiters, mm.notifier_waiters = mm.notifier_waiters, []
        for task in waiters:
            mm.host.sched.wake(task)


def mmu_notifier_invalidate_range_start(range_: MmuNotifierRange) -> bool:
    """Tell every subscriber; False when one would have had to sleep and the range is not blockable.

    After False nothing may be changed, and no end follows: those that have one were called.
    """
    if trace_range_start.on:
        trace_range_start(range_)
    if range_.blockable and might_sleep.on:
        might_sleep("mmu_notifier_invalidate_range_start")
    mm = range_.mm
    subscriptions = range_.started = mm.notifiers
    if not subscriptions.everyone:
        return True
    failed = False
    mm.notifier_readers += 1
    try:
        for subscription in subscriptions.range_start:
            if subscription.invalidate_range_start(range_) is False:
                if range_.blockable or subscription in subscriptions.range_end:
                    raise ModelBug(f"{type(subscription).__name__} may not fail this invalidate_range_start")
                failed = True
    finally:
        _leave(mm)
    if failed:
        mmu_notifier_invalidate_range_end(range_)
        if trace_range_failed.on:
            trace_range_failed(range_)
    return not failed


def mmu_notifier_invalidate_range_end(range_: MmuNotifierRange) -> None:
    """Tell every subscriber that heard the start and is still there."""
    mm = range_.mm
    started = range_.started
    if started is None:
        raise ModelBug("invalidate_range_end without start")
    range_.started = None
    if started.range_end:
        alive = mm.notifiers
        mm.notifier_readers += 1
        try:
            for subscription in started.range_end:
                if alive is started or subscription in alive.everyone:
                    subscription.invalidate_range_end(range_)
        finally:
            _leave(mm)
    if trace_range_end.on:
        trace_range_end(range_)


def mmu_notifier_clear_flush_young(mm: MmStruct, start: Hva, end: Hva) -> bool:
    """Did any secondary MMU access the range? Each one is asked, and its marks are cleared."""
    young = False
    mm.notifier_readers += 1
    try:
        for subscription in mm.notifiers.clear_flush_young:
            if subscription.clear_flush_young(mm, start, end):
                young = True
    finally:
        _leave(mm)
    return young


def mmu_notifier_clear_young(mm: MmStruct, start: Hva, end: Hva) -> bool:
    """As mmu_notifier_clear_flush_young, without flushes."""
    young = False
    mm.notifier_readers += 1
    try:
        for subscription in mm.notifiers.clear_young:
            if subscription.clear_young(mm, start, end):
                young = True
    finally:
        _leave(mm)
    return young


def mmu_notifier_test_young(mm: MmStruct, address: Hva) -> bool:
    """Did any secondary MMU access the page? Changes nothing; the first yes is enough."""
    mm.notifier_readers += 1
    try:
        return any(subscription.test_young(mm, address) for subscription in mm.notifiers.young)
    finally:
        _leave(mm)


def mmu_notifier_arch_invalidate_secondary_tlbs(mm: MmStruct, start: Hva, end: Hva) -> None:
    """Called with every flush of the CPU's TLB, under page_table_lock."""
    for subscription in mm.notifiers.secondary_tlbs:
        subscription.arch_invalidate_secondary_tlbs(mm, start, end)
