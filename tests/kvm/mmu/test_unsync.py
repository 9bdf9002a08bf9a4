"""Leaf tables that the guest writes without an exit: how they become so, and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.params import KvmParams
from tests.guest_run import Result, config_for, run_checked
from tests.kvm.smp import touch_together
from tests.tiny import EXIT, REDIRECT, TWO_FRAMES, write_tiny

OK = f"xor eax, eax\n{EXIT}"
STORES = TWO_FRAMES + "".join(f"mov qword [{0x300008 + 8 * n:#x}], 0x401063\n" for n in range(2)) + OK
"""Two entries that were empty become valid."""


def run(directory: Path, source: str, **more: object) -> Result:
    result = run_checked(config_for(write_tiny(directory, source), timeout_instructions=1_000_000, **more))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
    return result


@pytest.mark.parametrize(("unsync", "emulated"), [(1, 1), (0, 3)])
def test_a_leaf_table_is_written_with_one_fault_and_any_other_by_emulation(
    tmp_path: Path, unsync: int, emulated: int
) -> None:
    machine = run(tmp_path, STORES, kvm_params=KvmParams(unsync=unsync, unprotect_retry=0)).machine
    assert machine.vcpu.stat.insn_emulation == emulated  # the one is the link of the table


def test_it_is_unsync_until_the_next_flush(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    with events.attached(
        lambda tracepoint, args: seen.append((tracepoint.name, args[1])),
        [events.kvm_mmu_unsync_page, events.kvm_mmu_sync_page],
    ):
        run(tmp_path, f"{TWO_FRAMES}{REDIRECT}{REDIRECT}mov rax, cr3\nmov cr3, rax\n{REDIRECT}{OK}")
    unsync, sync = ("kvm_mmu_unsync_page", 0x300), ("kvm_mmu_sync_page", 0x300)
    assert seen == [unsync, sync, unsync, sync]  # at last it is zapped


def test_flushes_exit_only_while_a_page_is_unsync(tmp_path: Path) -> None:
    flushes = "mov rax, cr3\nmov cr3, rax\ninvlpg [0x600000]\n" * 10
    without = run(tmp_path, f"{TWO_FRAMES}{flushes}{OK}").machine.vcpu.stat
    assert without.invlpg == 0
    once = run(tmp_path, f"{TWO_FRAMES}{REDIRECT}{flushes}{OK}").machine.vcpu.stat
    assert once.invlpg == 0  # the CR3 load before it has synced the page
    assert once.exits == without.exits + 2  # the store, the load
    between = run(tmp_path, TWO_FRAMES + REDIRECT + 10 * "invlpg [0x600000]\n" + OK).machine.vcpu.stat
    assert between.invlpg == 10


def test_a_page_directory_stays_protected_though_it_is_a_leaf_table_too(tmp_path: Path) -> None:
    """The directory at 0xb000 is made a page table of its own, for 8 MiB."""
    source = f"{TWO_FRAMES}mov qword [0xb020], 0xb063\nmov rax, [0x803000]\nmov qword [0xb0f0], 0\n{OK}"
    machine = run(tmp_path, source, kvm_params=KvmParams(unprotect_retry=0)).machine
    assert machine.vcpu.stat.insn_emulation == 3


def test_a_zapped_unsync_page_is_counted_no_more(tmp_path: Path) -> None:
    machine = run(tmp_path, f"{TWO_FRAMES}{REDIRECT}{OK}").machine
    assert machine.kvm.stat.mmu_unsync == 0
    assert not machine.vcpu.engine.controls.invlpg


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_several_cpus(tmp_path: Path, seed: int) -> None:
    run(tmp_path, touch_together(2, 64), smp=2, seed=seed)
