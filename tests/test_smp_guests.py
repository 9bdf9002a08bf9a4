"""The bundled guests for several CPUs: one output for any number of CPUs, any quantum, and however little memory.

The runs at a quarter of what is touched are smaller than the guests' default; the least that a host can have with
these CPUs is a quarter of the default, or less.
"""

from __future__ import annotations

from functools import cache

import pytest

from shadowvm.config import MIB, VCPU_HOST_MEMORY
from tests.guest_run import Result, config_for, run_checked

SMALLER = {
    "smp-counter": "count=120 locked=16 pages=640",
    "smp-shootdown": "pages=640 changes=6 turn=3",
    "smp-sieve": "limit=5M segment=100k",
    "smp-smc": "pages=640 turns=2 patches=2",
    "smp-ipi": "rounds=8 ticks=3 restarts=2",
    "smp32": "",
}
TOUCHING_LITTLE = {"smp-ipi", "smp32"}
FEW = {
    "smp-counter": "count=60 locked=8 pages=6",
    "smp-shootdown": "pages=12 changes=24 turn=3",
    "smp-sieve": "limit=3k segment=64",
    "smp-smc": "pages=20 turns=4 patches=3",
    "smp-ipi": "rounds=2 ticks=1 restarts=1",
}
QUANTA = {2: (1, 4000), 4: (700, 700)}


def smallest(cpus: int) -> int:
    """The least host memory, in bytes."""
    return 2 * MIB + VCPU_HOST_MEMORY * (cpus - 1)


def clean(result: Result) -> bytes:
    """The output of a run without violations that the guest itself is content with."""
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    return result.output


@cache
def alone(guest: str, append: str) -> bytes:
    """The output with one CPU and 64 MiB."""
    return clean(run_checked(config_for(guest, append)))


@pytest.mark.parametrize("cpus", QUANTA)
@pytest.mark.parametrize("guest", SMALLER)
def test_output_with_the_least_memory(guest: str, cpus: int) -> None:
    append = SMALLER[guest]
    config = config_for(guest, append, smp=cpus, host_memory=smallest(cpus), quantum=QUANTA[cpus], seed=cpus)
    result = run_checked(config)
    assert clean(result) == alone(guest, append)
    assert (result.machine.host.vmstat.pswpin > 0) != (guest in TOUCHING_LITTLE)


@pytest.mark.parametrize(("cpus", "quantum"), [(2, (1, 1)), (3, (1, 90)), (5, (13, 13)), (16, (200, 3000))])
@pytest.mark.parametrize("guest", FEW)
def test_output_in_any_order(guest: str, cpus: int, quantum: tuple[int, int]) -> None:
    append = FEW[guest]
    config = config_for(guest, append, smp=cpus, quantum=quantum, seed=cpus)
    assert clean(run_checked(config)) == alone(guest, append)


@pytest.mark.parametrize("cpus", [1, 2, 9, 16])
def test_x2apics_do_the_same(cpus: int) -> None:
    append = FEW["smp-ipi"]
    result = run_checked(config_for("smp-ipi", f"{append} x2apic=1", smp=cpus))
    assert clean(result) == alone("smp-ipi", append)
