from __future__ import annotations

import pytest

from shadowvm.addr import Hva
from shadowvm.errors import ModelBug
from shadowvm.events import attached, mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from shadowvm.events import mmu_notifier_release as trace_release
from shadowvm.mm import mmu_notifier as core
from shadowvm.mm.mm_struct import exit_mmap, mmap, munmap
from shadowvm.mm.mmu_notifier import (
    MmuNotifier,
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_register,
    mmu_notifier_unregister,
)
from tests.mm.helpers import Mirror, audit, touch, vpn_of


def range_of(mm, start=0x1000, end=0x3000, blockable=True):
    return MmuNotifierRange(mm, Hva(start), Hva(end), MmuNotifierEvent.CLEAR, blockable)


def test_starts_and_ends_nest_and_reach_everybody_in_order_of_registration(mm):
    log = []

    class Sub(MmuNotifier):
        def __init__(self, name):
            self.name = name

        def invalidate_range_start(self, range_):
            log.append((self.name, "start", range_.start))
            return True

        def invalidate_range_end(self, range_):
            log.append((self.name, "end", range_.start))

    for name in "ab":
        mmu_notifier_register(Sub(name), mm)
    outer, inner = range_of(mm), range_of(mm, 0x2000, 0x4000)
    core.mmu_notifier_invalidate_range_start(outer)
    core.mmu_notifier_invalidate_range_start(inner)
    core.mmu_notifier_invalidate_range_end(inner)
    core.mmu_notifier_invalidate_range_end(outer)
    steps = [("start", 0x1000), ("start", 0x2000), ("end", 0x2000), ("end", 0x1000)]
    assert log == [(name, *step) for step in steps for name in "ab"]


def test_start_is_traced_before_and_end_after_the_subscribers(mm):
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    seen = []

    def sink(tracepoint, args):
        seen.append((tracepoint.name.rpartition("_")[2], list(mirror.calls), args[0].event))

    with attached(sink, (mmu_notifier_invalidate_range_start, mmu_notifier_invalidate_range_end)):
        range_ = range_of(mm)
        core.mmu_notifier_invalidate_range_start(range_)
        core.mmu_notifier_invalidate_range_end(range_)
    event = MmuNotifierEvent.CLEAR
    assert seen == [("start", [], event), ("end", ["start CLEAR", "end CLEAR"], event)]


def test_what_a_subscriber_leaves_out_is_never_called(mm):
    class OnlyEnd(MmuNotifier):
        ended = 0

        def invalidate_range_end(self, range_):
            self.ended += 1

    sub = OnlyEnd()
    mmu_notifier_register(sub, mm)
    ops = mm.notifiers
    assert (ops.range_start, ops.range_end) == ((), (sub,))
    assert (ops.clear_flush_young, ops.clear_young, ops.young, ops.secondary_tlbs) == ((), (), (), ())
    range_ = range_of(mm)
    assert core.mmu_notifier_invalidate_range_start(range_)
    core.mmu_notifier_invalidate_range_end(range_)
    assert sub.ended == 1


class WouldBlock(MmuNotifier):
    def invalidate_range_start(self, range_):
        return range_.blockable


def test_a_start_that_may_not_block_can_fail_and_everybody_who_has_an_end_gets_it(mm):
    mirror = Mirror()
    mmu_notifier_register(WouldBlock(), mm)
    mmu_notifier_register(mirror, mm)
    assert not core.mmu_notifier_invalidate_range_start(range_of(mm, blockable=False))
    assert mirror.calls == ["start CLEAR", "end CLEAR"]
    assert core.mmu_notifier_invalidate_range_start(range_of(mm))


def test_a_blockable_start_never_fails(mm):
    class Fails(MmuNotifier):
        def invalidate_range_start(self, range_):
            return False

    mmu_notifier_register(Fails(), mm)
    with pytest.raises(ModelBug, match="may not fail"):
        core.mmu_notifier_invalidate_range_start(range_of(mm))


def test_a_subscriber_with_an_end_never_fails_its_start(mm):
    class Fails(WouldBlock):
        def invalidate_range_end(self, range_):
            pass

    mmu_notifier_register(Fails(), mm)
    with pytest.raises(ModelBug, match="may not fail"):
        core.mmu_notifier_invalidate_range_start(range_of(mm, blockable=False))


