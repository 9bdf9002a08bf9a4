"""The trace as arrays: places in tasks, points, and what is left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shadowvm.errors import ConfigError
from shadowvm.report.timeline import Timeline, between
from tests.report.traces import EXIT, KSWAPD, VCPU, E, pte

Make = Callable[..., Timeline]
ENTRY = ("kvm_entry", (0, 0))


def test_places_keep_tasks_apart(timeline_of: Make) -> None:
    tasks = [VCPU, KSWAPD, VCPU, KSWAPD, VCPU]
    timeline = timeline_of([E(now, task, *ENTRY) for now, task in enumerate(tasks)])
    assert timeline.place.tolist() == [0, 3, 1, 4, 2]
    assert timeline.at_place.tolist() == [0, 2, 4, 1, 3]
    places = timeline.places("kvm_entry")
    assert timeline.next_in_task(np.arange(5), places).tolist() == [1, 4, 2, -1, -1]
    assert between(places, np.array([0, 3]), np.array([2, 4])).tolist() == [1, 0]


def test_points_are_counted_along_a_task(timeline_of: Make) -> None:
    steps = [E(0, VCPU, *ENTRY), E(0, VCPU, "handle_mm_fault", (0, 0)), E(0, KSWAPD, *ENTRY), pte(0, 1, 0, 0x67)]
    timeline = timeline_of(steps)
    assert timeline.points.tolist() == [0, 0, 1, 2, 2]


def test_the_take_down_is_left_out(timeline_of: Make) -> None:
    events = [E(5, VCPU, *ENTRY), pte(6, 1, 0, 0x67), pte(6, 1, 0x67, 0, task=EXIT), E(6, EXIT, *ENTRY)]
    timeline = timeline_of(events)
    assert (timeline.total, timeline.start, timeline.stop) == (2, 5, 7)
    assert timeline.counts == {"kvm_entry": 1, "host_pte_change": 1}
    assert timeline.torn_down.fields["old_pte"].tolist() == [0x67]


def test_time_never_runs_backwards(timeline_of: Make) -> None:
    assert timeline_of([E(now, VCPU, *ENTRY) for now in (4, 9, 7, 12)]).now.tolist() == [4, 9, 9, 12]


def test_of_an_empty_trace_everything_is_empty(timeline_of: Make) -> None:
    timeline = timeline_of([])
    assert (timeline.total, timeline.start, timeline.stop, timeline.truncated) == (0, 0, 1, False)
    assert timeline_of([], cut=True).truncated


def test_a_field_that_holds_no_numbers_is_an_error(timeline_of: Make) -> None:
    timeline = timeline_of([E(0, VCPU, "kvm_entry", ("zero", 0))])
    with pytest.raises(ConfigError, match=r"/trace: kvm_entry\.vcpu_id is not as this shadowvm writes it$"):
        timeline.field("kvm_entry", "vcpu_id")
