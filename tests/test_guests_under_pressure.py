"""The main promise: a guest's output does not depend on how little memory the host has.

Every guest that checks its own work runs under the sanitizer: with default parameters with a quarter of the memory
that it touches, and, smaller, with a half and an eighth. 2 MiB is the least that a host can have.
"""

from __future__ import annotations

from functools import cache

import pytest

from shadowvm.addr import PAGE_SIZE
from shadowvm.config import MIB, MIN_HOST_MEMORY, parse_size
from shadowvm.guests import bundled_guests
from shadowvm.params import KvmParams
from tests.guest_run import Result, config_for, run_checked

SMALLER = {
    "asyncpf": ("size=3M work=2000", 3400 << 10),
    "chase": ("nodes=64k steps=5000", 4 * MIB),
    "demand": ("size=3M shared=512k", 4 * MIB),
    "hello": ("", 64 << 10),
    "matmul": ("n=512 k=8", 2 * MIB),
    "memtouch": ("size=6M", 6 * MIB),
    "ptchurn": ("pages=640 rounds=1", 4 * MIB),
    "qsort": ("keys=512k", 4 * MIB),
    "sieve": ("limit=4M", 4 * MIB),
    "smc": ("pages=768 rounds=1", 3 * MIB),
}
"""Parameters for the runs that are not at a quarter, and what the guest touches then."""

GUESTS = sorted(SMALLER)
TOUCHES = {guest.name: parse_size(guest.touches, guest.name) for guest in bundled_guests()}


def host_memory(touched: int, share: int) -> int:
    """A share of what is touched, in whole pages and not below the minimum."""
    return max(touched // share & -PAGE_SIZE, MIN_HOST_MEMORY)


@cache
def plenty(guest: str, append: str) -> bytes:
    """The output with 64 MiB."""
    return clean(run_checked(config_for(guest, append))).output


def clean(result: Result) -> Result:
    """The result of a run without violations that the guest itself is content with."""
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    return result


@pytest.mark.parametrize("guest", GUESTS)
def test_default_run_at_a_quarter(guest: str) -> None:
    touched = TOUCHES[guest]
    result = clean(run_checked(config_for(guest, host_memory=host_memory(touched, 4))))
    assert result.output == plenty(guest, "")
    if touched <= MIN_HOST_MEMORY:
        return
    vmstat = result.machine.host.vmstat
    assert vmstat.pswpout > 0
    assert vmstat.pswpin > 0
    assert result.machine.kvm.stat.remote_tlb_flush > 0


NESTED = [(guest, KvmParams(), 4) for guest in GUESTS] + [
    ("demand", KvmParams(eptad=0), 5),
    ("matmul", KvmParams(tdp_mmu=0, eptad=0), 6),
    ("demand", KvmParams(tdp_mmu=0), 7),
    ("demand", KvmParams(eptad=0, fast_page_fault=0), 8),
]
"""Two-dimensional paging: guest, knobs, seed."""


@pytest.mark.parametrize(("guest", "params", "seed"), NESTED, ids=[f"{guest} {seed}" for guest, _, seed in NESTED])
def test_smaller_run_at_a_quarter_with_two_dimensional_paging(guest: str, params: KvmParams, seed: int) -> None:
    append, touched = SMALLER[guest]
    config = config_for(guest, append, host_memory=host_memory(touched, 4), seed=seed, mmu="tdp", kvm_params=params)
    result = clean(run_checked(config))
    assert result.output == plenty(guest, append)
    assert result.machine.vcpu.stat.pf_guest == 0
    assert not result.machine.kvm.page_hash


@pytest.mark.parametrize("share", [2, 8])
@pytest.mark.parametrize("guest", GUESTS)
def test_smaller_run_at_another_share(guest: str, share: int) -> None:
    append, touched = SMALLER[guest]
    result = clean(run_checked(config_for(guest, append, host_memory=host_memory(touched, share), seed=share)))
    assert result.output == plenty(guest, append)
