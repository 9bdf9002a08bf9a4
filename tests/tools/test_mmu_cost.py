"""tools/mmu_cost: every variant of a guest is run, and the counters are those of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/mmu_cost"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_variant_has_a_row_with_its_counters(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    done = run("--quick", "--repeat", "1", "--json", str(file), "ptchurn")
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == len(done.stdout.splitlines()) - 1 >= 10
    assert {row["mmu"] for row in rows} == {"shadow", "tdp"}
    assert rows[0]["time"] == 1
    assert all(row["exits"] >= row["faults"] > row["fast"] for row in rows)


def test_what_the_host_does_meanwhile_makes_faults_that_need_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    done = run("--quick", "--repeat", "1", "--json", str(file), "dirty_log_test/log", "chase/age", "smp-shootdown")
    assert done.returncode == 0, done.stderr
    fast = {(row["guest"], row["mmu"], row["switch"]): row["fast"] for row in json.loads(file.read_text())["rows"]}
    assert fast["dirty_log_test/log", "tdp", "-"] > 0
    assert fast["chase/age", "tdp", "eptad=0"] > 0
    assert all(number == 0 for (_, mmu, switch), number in fast.items() if mmu == "shadow" or "fault=0" in switch)


def test_what_does_not_exist_is_refused() -> None:
    for arguments in (["nosuch"], ["--repeat", "0"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("mmu_cost: error: ")
