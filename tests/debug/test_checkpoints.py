"""Which checkpoints stay, and that memory bounds them."""

from __future__ import annotations

import itertools
import os

import pytest

from shadowvm.debug import checkpoints
from shadowvm.debug.checkpoints import Checkpoint, Checkpoints, memory_of
from shadowvm.debug.position import Position
from shadowvm.debug.worker import Worker


class FakeWorker:
    """Forks and ends nothing."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid

    def fork(self) -> FakeWorker:
        return FakeWorker(self.pid + 1)

    def close(self) -> None:
        self.pid = 0


def made(limit: int, memory: int = 1 << 30) -> Checkpoints:
    return Checkpoints(Checkpoint(Position(0, 0), FakeWorker()), limit, memory)  # type: ignore[arg-type]


def add(kept: Checkpoints, *where: int) -> None:
    for each in where:
        kept.add(Position(each, 0), FakeWorker())  # type: ignore[arg-type]


def test_they_lie_densely_where_the_user_is_and_the_start_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "memory_of", lambda _pid, _kind: 0)
    kept = made(limit=10)
    add(kept, *range(1000, 100_001, 1000))
    places = [each.instructions for each in kept.positions]
    assert len(places) == 10
    assert places[0] == 0
    assert places[-3:] == [98_000, 99_000, 100_000]
    gaps = [later - sooner for sooner, later in itertools.pairwise(places)]
    assert max(gaps) < 70_000
    assert gaps[0] > 10 * gaps[-1]
    add(kept, *range(20_100, 21_000, 100))
    assert [each.instructions for each in kept.positions if 20_600 < each.instructions < 21_000] == [
        20_700,
        20_800,
        20_900,
    ]


def test_the_nearest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "memory_of", lambda _pid, _kind: 0)
    kept = made(limit=10)
    for where in (Position(100, 7), Position(200, 9, between=False)):
        kept.add(where, FakeWorker())  # type: ignore[arg-type]
    assert kept.nearest(Position(199, 9)).position.instructions == 100
    kept.add(Position(100, 3, between=False), FakeWorker())  # type: ignore[arg-type]
    kept.add(Position(0, 2, between=False), FakeWorker())  # type: ignore[arg-type]
    assert kept.nearest(Position(0, 0)).position == Position(0, 0)
    assert kept.nearest(Position(100, 0)).position == Position(0, 2, between=False)
    assert kept.nearest(Position(101, 0)).position == Position(100, 7)
    assert kept.before_event(9).position.instructions == 100
    assert kept.before_event(10).position.instructions == 200
    assert kept.before_event(-3).position.instructions == 0
    assert [each.position.instructions for each in kept.before(Position(200, 9, between=False))] == [0, 0, 100, 100]


def test_memory_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def memory(_pid: int, kind: str) -> int:
        asked.append(kind)
        return 10 << 20

    monkeypatch.setattr(checkpoints, "memory_of", memory)
    kept = made(limit=100, memory=55 << 20)
    add(kept, 1000, 2000, 3000, 4000)
    assert "Pss" not in asked
    add(kept, *range(5000, 50_000, 1000))
    assert len(kept.positions) == 5
    assert kept.positions[0] == Position(0, 0)
    kept.memory = 0
    add(kept, 60_000)
    assert kept.positions == [Position(0, 0)]


def test_the_memory_of_a_process_is_what_the_kernel_says() -> None:
    assert memory_of(os.getpid(), "Private_Dirty") > 1 << 20
    assert memory_of(os.getpid(), "Pss") >= memory_of(os.getpid(), "Private_Dirty")
    assert memory_of(0, "Pss") == 0


def test_a_worker_is_what_they_hold() -> None:
    assert {"fork", "close", "pid"} <= set(dir(Worker))