def test_an_end_without_a_start_is_a_bug(mm):
    range_ = range_of(mm)
    with pytest.raises(ModelBug):
        core.mmu_notifier_invalidate_range_end(range_)
    core.mmu_notifier_invalidate_range_start(range_)
    core.mmu_notifier_invalidate_range_end(range_)
    with pytest.raises(ModelBug):
        core.mmu_notifier_invalidate_range_end(range_)


def test_who_comes_or_goes_inside_a_range_hears_no_lone_end(mm):
    stays, goes, comes = Mirror(), Mirror(), Mirror()
    mmu_notifier_register(stays, mm)
    mmu_notifier_register(goes, mm)
    range_ = range_of(mm)
    core.mmu_notifier_invalidate_range_start(range_)
    mmu_notifier_unregister(goes, mm)
    mmu_notifier_register(comes, mm)
    core.mmu_notifier_invalidate_range_end(range_)
    assert stays.calls == ["start CLEAR", "end CLEAR"]
    assert goes.calls == ["start CLEAR", "release"]
    assert comes.calls == []


def test_young_hooks_ask_everybody_and_test_changes_nothing(mm):
    class Sub(MmuNotifier):
        def __init__(self, young):
            self.young = young
            self.asked = []

        def clear_flush_young(self, mm, start, end):
            self.asked.append("flush")
            return self.young

        def clear_young(self, mm, start, end):
            self.asked.append("clear")
            return self.young

        def test_young(self, mm, address):
            self.asked.append("test")
            return self.young

    subs = [Sub(True), Sub(False)]
    for sub in subs:
        mmu_notifier_register(sub, mm)
    assert core.mmu_notifier_clear_flush_young(mm, Hva(0), Hva(0x1000))
    assert core.mmu_notifier_clear_young(mm, Hva(0), Hva(0x1000))
    assert [sub.asked for sub in subs] == [["flush", "clear"]] * 2
    assert core.mmu_notifier_test_young(mm, Hva(0))
    subs[0].young = False
    assert not core.mmu_notifier_test_young(mm, Hva(0))
    assert not core.mmu_notifier_clear_flush_young(mm, Hva(0), Hva(0x1000))


def test_release_runs_once_before_anything_is_freed(host, mm):
    start = mmap(mm, 1 << 20)
    held = []

    class Sub(Mirror):
        def release(self, mm):
            super().release(mm)
            held.append((page.refcount, host.zone.nr_free))

    sub = Sub()
    mmu_notifier_register(sub, mm)
    page = sub.map(mm, vpn_of(start), True)
    free = host.zone.nr_free
    traced = []
    with attached(lambda _tp, args: traced.append(args), (trace_release,)):
        exit_mmap(mm)
    assert traced == [(mm.id,)]
    assert held == [(1, free)]
    assert sub.calls == ["release"]
    mmu_notifier_unregister(sub, mm)
    assert sub.released == 1
    audit(host)


def test_unregister_releases_a_living_mm_and_nothing_is_heard_afterwards(mm):
    start = mmap(mm, 1 << 20)
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    touch(mm, vpn_of(start))
    mmu_notifier_unregister(mirror, mm)
    munmap(mm, start, 1 << 20)
    assert mirror.calls == ["release"]


def test_unregister_waits_for_a_callback_in_another_task(host, mm):
    log = []

    class Slow(MmuNotifier):
        def invalidate_range_start(self, range_):
            log.append("in")
            host.sched.preempt()
            log.append("out")
            return True

    slow = Slow()
    mmu_notifier_register(slow, mm)

    def invalidate():
        range_ = range_of(mm)
        core.mmu_notifier_invalidate_range_start(range_)
        core.mmu_notifier_invalidate_range_end(range_)

    def unregister():
        mmu_notifier_unregister(slow, mm)
        log.append("gone")

    host.sched.spawn("reclaim", invalidate)
    host.sched.spawn("close", unregister)
    host.sched.run()
    assert log == ["in", "out", "gone"]


def test_nobody_registers_twice(mm):
    mirror = Mirror()
    mmu_notifier_register(mirror, mm)
    with pytest.raises(ModelBug):
        mmu_notifier_register(mirror, mm)
    assert mm.mmap_lock.owner is None
