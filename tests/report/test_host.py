"""Host ptes, frames and reclaim."""

from __future__ import annotations

from collections.abc import Callable

from shadowvm.report.bins import time_axis
from shadowvm.report.host import find_ptes, frames_in_use, memory_slots, time_within
from shadowvm.report.timeline import Timeline
from tests.report.traces import EXIT, HVA, KSWAPD, PRESENT, SWAPPED, VCPU, E, pte

Make = Callable[..., Timeline]


def test_ptes_are_of_guest_memory_and_know_what_was_before(timeline_of: Make) -> None:
    events = [
        pte(1, 5, 0, PRESENT),
        pte(2, 6, 7 << 12 | PRESENT, 3 << 12 | SWAPPED),
        E(2, VCPU, "host_pte_change", (1, 1, 0, PRESENT)),
        pte(3, 6, 3 << 12 | SWAPPED, PRESENT),
        pte(9, 8, PRESENT, 0, task=EXIT),
        pte(9, 5, PRESENT, 0, task=EXIT),
    ]
    timeline = timeline_of(events)
    found = find_ptes(timeline, memory_slots(timeline))
    assert found.gfn.tolist() == [5, 6, 6]
    assert found.swapped_out.tolist() == [False, True, False]
    assert found.swapped_in.tolist() == [False, False, True]
    gfn, there = found.before
    assert (gfn.tolist(), there.tolist()) == ([6, 8], [7 << 12 | PRESENT, PRESENT])


def test_slots_that_come_later_count(timeline_of: Make) -> None:
    slot = (1, "create", 0, 0x40000000, 0x2000, HVA + (1 << 30))
    gone = (1, "delete", 0, 0, 0, HVA)
    events = [E(0, VCPU, "kvm_set_memslot", slot), E(0, VCPU, "kvm_set_memslot", gone), pte(1, 0x40001, 0, PRESENT)]
    timeline = timeline_of(events)
    assert find_ptes(timeline, memory_slots(timeline)).gfn.tolist() == [0x40001]


def test_frames_are_counted_back_from_what_the_run_left_free(timeline_of: Make) -> None:
    events = [E(now, VCPU, "mm_page_alloc", (now, order)) for now, order in ((0, 0), (1, 3), (3, 0))]
    events += [E(3, VCPU, "mm_page_free", (0, 0))]
    axis = time_axis(0, 4, 4)
    assert frames_in_use(timeline_of(events), axis)._replace(used=None) == (None, False, 256)  # type: ignore[arg-type]
    assert frames_in_use(timeline_of(events), axis).used.tolist() == [1, 9, 9, 9]
    known = frames_in_use(timeline_of(events, tail={"vmstat": {"nr_free_pages": 200}}), axis)
    assert known.absolute
    assert known.used.tolist() == [48, 56, 56, 56]


def test_kswapd_is_awake_between_wake_and_sleep(timeline_of: Make) -> None:
    wake, sleep = "mm_vmscan_kswapd_wake", "mm_vmscan_kswapd_sleep"
    steps = [(2, wake, (0, 0)), (5, sleep, (0,)), (8, wake, (0, 0))]
    events = [E(now, KSWAPD, name, args) for now, name, args in steps] + [E(11, VCPU, "kvm_entry", (0, 0))]
    low, high = time_within(timeline_of(events), wake, sleep, time_axis(3, 12, 3))
    assert (low.tolist(), high.tolist()) == ([3, 8], [5, 12])
