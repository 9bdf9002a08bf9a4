"""Reads from swap that take virtual time: the guest computes the same, later."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from tests.guest_run import Result, config_for, run_checked
from tests.kvm.smp import touch_together
from tests.tiny import write_tiny

LATENCY = 50_000


def run(swap_latency: int, **options: object) -> Result:
    config = config_for("demand", "size=1M", host_memory=2 * MIB, swap_latency=swap_latency, **options)
    result = run_checked(config)
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0
    return result


def test_the_guest_computes_the_same_and_time_passes_while_it_waits() -> None:
    quick, slow = run(0), run(LATENCY)
    assert slow.output == quick.output
    assert slow.machine.instructions == quick.machine.instructions
    assert quick.machine.pc.clock.now() == quick.machine.instructions
    waited = slow.machine.pc.clock.now() - slow.machine.instructions
    assert waited >= LATENCY * (slow.machine.host.vmstat.pgmajfault - slow.machine.host.vmstat.swpin_zero) // 2
    assert waited % LATENCY == 0
    assert run(LATENCY).machine.pc.clock.now() == slow.machine.pc.clock.now()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_other_cpus_run_while_one_waits(tmp_path: Path, seed: int) -> None:
    """Time passes unused only while both wait, as they do where they touch the same pages in the same order."""
    path = write_tiny(tmp_path, touch_together(2, 900))
    result = run_checked(config_for(path, host_memory=2176 << 10, smp=2, swap_latency=LATENCY, seed=seed))
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0
    waited = result.machine.pc.clock.now() - result.machine.instructions
    assert 0 < waited <= LATENCY * result.machine.host.vmstat.pgmajfault
