"""tools/bench: every row is measured, and its numbers are what they say. Not the speeds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tools/bench"
LOOPS = ("mixed", "copy", "touch", "chase", "cr3", "user-pf")
ROWS = [name for loop in LOOPS for name in (loop, f"{loop}-icount")]
ROWS += ["self-ipi", "apic-timer", "syscall", "port-in", "cpuid", "cr3-tcg", "pf-tcg", "ipi-pair"]
ROWS += [
    "spte-fault",
    "fault-1g",
    "fault-4g",
    "fault-4g-tdp",
    "resident",
    "swap-file",
    "swap",
    "swap-guest",
    "trace",
    "no-listener",
    "startup",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True, check=False)


def test_quick_run_has_every_row_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = run("--quick", "--repeat", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", *ROWS]
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == ROWS
    for row in rows:
        if math.isnan(row["base"]):
            continue
        assert row["base"] > 0
        assert row["value"] > 0
        assert row["ratio"] == pytest.approx(row["value"] / row["base"])
        good = {True: "ok", False: "miss"}
        assert row["verdict"] == ("-" if row["goal"] is None else good[row["ratio"] <= row["goal"]])


def test_named_rows_alone_are_measured() -> None:
    done = run("--quick", "--repeat", "1", "touch-icount", "mixed")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", "mixed", "touch-icount"]


@pytest.mark.parametrize("arguments", [("nosuch",), ("--repeat", "0")])
def test_bad_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bench: error: ")
