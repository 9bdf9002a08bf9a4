"""Watchpoints of a machine: every access and no other, forwards and backwards, in a run that stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from shadowvm.config import MIB
from shadowvm.debug.breaks import MemoryWatch
from shadowvm.debug.monitor import Monitor
from shadowvm.debug.position import Position, Stop
from shadowvm.debug.target import Target
from shadowvm.debug.timeline import Timeline
from shadowvm.errors import ShadowvmError
from tests.debug.machines import target_of

SIZE = "size=2M passes=1"
LOW = 0x2A0000
"""A page that memtouch writes."""


def timeline_of(mmu: str) -> Iterator[Timeline]:
    timeline = Timeline(lambda: target_of("memtouch", SIZE, 2 * MIB, mmu=mmu))
    yield timeline
    timeline.close()


@pytest.fixture(scope="module")
def timeline() -> Iterator[Timeline]:
    yield from timeline_of("shadow")


@pytest.fixture(scope="module")
def by_tdp() -> Iterator[Timeline]:
    yield from timeline_of("tdp")


def hits(target: Target | Timeline, watches: Sequence[MemoryWatch], most: int = 1 << 30) -> list[Stop]:
    found: list[Stop] = []
    while len(found) < most and (stop := target.go(breaks=watches)).kind == "watchpoint":
        found.append(stop)
    return found


@pytest.mark.parametrize("mmu", ["timeline", "by_tdp"])
def test_a_watched_run_is_the_same_run(mmu: str, request: pytest.FixtureRequest) -> None:
    timeline: Timeline = request.getfixturevalue(mmu)
    timeline.go_to(Position(0, 0))
    end = timeline.go().position
    state = timeline.call("state_hash")
    timeline.go_to(Position(0, 0))
    watches = [MemoryWatch(1, "gva", LOW, 64, "rw"), MemoryWatch(2, "gpa", LOW + 0x1000, 8, "w")]
    watches += [MemoryWatch(3, "pfn", 0x50000, 0x1000, "r"), MemoryWatch(4, "gva", 0, 8, "rw")]
    found = hits(timeline, watches)
    assert len(found) > 10
    assert {stop.number for stop in found} >= {1, 2}
    assert (timeline.position, timeline.call("state_hash")) == (end, state)


def test_gva_gpa_and_hva_of_a_page_that_moves_are_the_same_accesses(by_tdp: Timeline) -> None:
    """The guest maps memory to itself; its pages go to swap and come back into other frames."""
    found = []
    hva = by_tdp.call("view", "gpa2hva", LOW)
    for space, address in (("gva", LOW), ("gpa", LOW), ("hva", hva)):
        by_tdp.go_to(Position(0, 0))
        found.append([stop.position for stop in hits(by_tdp, [MemoryWatch(1, space, address, 16, "rw")], 3)])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3


def test_every_change_of_memory_is_a_stop_and_the_way_back_finds_each(timeline: Timeline) -> None:
    timeline.go_to(Position(0, 0))
    watch = MemoryWatch(1, "gva", LOW, 16, "w")
    forwards = hits(timeline, [watch], 3)
    assert len(forwards) == 2
    contents = []
    for stop in forwards:
        timeline.go_to(stop.position)
        after = timeline.call("view", "memory", LOW, 16)
        timeline.back(1)
        contents.append((timeline.call("view", "memory", LOW, 16), after))
    for (_, after), (before, _) in pairwise(contents):
        assert after == before
    timeline.go_to(Position(forwards[-1].position.instructions + 1000, 0))
    backwards = []
    while (stop := timeline.back_to_break([watch])) is not None:  # type: ignore[assignment]
        backwards.append(stop.position)
    assert backwards[::-1] == [stop.position for stop in forwards]


def test_undone_a_hit_is_before_its_instruction(timeline: Timeline) -> None:
    timeline.go_to(Position(0, 0))
    forwards = hits(timeline, [MemoryWatch(1, "gva", LOW, 16, "w")], 2)
    watch = MemoryWatch(1, "gva", LOW, 16, "w", undo=True)
    for stop in reversed(forwards):
        back = timeline.back_to_break([watch])
        assert back is not None
        assert timeline.position.instructions == stop.position.instructions - 1


def test_all_vcpus_are_watched() -> None:
    target = target_of("smp-shootdown", "pages=16 changes=4 turn=4", 4 * MIB, smp=2)
    watches = [MemoryWatch(1, "gva", 0x100000, 1 << 22, "w")]
    found = hits(target, watches, 10)
    target.go(until=20_000)
    found += hits(target, watches, 100)
    assert {stop.vcpu for stop in found} == {0, 1}
    target.close()


def test_the_words_of_the_monitor(timeline: Timeline) -> None:
    monitor = Monitor(timeline)
    monitor.execute("restart")
    assert monitor.execute(f"watch gva {LOW:#x} 8 rw") == [f"1: watch gva {LOW:#x} 8 rw"]
    said = monitor.execute("c")
    assert said[-2].startswith("break 1, vCPU 0 at instruction ")
    monitor.execute("delete")
    assert monitor.execute(f"watch gpa {LOW:#x}") == [f"2: watch gpa {LOW:#x} 1 w"]
    assert monitor.execute("watch pfn 0x50 r") == ["3: watch pfn 0x50 r"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("watch gva", "the form is"),
        ("watch gva 1 2 3 r", "the form is"),
        ("watch gva 1 0", "out of range"),
        ("watch pfn 1 2", "the form is"),
        ("watch gfn 1", "none of spte"),
    ],
)
def test_what_cannot_be_watched(timeline: Timeline, command: str, complaint: str) -> None:
    with pytest.raises(ShadowvmError, match=complaint):
        Monitor(timeline).execute(command)


def test_too_many_are_refused_and_change_nothing(timeline: Timeline) -> None:
    here = timeline.position
    many: list[Any] = [MemoryWatch(n, "gva", n, 1) for n in range(33)]
    with pytest.raises(ShadowvmError, match="more than 32"):
        timeline.go(breaks=many)
    with pytest.raises(ShadowvmError, match="more than 32"):
        timeline.go(breaks=[MemoryWatch(1, "gpa", 0, 1 << 20)])
    assert timeline.position == here
