"""A slice of tools/fuzz_commands: lines on a live machine, and files of savevm."""

from __future__ import annotations

import runpy
from pathlib import Path
from random import Random

import pytest

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "tools/fuzz_commands"))


def test_lines_are_answered_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verdicts = FUZZ["fuzz_lines"](Random(11), 250, "hello", "")
    assert sum(verdicts.values()) > 240
    assert verdicts["done"] > 40
    assert len(verdicts) > 20


def test_files_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verdicts = FUZZ["fuzz_snapshots"](Random(12), 500)
    assert sum(verdicts.values()) == 500
    assert len(verdicts) > 10


def test_a_machine_that_breaks_is_noticed() -> None:
    class Broken:
        done = False

        def execute(self, line: str) -> list[str]:
            raise FUZZ["ModelBug"](line)

    with pytest.raises(AssertionError, match="a bug: when"):
        FUZZ["judge"](Broken(), "when")
