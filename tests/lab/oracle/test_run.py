"""The MMU agrees with the flat model; where it is broken the oracle finds out, and the same seed finds the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.lab.oracle.case import read_case
from shadowvm.lab.oracle.model import Model
from shadowvm.lab.oracle.run import Report, random_run, replay
from shadowvm.lab.oracle.settle import Attempt, settle
from shadowvm.lab.oracle.setup import Setup
from tests.lab.broken import break_functions
from tests.lab.oracle.bugs import BUGS, Bug

CASES = sorted((Path(__file__).parent.parent / "oracle_cases").glob("*.json"))
OPERATIONS = 1500


def run(setup: Setup, operations: int, seed: int) -> Report:
    *_, report = random_run(setup, operations, seed)
    return report


@pytest.mark.parametrize(("mmu", "smp", "seed"), [("shadow", 1, 1), ("shadow", 3, 2), ("tdp", 1, 3), ("tdp", 3, 4)])
def test_machine_and_model_agree(mmu: str, smp: int, seed: int) -> None:
    *_, report = random_run(Setup(smp, mmu), 900, seed, pinned=())
    assert [each.text for each in report.failures] == []
    assert (report.operations, report.episodes) == (900, 1)


def test_the_sanitizer_agrees_too() -> None:
    assert [each.text for each in run(Setup(smp=2, check=True), 400, 4).failures] == []


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    setup, operations = read_case(str(path))
    failure = replay(setup, operations)
    assert failure is None, failure.details or failure.text


def test_a_seed_is_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[tuple[object, ...]] = []

    def noted(model: Model, tried: list[Attempt]) -> None:
        outcomes.append(tuple(attempt[1:] for attempt in tried))
        settle(model, tried)

    monkeypatch.setattr("shadowvm.lab.oracle.operations.settle", noted)
    run(Setup(smp=2), 500, 9)
    first, outcomes[:] = list(outcomes), []
    run(Setup(smp=2), 500, 9)
    assert outcomes == first


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    break_functions(monkeypatch, bug.edits)
    *_, report = random_run(Setup(bug.smp, bug.mmu), OPERATIONS, bug.seed, pinned=())
    assert report.failures
