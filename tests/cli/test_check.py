"""`shadowvm run --check-laws` and `--check-every`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowvm.cli.main import main
from shadowvm.lab.invariants import LAWS

Capture = pytest.CaptureFixture[str]
RUN = ("run", "memtouch", "-append", "size=3M", "--host-memory", "2M")


def test_help_lists_every_law_and_runs_nothing(capfd: Capture) -> None:
    assert main(("run", "--check-laws", "help")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(LAWS)
    assert all(line.split()[1] in ("events", "state", "both") for line in lines)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--check-laws", "I1,I99"), "shadowvm: --check-laws: 'I99' is no law (--check-laws help lists them)\n"),
        (("--check-laws", ""), "shadowvm: --check-laws: '' is no law (--check-laws help lists them)\n"),
        (("--check-every", "x"), "'x' is no count"),
    ],
)
def test_bad_laws_are_one_line(capfd: Capture, flags: tuple[str, ...], text: str) -> None:
    assert main((*RUN, *flags)) == 125
    err = capfd.readouterr().err
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [("--check-laws", "I1,I22"), ("--check-every", "100"), ("--check-every", "100", "--check-laws", "I10,I22")]
)
def test_a_partial_check_changes_nothing_but_the_digest(capfd: Capture, tmp_path: Path, flags: tuple[str, ...]) -> None:
    results = []
    for name, more in (("whole", ("--check",)), ("part", flags)):
        report = tmp_path / name
        assert main((*RUN, *more, "--json", str(report))) == 0
        results.append(json.loads(report.read_text()))
    whole, part = results
    assert "events_sha256" in whole
    assert "events_sha256" not in part
    assert "  checked: " in capfd.readouterr().err
    assert part["kvm"] == whole["kvm"]
    assert part["vmstat"] == whole["vmstat"]
    assert part["violations"] == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--check-laws", "i22,I1"), "  checked: I1,I22 at every transition\n"),
        (
            ("--check-laws", "I22,I10", "--check-every", "9"),
            "  checked: I22 at each 9. exit; I10 at every transition\n",
        ),
    ],
)
def test_a_partial_check_says_what_it_has_seen(capfd: Capture, flags: tuple[str, ...], text: str) -> None:
    assert main(("run", "hello", *flags)) == 0
    assert text in capfd.readouterr().err


def test_a_whole_check_says_nothing_more(capfd: Capture) -> None:
    assert main(("run", "hello", "--check")) == 0
    assert "checked" not in capfd.readouterr().err
