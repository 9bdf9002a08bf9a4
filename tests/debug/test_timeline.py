"""Back and forward again ends in the same state, inside of faults too; breaks are found backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from shadowvm.config import MIB
from shadowvm.debug import timeline as timeline_module
from shadowvm.debug.position import Position
from shadowvm.debug.target import Target
from shadowvm.debug.timeline import FIRST_SLICE, Timeline
from shadowvm.debug.worker import Worker, send
from shadowvm.errors import ShadowvmError
from shadowvm.events import REGISTRY, Tracepoint
from tests.debug.machines import target_of

SMALL = "size=2304k passes=1"
RUNS: dict[str, dict[str, Any]] = {
    "memtouch": {"append": SMALL},
    "ptchurn": {"guest": "ptchurn", "append": "pages=256 rounds=1 switches=8"},
    "demand": {"guest": "demand", "append": "size=512k shared=256k", "seed": 7},
    "memtouch-tdp": {"append": SMALL, "mmu": "tdp"},
    "smp-shootdown-tdp": {
        "guest": "smp-shootdown",
        "append": "pages=64 changes=32 turn=4",
        "smp": 2,
        "host_memory": 2304 << 10,
        "mmu": "tdp",
    },
    "smp-ipi": {"guest": "smp-ipi", "append": "rounds=20 ticks=5 restarts=1", "smp": 2, "host_memory": 4 * MIB},
    "smp-shootdown": {
        "guest": "smp-shootdown",
        "append": "pages=64 changes=32 turn=4",
        "smp": 2,
        "host_memory": 4 * MIB,
    },
    "smp-counter": {
        "guest": "smp-counter",
        "append": "count=100 locked=10 pages=450",
        "smp": 2,
        "host_memory": 2304 << 10,
        "seed": 3,
    },
}


class At(NamedTuple):
    """A break at every hit of a tracepoint, for a test."""

    name: str
    number: int = 1

    def tracepoints(self) -> list[Tracepoint]:
        return [REGISTRY[self.name]]

    def hit(self, _target: Target, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str:
        return f"{tracepoint.name}: {tracepoint.format(args)}"


@pytest.fixture
def timeline_of() -> Iterator[Callable[..., Timeline]]:
    made: list[Timeline] = []

    def make(**arguments: Any) -> Timeline:
        made.append(Timeline(lambda: target_of(**arguments)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def memtouch() -> Iterator[Timeline]:
    timeline = Timeline(lambda: target_of(append=SMALL))
    timeline.go()
    yield timeline
    timeline.close()


def length_of(timeline: Timeline) -> Position:
    stop = timeline.go()
    assert (stop.kind, stop.text) == ("exit", "debug-exit, status 0")
    return stop.position


@pytest.mark.parametrize("name", RUNS)
def test_back_and_forward_again_is_the_same_state(name: str, timeline_of: Callable[..., Timeline]) -> None:
    timeline = timeline_of(**RUNS[name])
    end = length_of(timeline)
    timeline.back(end.instructions // 3)
    here, state = timeline.position, timeline.call("state_hash")
    for instructions in (1, 2, 37, 1000, 100_000):
        back = timeline.back(instructions)
        assert back.position.instructions == max(here.instructions - instructions, 0)
        timeline.go_to(here)
        assert (timeline.position, timeline.call("state_hash")) == (here, state)


def test_one_instruction_at_a_time_is_the_same_run(memtouch: Timeline) -> None:
    timeline = memtouch
    end = length_of(timeline)
    timeline.back(end.instructions // 10)
    start = timeline.position
    for number in range(1, 300):
        assert timeline.go(until=start.instructions + number).position.instructions == start.instructions + number
    here, state = timeline.position, timeline.call("state_hash")
    timeline.back(301)
    timeline.go_to(here)
    assert (timeline.position, timeline.call("state_hash")) == (here, state)
    assert timeline.go().position == end


def test_inside_a_fault_every_event_can_be_stood_at(memtouch: Timeline) -> None:
    timeline = memtouch
    timeline.go_to(Position(0, 0))
    timeline.go(breaks=[At("kvm_page_fault")])
    first = timeline.position.events
    names = [timeline.stop.text]
    states = [timeline.call("state_hash")]
    for event in range(first + 1, first + 30):
        names.append(timeline.go(until_event=event).text)
        states.append(timeline.call("state_hash"))
    assert names[0].startswith("kvm_page_fault")
    assert any("kvm_mmu_set_spte" in name for name in names)
    for event in range(first + 28, first + 8, -1):
        stop = timeline.back_event()
        assert stop.position.events == event
        assert timeline.call("state_hash") == states[event - first]


def test_inside_an_access_to_a_device_too(timeline_of: Callable[..., Timeline]) -> None:
    timeline = timeline_of(guest="hello", append="")
    timeline.go(breaks=[At("kvm_pio")])
    inside = timeline.position
    state = timeline.call("state_hash")
    after = timeline.go(until=inside.instructions + 2).position
    assert after.instructions == inside.instructions + 2
    later = timeline.call("state_hash")
    for _ in range(2):
        timeline.seek_event(inside.events)
        assert (timeline.position, timeline.call("state_hash")) == (inside, state)
        timeline.go_to(after)
        assert (timeline.position, timeline.call("state_hash")) == (after, later)
    timeline.back(after.instructions)
    timeline.go_to(after)
    assert (timeline.position, timeline.call("state_hash")) == (after, later)


def test_a_break_is_found_backwards(memtouch: Timeline) -> None:
    timeline = memtouch
    timeline.go_to(Position(0, 0))
    breaks = [At("mm_vmscan_write_folio")]
    hits = []
    for _ in range(30):
        stop = timeline.go(breaks=breaks)
        assert stop.kind == "point"
        hits.append((stop.position, stop.text))
    for position, text in reversed(hits[-4:-1]):
        stop = timeline.back_to_break(breaks)  # type: ignore[assignment]
        assert (stop.position, stop.text) == (position, text)
    assert timeline.back_to_break([At("kvm_inj_virq")]) is None
    assert timeline.position == Position(0, 0)


def test_checkpoints_change_nothing(timeline_of: Callable[..., Timeline], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit, memory, first, events in ((24, 1 << 30, 1000, 400), (1, 0, 100_000, 30_000)):
        monkeypatch.setattr(timeline_module, "FIRST_SLICE", first)
        monkeypatch.setattr(timeline_module, "SLICE_EVENTS", events)
        monkeypatch.setattr(timeline_module, "CHECKPOINT_S", 1000)
        timeline = Timeline(target_of, limit=limit, memory=memory)
        timeline.go(until=400_000)
        assert (len(timeline.checkpoints) > 10) == (limit > 1)
        found.append((timeline.position, timeline.call("state_hash")))
        timeline.seek_event(5000)
        found.append((timeline.position, timeline.call("state_hash")))
        timeline.close()
    assert found[:2] == found[2:]


def test_a_run_and_a_way_back_can_be_interrupted(memtouch: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when a worker has been told to run, before or after it begins."""
    call, timeline = Worker.call, memtouch

    def call_and_interrupt(worker: Worker, method: str, *arguments: Any) -> Any:
        if method not in ("go", "last_hit"):
            return call(worker, method, *arguments)
        send(worker.sock, (method, arguments))
        timeline.interrupt()
        return worker.result()

    for move in (lambda: timeline.back_to_break([At("kvm_inj_virq")]), lambda: timeline.seek_event(1 << 40)):
        timeline.go_to(Position(1_500_000, 0))
        monkeypatch.setattr(timeline, "_slice", FIRST_SLICE)
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "call", call_and_interrupt)
            stop = move()
        assert stop is not None
        assert stop.kind == "interrupt"
        here, state = timeline.position, timeline.call("state_hash")
        timeline.back(10)
        timeline.go_to(here)
        assert (timeline.position, timeline.call("state_hash")) == (here, state)


def test_a_checkpoint_of_the_users_stays(memtouch: Timeline) -> None:
    timeline = memtouch
    timeline.go_to(Position(123_456, 0))
    number = timeline.keep()
    state = timeline.call("state_hash")
    timeline.go()
    assert timeline.kept() == {number: Position(123_456, timeline.kept()[number].events)}
    timeline.go_to(timeline.kept()[number])
    assert timeline.call("state_hash") == state


def test_what_the_configuration_refuses_comes_out() -> None:
    with pytest.raises(ShadowvmError, match="--host-memory"):
        Timeline(lambda: target_of(host_memory=4096))
