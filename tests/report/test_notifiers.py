"""Batches of invalidation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shadowvm.report.notifiers import find_batches
from shadowvm.report.sptes import zaps
from shadowvm.report.timeline import Timeline
from tests.report.traces import KSWAPD, LEAF, VCPU, E, invalidation, spte

Make = Callable[..., Timeline]
FLUSH = E(0, KSWAPD, "kvm_flush_remote_tlbs", (1,))


def zap(sptep: int, task: str = KSWAPD) -> E:
    return spte(0, sptep, 5 << 12 | LEAF, 0, task)


def test_a_batch_has_its_pages_sptes_and_flushes(timeline_of: Make) -> None:
    events = [
        zap(0x10),
        *invalidation(0, 8, 4, zap(0x8000), zap(0x8008), FLUSH, zap(0x8010, VCPU)),
        *invalidation(1, 8, 1, why="UNMAP", task=VCPU),
        *invalidation(2, 0, 512)[:1],
    ]
    timeline = timeline_of(events)
    found = find_batches(timeline, zaps(timeline))
    assert found.name.tolist() == ["CLEAR", "UNMAP"]
    assert found.pages.tolist() == [4, 1]
    assert found.zapped.tolist() == [2, 0]
    assert found.flushes.tolist() == [1, 0]
    assert found.around(timeline, np.array([0, 2, 3, 5, -1])).tolist() == [-1, 0, 0, -1, -1]


def test_ranges_of_one_task_nest_and_those_of_others_overlap(timeline_of: Make) -> None:
    inner = invalidation(0, 1, 1, zap(0x8000))
    other = invalidation(0, 2, 1, task=VCPU)
    events = [*invalidation(0, 0, 8, *inner, other[0], zap(0x8008)), other[1]]
    timeline = timeline_of(events)
    found = find_batches(timeline, zaps(timeline))
    assert found.pages.tolist() == [8, 1, 1]
    assert found.zapped.tolist() == [2, 1, 0]
    assert found.around(timeline, np.array([2, 5])).tolist() == [0, 0]


def test_what_failed_has_no_batch(timeline_of: Make) -> None:
    start = invalidation(0, 0, 8)[0]
    failed = start._replace(name="mmu_notifier_invalidate_range_failed")
    timeline = timeline_of([start, failed, *invalidation(1, 0, 2)])
    assert find_batches(timeline, zaps(timeline)).pages.tolist() == [2]
