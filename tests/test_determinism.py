"""A run is a function of image, configuration and seed: nothing of the process or the machine around it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

RUNS = {
    "memtouch": ("memtouch", "size=2M"),
    "ptchurn": ("ptchurn", "pages=384 rounds=1 switches=2"),
    "demand": ("demand", "size=1M shared=512k"),
}
SAME = (
    "events",
    "events_sha256",
    "instructions",
    "output_sha256",
    "outcome",
    "kvm",
    "vmstat",
    "notifier",
    "violations",
)


def run(name: str, *, seed: int = 0, check: bool = True, **environment: str) -> dict[str, Any]:
    """The report of a run in a process of its own."""
    guest, append = RUNS[name]
    done = subprocess.run(
        [sys.executable, "-m", "shadowvm", "run", guest, "-append", append, "--host-memory", "2M"]
        + ["--seed", str(seed), "--json", "/dev/stderr", *(["--check"] if check else [])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    report, _ = json.JSONDecoder().raw_decode(done.stderr)
    return {**report, "output": done.stdout}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key in (*SAME, "output"):
        assert one.get(key) == other.get(key), key


@contextmanager
def busy_machine() -> Iterator[None]:
    """Two processes that compete for the processors."""
    spin = "while True: sum(range(1000))"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize(("name", "seed"), [("memtouch", 0), ("memtouch", 7), ("ptchurn", 7), ("demand", 3)])
def test_two_processes_agree(name: str, seed: int) -> None:
    assert_same(run(name, seed=seed, PYTHONHASHSEED="1"), run(name, seed=seed, PYTHONHASHSEED="2"))


def test_load_does_not_show() -> None:
    alone = run("memtouch", seed=3)
    with busy_machine():
        assert_same(alone, run("memtouch", seed=3))


def test_seed_changes_the_order_of_events_and_not_the_output() -> None:
    reports = [run("memtouch", seed=seed) for seed in (0, 1, 2)]
    assert len({report["events_sha256"] for report in reports}) == 3
    assert len({report["output"] for report in reports}) == 1
    assert len({report["instructions"] for report in reports}) == 1


@pytest.mark.parametrize("seed", [0, 7])
def test_looking_changes_nothing(seed: int) -> None:
    watched, plain = run("ptchurn", seed=seed), run("ptchurn", seed=seed, check=False)
    for key in ("instructions", "output", "kvm", "vmstat", "notifier"):
        assert watched[key] == plain[key], key
