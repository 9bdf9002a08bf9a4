"""Failing sequences are cut down to what matters."""

from __future__ import annotations

import pytest

from shadowvm.lab.oracle import shrink as module
from shadowvm.lab.oracle.run import Failure, random_run, replay
from shadowvm.lab.oracle.setup import Setup
from shadowvm.lab.oracle.shapes import Operation
from shadowvm.lab.oracle.shrink import shrink
from tests.lab.broken import break_functions
from tests.lab.oracle.bugs import BUGS

SETUP = Setup()


def needs(*needed: Operation, kind: str = "difference") -> object:
    """A replay that fails by sequences which hold all of `needed`, after the last of them."""

    def fake(setup: Setup, operations: list[Operation]) -> Failure | None:
        if any(each not in operations for each in needed):
            return None
        last = max(operations.index(each) for each in needed)
        return Failure("seen", operations[: last + 1], kind)

    return fake


def test_only_what_is_needed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence: list[Operation] = [["invlpg", 0, n] for n in range(200)]
    monkeypatch.setattr(module, "replay", needs(sequence[3], sequence[77], sequence[150]))
    found = shrink(SETUP, Failure("seen", sequence, "difference"))
    assert found.operations == [sequence[3], sequence[77], sequence[150]]


def test_another_failure_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence: list[Operation] = [["invlpg", 0, n] for n in range(8)]
    monkeypatch.setattr(module, "replay", needs(sequence[2], kind="KeyError"))
    assert shrink(SETUP, Failure("seen", sequence, "difference")).operations == sequence


def test_accesses_become_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "replay", lambda setup, operations: Failure("seen", list(operations), "difference"))
    found = shrink(SETUP, Failure("seen", [["access", 0, "r8", 5, 0, 3, 1]], "difference"))
    assert found.operations == [["access", 0, "r8", 5, 0, 0, 0]]


def test_a_real_bug_is_left_with_a_handful(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = next(each for each in BUGS if each.name == "rights of the upper levels forgotten")
    break_functions(monkeypatch, bug.edits)
    *_, report = random_run(SETUP, 400, bug.seed, pinned=())
    failure = report.failures[0]
    found = shrink(failure.setup, failure)
    assert len(found.operations) <= 12
    again = replay(failure.setup, found.operations)
    assert again is not None
    assert again.text == found.text
    monkeypatch.undo()
    assert replay(failure.setup, found.operations) is None
