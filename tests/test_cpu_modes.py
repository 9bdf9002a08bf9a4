"""Guests in every CPU mode, from the reset vector too, with plenty of memory and with little, under the sanitizer."""

from __future__ import annotations

import pytest

from shadowvm.config import MIB
from tests.guest_run import config_for, run_checked


@pytest.mark.parametrize("host_memory", [64 * MIB, 2 * MIB], ids=["plenty", "little"])
@pytest.mark.parametrize(("guest", "append"), [("real16", ""), ("pm32", "exact=1"), ("pae32", "exact=1")])
def test_guest_checks_its_own_mode(guest: str, append: str, host_memory: int) -> None:
    result = run_checked(config_for(guest, append, host_memory=host_memory))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    assert f"{guest}: ok checksum=".encode() in result.output


@pytest.mark.parametrize("guest", ["hello", "demand"])
def test_firmware_goes_from_the_reset_vector_to_a_guest(guest: str) -> None:
    plain = run_checked(config_for(guest, host_memory=2 * MIB))
    result = run_checked(config_for(guest, host_memory=2 * MIB, bios="shadowvm-fw.bin"))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
    steps, _, rest = result.output.partition(b"fw: kernel at ")
    for step in (b"real mode", b"A20 is on", b"32-bit protected mode", b"paging is on", b"long mode"):
        assert step in steps
    assert rest.partition(b"\n")[2] == plain.output
