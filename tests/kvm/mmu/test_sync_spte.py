"""One spte after its guest entry has changed: kept, narrowed, widened or dropped, and never another frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from tests.guest_run import config_for, run_checked
from tests.tiny import EXIT, TWO_FRAMES, write_tiny

BASE = 0x400000
RWX, CLEAN, READ_ONLY = 0x63, 0x23, 0x61


def sync(directory: Path, before: int, after: int) -> list[tuple[int, int]]:
    """(old, new) of the spte of 6 MiB, which is read when its entry is `before`, in a sync when that is `after`."""
    source = f"""{TWO_FRAMES}
mov rax, {BASE | before:#x}
mov [0x300000], rax
invlpg [0x600000]
mov rbx, [0x600000]
mov rax, {after:#x}
mov [0x300000], rax
out 0xe9, al
invlpg [0x600000]
xor eax, eax
{EXIT}"""
    seen: list[tuple[int, int]] = []
    marks: list[object] = []

    def sink(tracepoint: events.Tracepoint, args: tuple[int, ...]) -> None:
        if tracepoint is events.kvm_pio:
            marks.append(args)
        elif len(marks) == 1 and tracepoint is events.spte_change:
            seen.append((args[1], args[2]))

    with events.attached(sink, [events.kvm_pio, events.spte_change]):
        result = run_checked(config_for(write_tiny(directory, source), "", timeout_instructions=1_000_000))
    assert result.law is None, result.report
    return seen


def rights(spte: int) -> str:
    """Such as `rwx`; empty for none."""
    return "" if not spte & 1 else "r" + ("w" if spte & 2 else "") + ("" if spte >> 63 else "x")


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (RWX, BASE | RWX, None),
        (RWX, BASE | READ_ONLY, ("rwx", "rx")),
        (RWX, BASE | CLEAN, ("rwx", "rx")),
        (READ_ONLY, BASE | RWX, ("rx", "rwx")),
        (RWX, 0, ("rwx", "")),
        (RWX, BASE | 0x43, ("rwx", "")),
        (RWX, BASE | RWX | 1 << 45, ("rwx", "")),
        (RWX, BASE + 0x1000 | RWX, ("rwx", "")),
    ],
    ids="same read-only clean writable absent unused reserved moved".split(),
)
def test_an_spte_becomes_what_its_entry_allows(
    tmp_path: Path, before: int, after: int, change: tuple[str, str] | None
) -> None:
    changes = [(rights(old), rights(new)) for old, new in sync(tmp_path, before, after)]
    assert changes == ([] if change is None else [change])
