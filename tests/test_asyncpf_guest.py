"""The guest asyncpf: the same output whatever the memory, and less time lost where KVM tells it of pages."""

from __future__ import annotations

import re

import pytest

from shadowvm.config import MIB
from shadowvm.params import KvmParams
from tests.guest_run import Result, config_for, run_checked

APPEND = "size=3M work=8000"
LATENCY = 50_000


def run(append: str = APPEND, **options: object) -> Result:
    options = {"host_memory": 2560 << 10, "swap_latency": LATENCY, **options}
    result = run_checked(config_for("asyncpf", append, **options))
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    return result


def stalled(result: Result) -> int:
    """Nanoseconds in which the CPU did nothing."""
    return result.machine.pc.clock.now() - result.machine.instructions


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_what_is_waited_for_is_time_to_compute(mmu: str) -> None:
    plenty = run(host_memory=16 * MIB, mmu=mmu)
    told, waiting = run(mmu=mmu), run(mmu=mmu, kvm_params=KvmParams(async_pf=0))
    assert told.output == waiting.output == plenty.output
    assert stalled(plenty) == 0
    assert stalled(told) < stalled(waiting) // 4
    assert told.machine.pc.clock.now() < waiting.machine.pc.clock.now()


def test_every_page_that_was_not_there_comes_back() -> None:
    report = run(f"{APPEND} report=1").output.decode()
    found = re.search(r"(\d+) pages not present, (\d+) tokens back, (\d+) units meanwhile", report)
    assert found is not None
    assert int(found[1]) == int(found[2]) > 100
    assert int(found[3]) > 1000


@pytest.mark.parametrize(("seed", "smp", "host_memory"), [(1, 1, 2 * MIB), (2, 2, 2176 << 10), (3, 1, 2 * MIB)])
def test_other_orders_of_tasks(seed: int, smp: int, host_memory: int) -> None:
    append = "size=2M tasks=7 passes=3 work=500"
    config = config_for("asyncpf", append, host_memory=host_memory, seed=seed, smp=smp, swap_latency=20_000)
    result = run_checked(config)
    assert result.report == ""
    assert result.output == run(append, host_memory=16 * MIB).output
