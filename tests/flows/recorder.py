"""One access of a guest as the list of what happened for it, in order.

A tiny guest brackets the access with writes to the debug console. Between them every transition is noted as its
name and the fields that do not depend on which frames were free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Hva
from shadowvm.config import MIB
from shadowvm.events import REGISTRY, Tracepoint, attached, kvm_page_fault, kvm_pio, pferr_text
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import madvise_pageout
from shadowvm.mm.pgtable import SWP_ENTRY
from tests.guest_run import config_for
from tests.tiny import write_tiny

MARK = "out 0xe9, al\n"
CONSOLE = 0xE9
SILENT = frozenset(
    "lock_acquire lock_acquired lock_release might_sleep mm_page_alloc mm_page_free sched_switch sched_wakeup".split()
)


def _pte(pte: int) -> str:
    if not pte:
        return "none"
    if not pte & 1:
        return "swap" if pte & SWP_ENTRY else "?"
    return "rw" if pte & 2 else "r"


FIELDS = {
    "kvm_exit": lambda vcpu, reason, rip, info1, info2: reason,
    "kvm_page_fault": lambda vcpu, rip, address, error: f"{address:x} {pferr_text(error) or '-'}",
    "kvm_mmu_pagetable_walk": lambda address, pferr: f"{address:x} {pferr_text(pferr) or '-'}",
    "kvm_mmu_paging_element": lambda pte, level: f"level {level}",
    "kvm_mmu_set_dirty_bit": lambda gpa: f"{gpa:x}",
    "kvm_mmu_set_accessed_bit": lambda gpa: f"{gpa:x}",
    "kvm_mmu_walker_error": lambda pferr: pferr_text(pferr) or "-",
    "kvm_mmu_seq_sample": lambda vcpu, gfn, seq: f"{gfn:x}",
    "kvm_faultin_pfn": lambda vcpu, gfn, pfn, write: f"{gfn:x} write {write:d}",
    "kvm_mmu_get_page": lambda gen, gfn, role, roots, unsync, created: (
        f"{gfn:x} {role.split()[0]} {'new' if created else 'old'}"
    ),
    "kvm_mmu_spte_requested": lambda gfn, pfn, level: f"{gfn:x}",
    "kvm_mmu_set_spte": lambda gfn, spte, sptep, level: f"{gfn:x} {_pte(spte)}",
    "spte_change": lambda sptep, old, new: f"{_pte(old)} > {_pte(new)}",
    "kvm_inj_exception": lambda vector, error, again: f"{vector} {error:x}",
    "handle_mm_fault": lambda address, write: f"write {write:d}",
    "kvm_try_async_get_page": lambda gva, gfn: f"{gfn:x}",
    "kvm_async_pf_repeated_fault": lambda gva, gfn: f"{gfn:x}",
    "kvm_async_pf_not_present": lambda token, gva: f"{token:x} {gva:x}",
    "kvm_async_pf_ready": lambda token, gva: f"{token:x} {gva:x}",
    "kvm_async_pf_completed": lambda address, gva: f"{gva:x}",
    "host_pte_change": lambda mm, vpn, old, new: f"{_pte(old)} > {_pte(new)}",
    "get_user_page": lambda mm, vpn, pfn, write: f"write {write:d}",
}


class Recorder:
    """Notes events between two marks. With `pageout`, that gfn is paged out at the first fault at `when`."""

    def __init__(self, machine: Machine, pageout: int | None, when: int) -> None:
        self.machine = machine
        self.pageout = pageout
        self.when = when
        self.events: list[str] = []
        self.marks = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen inside the block."""
        with attached(self._sink, REGISTRY.values()):
            yield

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        if tracepoint is kvm_pio and args[1] == CONSOLE:
            self.marks += 1
        elif self.marks == 1 and tracepoint.name not in SILENT:
            fields = FIELDS.get(tracepoint.name)
            self.events.append(tracepoint.name if fields is None else f"{tracepoint.name} {fields(*args)}")
        if tracepoint is kvm_page_fault and args[2] == self.when and self.pageout is not None:
            gfn, self.pageout = self.pageout, None
            self.machine.sched.spawn("madvise", lambda: self._page_out(gfn))
            self.machine.sched.preempt()

    def _page_out(self, gfn: int) -> None:
        slot = self.machine.kvm.memslots.slots[0]
        madvise_pageout(self.machine.mm, Hva(slot.userspace_addr + (gfn << PAGE_SHIFT)), PAGE_SIZE)


def flow(directory: Path, source: str, pageout: int | None = None, when: int = 0, **options: object) -> list[str]:
    """What happened between the marks of a tiny guest, which must end with status 0."""
    machine = Machine(config_for(write_tiny(directory, source), host_memory=2 * MIB, **options), lambda byte: None)
    recorder = Recorder(machine, pageout, when)
    with recorder.watching():
        outcome = machine.run()
    machine.close()
    assert outcome.status == 0, outcome
    assert recorder.marks == 2
    return recorder.events
