"""Own kernels that try the CPU's events one by one, against the manual, with plenty of memory and with little."""

from __future__ import annotations

import re

import pytest

from shadowvm.config import MIB
from tests.guest_run import Result, config_for, run_checked

LIMIT = 50_000_000
"""Four times what the longest takes: a CPU that goes wrong may fault for ever."""


def passed(result: Result, guest: str) -> bytes:
    """The output of a run that the guest and the sanitizer are content with."""
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    assert re.search(rf"cases, 0 differences\n{guest}: ok checksum=0x[0-9a-f]{{16}}\n$".encode(), result.output)
    return result.output


@pytest.mark.parametrize("append", ["", "exact=1"])
@pytest.mark.parametrize("guest", ["traps", "traps32", "irqs"])
def test_every_event_is_as_the_manual_says(guest: str, append: str) -> None:
    plenty = passed(run_checked(config_for(guest, append, timeout_instructions=LIMIT)), guest)
    little = config_for(guest, append, host_memory=2 * MIB, seed=7, timeout_instructions=LIMIT)
    assert passed(run_checked(little), guest) == plenty


def test_one_case_can_be_chosen_by_number_or_name() -> None:
    by_name = run_checked(config_for("traps", "case=double_fault"))
    listed = run_checked(config_for("traps", "list=1"))
    number = re.search(rb"^(\d+) double_fault$", listed.output, re.MULTILINE)
    assert number is not None
    by_number = run_checked(config_for("traps", f"case={number[1].decode()}"))
    assert by_name.output == by_number.output
    assert by_name.output.startswith(b"1 cases, 0 differences\n")


def test_a_case_that_does_not_exist_ends_with_2() -> None:
    result = run_checked(config_for("traps", "case=nonsense"))
    assert result.outcome is not None
    assert (result.outcome.status, result.output) == (2, b"traps: no such case\n")
