"""One spte after its guest entry has changed: kept, narrowed, widened or dropped, and never another frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from shadowvm import events
from shadowvm.addr import PAGE_SHIFT, Gpa
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from shadowvm.kvm.mmu.spte import SPTE_MMU_WRITABLE
from shadowvm.machine import Machine
from tests.guest_run import config_for, run_checked
from tests.tiny import EXIT, TWO_FRAMES, write_tiny

BASE = 0x400000
RWX, CLEAN, READ_ONLY, NX = 0x63, 0x23, 0x61, 1 << 63


class Synced(NamedTuple):
    """changes: (old, new) of sptes; flushes: how many were asked for."""

    changes: list[tuple[int, int]]
    flushes: int


def sync(directory: Path, before: int, after: int, meanwhile: Callable[[Machine], None] | None = None) -> Synced:
    """The spte of 6 MiB, which is read when its entry is `before`, in a sync when that is `after`.

    `meanwhile` the host does something.
    """
    source = f"""mov ecx, 0xc0000080
rdmsr
or eax, 0x800
wrmsr
{TWO_FRAMES}
mov rax, {BASE | before:#x}
mov [0x300000], rax
invlpg [0x600000]
mov rbx, [0x600000]
mov rax, {after:#x}
mov [0x300000], rax
out 0xe9, al
out 0xe9, al
invlpg [0x600000]
xor eax, eax
{EXIT}"""
    seen: list[tuple[int, int]] = []
    marks: list[object] = []
    flushes: list[object] = []
    config = config_for(write_tiny(directory, source), "", timeout_instructions=1_000_000)

    @contextmanager
    def listening(machine: Machine) -> Iterator[None]:
        def sink(tracepoint: events.Tracepoint, args: tuple[int, ...]) -> None:
            if tracepoint is events.kvm_pio:
                marks.append(args)
                if len(marks) == 1 and meanwhile is not None:
                    machine.vcpu.do_outside(lambda: meanwhile(machine))
            elif len(marks) == 2:
                (flushes if tracepoint is events.kvm_flush_remote_tlbs else seen).append(args[1:])

        with events.attached(sink, [events.kvm_pio, events.spte_change, events.kvm_flush_remote_tlbs]):
            yield

    result = run_checked(config, listening)
    assert result.law is None, result.report
    return Synced(seen, len(flushes))


def rights(spte: int) -> str:
    """Such as `rwx`; empty for none."""
    return "" if not spte & 1 else "r" + ("w" if spte & 2 else "") + ("" if spte >> 63 else "x")


@pytest.mark.parametrize(
    ("before", "after", "change", "flushes"),
    [
        (RWX, BASE | RWX, None, 0),
        (RWX, BASE | READ_ONLY, ("rwx", "rx"), 1),
        (RWX, BASE | CLEAN, ("rwx", "rx"), 1),
        (RWX, BASE | RWX | NX, ("rwx", "rw"), 1),
        (READ_ONLY, BASE | RWX, ("rx", "rwx"), 0),
        (RWX | NX, BASE | RWX, ("rw", "rwx"), 0),
        (RWX, 0, ("rwx", ""), 1),
        (RWX, BASE | 0x43, ("rwx", ""), 1),
        (RWX, BASE | RWX | 1 << 45, ("rwx", ""), 1),
        (RWX, BASE + 0x1000 | RWX, ("rwx", ""), 1),
        (RWX, BASE | RWX | 1 << 59, ("rwx", "rwx"), 1),
        (RWX | 3 << 59, BASE | RWX | 1 << 59, ("rwx", "rwx"), 1),
    ],
    ids="same read-only clean nx writable executable absent unused reserved moved key other-key".split(),
)
def test_an_spte_becomes_what_its_entry_allows(
    tmp_path: Path, before: int, after: int, change: tuple[str, str] | None, flushes: int
) -> None:
    """TLBs are flushed where a right is taken away, or may be: by another protection key."""
    synced = sync(tmp_path, before, after)
    changes = [(rights(old), rights(new)) for old, new in synced.changes]
    assert changes == ([] if change is None else [change])
    assert synced.flushes == flushes


def test_what_the_dirty_log_has_protected_stays_so(tmp_path: Path) -> None:
    """Other rights are brought up to date; a store must still fault, so that it is logged."""

    def log(machine: Machine) -> None:
        slot = machine.kvm.memslots.slots[0]
        base, size = Gpa(slot.base_gfn << PAGE_SHIFT), slot.npages << PAGE_SHIFT
        machine.kvm.set_user_memory_region(slot.id, base, size, slot.userspace_addr, KVM_MEM_LOG_DIRTY_PAGES)

    ((old, new),) = sync(tmp_path, RWX, BASE | RWX | NX, log).changes
    assert (rights(old), rights(new)) == ("rx", "r")
    assert old & new & SPTE_MMU_WRITABLE
