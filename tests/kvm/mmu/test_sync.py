"""What the guest's flushes make of stale sptes: it finds its own entries, however it flushes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.kvm.mmu.sync import KVM_PAGE_ARRAY_NR
from shadowvm.kvm.vm import KVM_REQ_MMU_SYNC
from shadowvm.machine import Machine
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


TWENTY = 20
TWENTY_REDIRECTED = f"""
mov qword [0x400000], 4
mov qword [0x401000], 5
xor ecx, ecx
more: mov edi, ecx
shl edi, 12
add edi, 0x300000
mov qword [rdi], 0x400063
lea rax, [rdi + 0x63]
mov [rcx * 8 + 0xb018], rax
inc ecx
cmp ecx, {TWENTY}
jb more
mov rax, cr3
mov cr3, rax
mov edi, 0x600000
mov ecx, {TWENTY}
read: mov rbx, [rdi]
add edi, 0x200000
dec ecx
jnz read
mov edi, 0x300000
mov ecx, {TWENTY}
redirect: mov qword [rdi], 0x401063
add edi, 0x1000
dec ecx
jnz redirect
"""
"""Twenty page tables that are used, and changed."""
ALL_FIVE = f"""
mov ecx, {TWENTY}
check: mov rax, [rdi]
sub eax, 5
jnz bad
add rdi, 0x200000
dec ecx
jnz check
bad: {EXIT}"""
BREAKS = {
    "a flush": f"mov rax, cr3\nmov cr3, rax\nmov edi, 0x600000\n{ALL_FIVE}",
    "a link": f"mov rax, [0xa000]\nmov [0xa040], rax\nmov rdi, 0x200600000\n{ALL_FIVE}",
}
"""What makes KVM sync all twenty at once."""


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


@pytest.mark.parametrize("how", BREAKS)
def test_a_long_sync_lets_others_have_the_lock(tmp_path: Path, how: str) -> None:
    """After 16 pages. A fault, which cannot wait, is made again; a request sees to the rest before that."""
    machine = Machine(config_for(write_tiny(tmp_path, TWENTY_REDIRECTED + BREAKS[how])), lambda byte: None)
    kvm, sched = machine.kvm, machine.sched
    seen: list[tuple[int, bool, bool]] = []

    def other() -> None:
        requested = bool(machine.vcpu.requests & KVM_REQ_MMU_SYNC)
        seen.append((kvm.stat.mmu_unsync, kvm.mmu_lock.held, requested))

    def sink(tracepoint: events.Tracepoint, args: tuple[object, ...]) -> None:
        if kvm.stat.mmu_unsync == TWENTY:
            sched.spawn("other", other)
            sched.need_resched = True

    with events.attached(sink, [events.kvm_mmu_sync_page]):
        outcome = machine.run()
    machine.close()
    assert outcome.status == 0
    assert seen == [(TWENTY - KVM_PAGE_ARRAY_NR, False, how == "a link")]
