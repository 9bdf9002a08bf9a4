"""What the guest's flushes make of stale sptes: it finds its own entries, however it flushes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.params import KvmParams
from tests import tiny
from tests.guest_run import Result, config_for, run_checked
from tests.tiny import EXIT, IS_FIVE, REDIRECT, TWO_FRAMES, write_tiny

FLUSHES = {
    "CR3": tiny.REDIRECTED_CR3,
    "INVLPG": tiny.REDIRECTED_INVLPG,
    "CR4.PGE": tiny.REDIRECTED_PGE,
    "new link": tiny.REDIRECTED_THEN_LINKED,
    "new link above": tiny.REDIRECTED_THEN_LINKED_ABOVE,
}
TO_ANOTHER_ROOT = f"""{TWO_FRAMES}
mov esi, 0x9000
mov edi, 0x308000
mov ecx, 512
rep movsq
mov eax, 0x308000
mov cr3, rax
mov rbx, [0x600000]
mov eax, 0x9000
mov cr3, rax
mov rbx, [0x600000]
{REDIRECT}mov eax, 0x308000
mov cr3, rax
mov edi, 0x600000
{IS_FIVE}"""
"""Two PML4s over the same tables: the store happens under one, the flush is a switch to the other, which is kept."""


def run(directory: Path, source: str, **knobs: int) -> Result:
    config = config_for(write_tiny(directory, source), kvm_params=KvmParams(**knobs), timeout_instructions=1_000_000)
    result = run_checked(config)
    assert result.law is None, result.report
    return result


@pytest.mark.parametrize("unsync", [1, 0])
@pytest.mark.parametrize("source", [*FLUSHES.values(), TO_ANOTHER_ROOT], ids=[*FLUSHES, "another root"])
def test_after_a_flush_the_guest_finds_what_its_tables_say(tmp_path: Path, source: str, unsync: int) -> None:
    result = run(tmp_path, source, unsync=unsync)
    assert result.outcome is not None
    assert result.outcome.status == 0


def test_before_the_flush_the_old_translation_may_be_seen(tmp_path: Path) -> None:
    """So does a CPU that has it in its TLB; without unsync pages a store to a table is seen at once."""
    source = f"{TWO_FRAMES}{REDIRECT}mov edi, 0x600000\n{IS_FIVE}"
    for unsync, status in ((1, 4 - 5 & 0x7F), (0, 0)):
        outcome = run(tmp_path, source, unsync=unsync).outcome
        assert outcome is not None
        assert outcome.status & 0x7F == status


def test_invlpg_leaves_the_page_unsync_and_other_entries_alone(tmp_path: Path) -> None:
    source = f"{TWO_FRAMES}mov rbx, [0x600000]\n{REDIRECT}invlpg [0x601000]\n{EXIT}"
    seen: list[str] = []
    with events.attached(
        lambda tracepoint, args: seen.append(tracepoint.name),
        [events.kvm_mmu_unsync_page, events.kvm_mmu_sync_page, events.kvm_mmu_prepare_zap_page],
    ):
        run(tmp_path, source)
    assert seen[:2] == ["kvm_mmu_unsync_page", "kvm_mmu_prepare_zap_page"]


def test_flush_on_reuse_makes_every_load_of_cr3_exit(tmp_path: Path) -> None:
    source = 10 * "mov rax, cr3\nmov cr3, rax\n" + EXIT
    natively, checked = (run(tmp_path, source, flush_on_reuse=knob).machine.vcpu.stat.exits for knob in (0, 1))
    assert checked == natively + 10
