"""`shadowvm oracle` as its user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowvm.cli.main import main
from tests.lab.broken import break_functions
from tests.lab.oracle.bugs import BUGS

Capture = pytest.CaptureFixture[str]


def test_a_run_without_difference(capfd: Capture, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    status = main(["oracle", "--ops", "150", "--seed", "3", "-smp", "2", "--check", "--json", str(report)])
    out, err = capfd.readouterr()
    assert (status, out) == (0, "")
    assert err.startswith("seed 3: 150 operations, 1 machines")
    assert err.endswith("no difference\n")
    found = json.loads(report.read_text())
    assert (found["operations"], found["smp"], found["mmu"], found["failures"]) == (150, 2, "shadow", [])


def test_a_difference_is_told_saved_and_replayed(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = next(each for each in BUGS if each.name == "no I bit in the error code")
    saved = str(tmp_path / "case.json")
    with monkeypatch.context() as patch:
        break_functions(patch, bug.edits)
        assert main(["oracle", "--ops", "3000", "--seed", "2", "--save", saved]) == 1
        err = capfd.readouterr().err
        assert "#PF(" in err
        assert f"saved: shadowvm oracle --replay {saved}" in err
        assert main(["oracle", "--replay", saved]) == 1
    assert main(["oracle", "--replay", saved]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ops", "-1"], "'-1' is no count"),
        (["--mmu", "soft"], "--mmu: 'soft'"),
        (["-smp", "0"], "-smp"),
        (["--kvm-param", "warp=9"], "warp"),
        (["--host-memory", "1M"], "--host-memory"),
        (["--replay", "/nowhere.json"], "/nowhere.json: No such file"),
        (["--ops", "10", "--json", "/nowhere/x"], "/nowhere/x"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capfd: Capture) -> None:
    assert main(["oracle", *arguments]) == 125
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
