"""Guests with several CPUs: one run for each seed, one answer for all, and no law broken while memory is taken away."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB, VCPU_HOST_MEMORY, MachineConfig
from shadowvm.machine import Machine
from shadowvm.trace.recorder import EventDigest
from tests.guest_run import config_for, run_checked
from tests.kvm.smp import touch_together
from tests.tiny import write_tiny


def config(directory: Path, cpus: int, pages: int, **more: object) -> MachineConfig:
    image = write_tiny(directory, touch_together(cpus, pages))
    return config_for(image, smp=cpus, timeout_instructions=50_000_000, **more)


def smallest(cpus: int) -> int:
    return 2 * MIB + VCPU_HOST_MEMORY * (cpus - 1)


def digest_of(config: MachineConfig) -> tuple[int | None, str]:
    """Exit status and digest of the events of a run."""
    machine = Machine(config, lambda byte: None)
    digest = EventDigest(machine)
    try:
        with digest.watching():
            outcome = machine.run()
    finally:
        machine.close()
    return outcome.status, digest.hexdigest()


@pytest.mark.parametrize(("cpus", "quantum"), [(2, (10_000, 10_000)), (2, (1, 3000)), (4, (50, 50)), (16, (300, 9000))])
@pytest.mark.parametrize("seed", [0, 3])
def test_no_law_is_broken_while_memory_is_taken_away(
    cpus: int, quantum: tuple[int, int], seed: int, tmp_path: Path
) -> None:
    pages = smallest(cpus) // 4096
    result = run_checked(config(tmp_path, cpus, pages, host_memory=smallest(cpus), seed=seed, quantum=quantum))
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0, result.outcome
    assert result.machine.host.vmstat.pswpin > 0
    assert all(vcpu.stat.pf_fixed > 0 for vcpu in result.machine.vcpus)


def test_a_hundred_runs_with_one_seed_are_one_run(tmp_path: Path) -> None:
    one = config(tmp_path, 3, 12, seed=5, quantum=(20, 400))
    assert len({digest_of(one) for _ in range(100)}) == 1


def test_a_hundred_seeds_are_a_hundred_runs_with_one_answer(tmp_path: Path) -> None:
    runs = []
    for seed in range(1, 101):
        machine = Machine(config(tmp_path, 3, 40, seed=seed, quantum=(10, 900)), lambda byte: None)
        outcome = machine.run()
        machine.close()
        runs.append((outcome.status, *(vcpu.engine.instructions for vcpu in machine.vcpus)))
    assert {status for status, *_ in runs} == {0}
    assert len(set(runs)) > 30
