"""All shadow pages go by generation, in batches, while vCPUs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shadowvm import events
from shadowvm.addr import Gpa
from shadowvm.config import MIB
from shadowvm.kvm.mmu import shadow, zap_all
from shadowvm.kvm.mmu.zap_all import BATCH_ZAP_PAGES
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from tests.guest_run import config_for
from tests.lab.broken import break_functions
from tests.tiny import EXIT, write_tiny

SPREAD = f"""
again: mov edi, 0x400000
mov ecx, 100
touch: mov [rdi], edi
add edi, 0x200000
loop touch
inc dword [0x7900]
cmp dword [0x7904], 1
jne again
xor eax, eax
{EXIT}"""
"""Pages in 100 large pages of the guest's, each of which takes a shadow page, until somebody stores 1 at 0x7904."""


REQUEST = "kvm.request_free_obsolete_roots()"


def run(directory: Path) -> tuple[int | None, list[tuple[str, Any]]]:
    """Zap all while the guest runs; what happened from then on."""
    config = config_for(write_tiny(directory, SPREAD), memory=256 * MIB, timeout_instructions=10_000_000)
    machine = Machine(config, lambda byte: None)
    seen: list[tuple[str, Any]] = []

    def vmm() -> None:
        word = bytes(4)
        while word == bytes(4):
            machine.sched.preempt()
            word = machine.read_guest(Gpa(0x7900), 4)
        with events.attached(sink, watched):
            kvm = machine.kvm
            kvm.slots_lock.acquire()
            zap_all.kvm_mmu_zap_all_fast(kvm)
            kvm.slots_lock.release()
            for _ in range(2):
                machine.sched.preempt()
            machine.write_guest(Gpa(0x7904), b"\x01\0\0\0")

    def sink(tracepoint: events.Tracepoint, args: tuple[Any, ...]) -> None:
        if tracepoint is not events.lock_release or args[0] is machine.kvm.mmu_lock:
            seen.append((tracepoint.name, args))

    watched = [
        events.kvm_mmu_zap_all_fast,
        events.kvm_mmu_prepare_zap_page,
        events.kvm_mmu_get_page,
        events.lock_release,
    ]
    sanitizer = Sanitizer(machine)
    with sanitizer.watching():
        machine.sched.spawn("vmm", vmm)
        outcome = machine.run()
        machine.close()
    sanitizer.finish()
    return outcome.status, seen


def test_pages_go_in_batches_and_come_back_in_the_next_generation(tmp_path: Path) -> None:
    status, seen = run(tmp_path)
    assert status == 0
    at = [name for name, _ in seen].index("kvm_mmu_zap_all_fast")
    generation, used = seen[at][1]
    assert (generation, used > 2 * BATCH_ZAP_PAGES) == (1, True)
    zapped = [args for name, args in seen[at:] if name == "kvm_mmu_prepare_zap_page"]
    assert [args[0] for args in zapped] == [0] * used
    batch = 0
    for name, _ in seen[at:]:
        batch = batch + (name == "kvm_mmu_prepare_zap_page") if name != "lock_release" else 0
        assert batch <= BATCH_ZAP_PAGES
    made = [args[0] for name, args in seen[at:] if name == "kvm_mmu_get_page"]
    assert made
    assert set(made) == {1}


@pytest.mark.parametrize(
    ("edits", "law"),
    [
        ([(shadow._find_shadow_page, "is_obsolete_sp(kvm, sp)", "sp.invalid")], "I34"),
        ([(zap_all.kvm_mmu_zap_all_fast, REQUEST, "pass"), (shadow.kvm_mmu_prepare_zap_page, REQUEST, "pass")], "I18"),
    ],
)
def test_an_obsolete_page_that_is_used_again_is_found(
    edits: Any, law: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_functions(monkeypatch, edits)
    with pytest.raises(Exception, match=f"invariant {law} violated"):
        run(tmp_path)
