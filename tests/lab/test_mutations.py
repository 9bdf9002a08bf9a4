"""Seeded bugs: every broken copy is found by the sanitizer, under the law that it breaks, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

import pytest

from shadowvm.api import Vm
from shadowvm.config import MIN_HOST_MEMORY, VCPU_HOST_MEMORY
from shadowvm.kvm.notifier import KvmMmuNotifier
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import exit_mmap
from shadowvm.params import parse_kvm_params
from tests.guest_run import Result, config_for, run_checked
from tests.lab import bugs
from tests.lab.broken import break_functions, replace_function
from tests.lab.bugs import MM_BUGS, MMU_BUGS, NOTIFIER_BUGS, SMP_BUGS, UNSYNC_BUGS, Bug, Guest
from tests.lab.race import PageoutRace
from tests.tiny import EXIT, write_tiny

GUESTS = [each for each in vars(bugs).values() if isinstance(each, Guest)]


def run_guest(guest: Guest, directory: Path) -> Result:
    """Run in the smallest host."""
    name = write_tiny(directory, guest.source) if guest.source else guest.name
    least = MIN_HOST_MEMORY + VCPU_HOST_MEMORY * (guest.smp - 1)
    config = config_for(
        name,
        guest.append,
        kvm_params=parse_kvm_params([guest.kvm] if guest.kvm else []),
        host_memory=least,
        seed=guest.seed,
        smp=guest.smp,
        timeout_instructions=20_000_000,
    )
    return run_checked(config, _racer(guest.race))


def _racer(race: str) -> Callable[[Machine], AbstractContextManager[None]]:
    if not race:
        return lambda machine: nullcontext()
    return lambda machine: PageoutRace(machine, pause=race == "halfway").watching()


def make_blind(monkeypatch: pytest.MonkeyPatch, laws: list[str]) -> None:
    """Let the sanitizer overlook `laws`."""
    fail = Sanitizer.fail

    def fail_unless_blind(self: Sanitizer, law: str, one_side: str, other_side: str) -> NoReturn:
        if law not in laws:
            fail(self, law, one_side, other_side)

    monkeypatch.setattr(Sanitizer, "fail", fail_unless_blind)


def verdict(result: Result) -> str | None:
    """The law that was violated, or "guest" when the guest itself noticed."""
    failed = result.outcome is not None and result.outcome.status
    return result.law or ("guest" if failed else None)


def _name(bug: Bug) -> str:
    return f"{bug.name}{', blind for ' + bug.blind if bug.blind else ''} ({bug.guest.name} {bug.guest.race})"


@pytest.mark.parametrize("bug", NOTIFIER_BUGS + MMU_BUGS + UNSYNC_BUGS + SMP_BUGS + MM_BUGS, ids=_name)
def test_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_functions(monkeypatch, bug.edits)
    if bug.blind:
        make_blind(monkeypatch, bug.blind.split())
    result = run_guest(bug.guest, tmp_path)
    assert verdict(result) in bug.laws.split(), result.report[:600] or result.outcome


@pytest.mark.parametrize(
    "guest", GUESTS, ids=lambda each: f"{each.name} {each.race or each.seed} {each.smp} {each.kvm}"
)
def test_unbroken_run_is_clean(guest: Guest, tmp_path: Path) -> None:
    result = run_guest(guest, tmp_path)
    assert result.report == ""
    assert verdict(result) is None


def test_forgotten_release_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_function(monkeypatch, KvmMmuNotifier.release, lambda self, mm: None)
    replace_function(monkeypatch, Vm.release, lambda self: exit_mmap(self.mm))
    result = run_guest(bugs.HELLO, Path())
    assert result.law == "I7"


def test_process_that_dies_before_its_vm_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_first(self: Vm) -> None:
        exit_mmap(self.mm)
        self.kvm.destroy()

    replace_function(monkeypatch, Vm.release, exit_first)
    result = run_guest(bugs.TOUCH, Path())
    assert result.report == ""


LOOPS = {
    "stores to a page table": "mov ebx, 0x9800\nagain: add qword [rbx], 2\n",
    "loads from a device": "mov ebx, 0xfee00030\nagain: mov eax, [rbx]\n",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_an_instruction_that_faults_every_time_makes_progress(tmp_path: Path, loop: str) -> None:
    source = f"mov ecx, 1100\n{loop}dec ecx\njnz again\nxor eax, eax\n{EXIT}"
    result = run_checked(config_for(write_tiny(tmp_path, source)))
    assert (result.law, verdict(result)) == (None, None), result.report
    assert result.machine.vcpu.stat.insn_emulation >= 1100
