"""A frame of the host fails while the guest runs: --poison."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from shadowvm.machine import Reason
from tests.guest_run import config_for, run_checked
from tests.kvm.smp import touch_together
from tests.kvm.test_async_pf import sti
from tests.tiny import EXIT, write_tiny

TOUCH = f"""
mov qword [0x400000], 5
mov ecx, 2000
again: dec ecx
jnz again
%s
xor eax, eax
{EXIT}
"""
WHEN = 1000


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("access", ["mov rax, [0x400008]", "mov [0x400ff8], rax", "mov eax, 0x400000\njmp rax"])
def test_an_access_ends_the_run(tmp_path: Path, mmu: str, access: str) -> None:
    config = config_for(write_tiny(tmp_path, TOUCH % access), mmu=mmu, poison=((0x400000, WHEN),))
    result = run_checked(config)
    assert result.report == ""
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.status) == (Reason.MEMORY_FAILURE, 127)
    assert "gpa 0x400" in result.outcome.text
    assert "hva 0x7f0000400000 is poisoned" in result.outcome.text


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_a_page_that_is_not_touched_again_is_not_missed(tmp_path: Path, mmu: str) -> None:
    path = write_tiny(tmp_path, TOUCH % "mov rax, [0x401000]")
    result = run_checked(config_for(path, mmu=mmu, poison=((0x400000, WHEN), (0x900000, WHEN), (1 << 39, WHEN))))
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_a_page_table_of_the_guest(tmp_path: Path, mmu: str) -> None:
    """The page directory of the first GiB, of which the next page needs an entry."""
    config = config_for(write_tiny(tmp_path, TOUCH % "mov rax, [0x600000]"), mmu=mmu, poison=((0xB000, WHEN),))
    result = run_checked(config)
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.reason is Reason.MEMORY_FAILURE
    assert "hva 0x7f000000b000 is poisoned" in result.outcome.text


@pytest.mark.parametrize("seed", range(3))
def test_frames_fail_under_pressure_and_no_law_is_broken(tmp_path: Path, seed: int) -> None:
    """Pages of which swap has a copy come back; the first whose data is lost ends the run."""
    path = write_tiny(tmp_path, sti(touch_together(2, 900)))
    poison = tuple((0x400000 + 4096 * 9 * i, 200_000 * i) for i in range(1, 40))
    host_memory = 2 * MIB + (128 << 10)
    config = config_for(path, host_memory=host_memory, smp=2, swap_latency=20_000, seed=seed, poison=poison)
    result = run_checked(config)
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0 or result.outcome.reason is Reason.MEMORY_FAILURE
