"""The kernels that try events, under QEMU's TCG: the same output as here, and a CPU that does otherwise is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest_run import config_for, run_checked

GUESTS = Path(__file__).resolve().parents[2] / "guests"

Boot = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("guest", ["traps", "traps32", "irqs"])
def test_output_is_the_same_here(boot: Boot, guest: str) -> None:
    status, output = boot(GUESTS / guest / f"{guest}.elf", cpu="max")
    assert status == 0, output
    assert run_checked(config_for(guest)).output.decode() == output


def test_intel_only_ways_into_the_kernel(boot: Boot) -> None:
    for case in ("sysenter_state", "sysexit_state"):
        status, output = boot(GUESTS / "traps/traps.elf", f"exact=1 case={case}", cpu="max,vendor=GenuineIntel")
        assert status == 0, output
        assert "1 cases, 0 differences" in output


def test_what_tcg_does_otherwise_is_noticed(boot: Boot) -> None:
    status, output = boot(GUESTS / "traps/traps.elf", "exact=1 case=int_n_dpl", cpu="max")
    assert status == 1
    assert "int_n_dpl: error code is 0x402, not 0x202" in output
