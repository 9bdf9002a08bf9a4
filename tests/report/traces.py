"""Traces that a test writes down event by event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shadowvm.events import REGISTRY
from shadowvm.trace.format import (
    COUNTS,
    EVENTS,
    FILE_HEADER,
    HEAD,
    MAGIC,
    TAIL,
    VERSION,
    Kind,
    encode_column,
    encode_numbers,
    flat_fields,
    record,
    to_json,
)

VCPU, KSWAPD, EXIT = "CPU 0/KVM", "kswapd0", "exit"
HVA = 0x7F0000000000
LEAF, LINK, HUGE = 0xE63, 0x827, 0xEE3
"""Bits of a leaf spte of 4 KiB, of a link, and of a leaf of 2 MiB."""
PRESENT, SWAPPED = 0x67, 0x200
"""Bits of host ptes."""


class E(NamedTuple):
    """An event: ns, task, tracepoint, its fields (structures by member)."""

    now: int
    task: str
    name: str
    args: tuple[Any, ...] = ()


def fault(now: int, gfn: int, *between: E, task: str = VCPU, vcpu: int = 0) -> list[E]:
    """A fault that looks for a gfn, what happens in it, and the entry."""
    return [
        E(now, task, "kvm_page_fault", (vcpu, 0x1000, gfn << 12, 2)),
        E(now, task, "kvm_mmu_seq_sample", (vcpu, gfn, 7)),
        *between,
        E(now, task, "kvm_entry", (vcpu, 0x1000)),
    ]


def spte(now: int, sptep: int, old: int, new: int, task: str = VCPU) -> E:
    """A store to a shadow table."""
    return E(now, task, "spte_change", (sptep, old, new))


def pte(now: int, gfn: int, old: int, new: int, task: str = VCPU) -> E:
    """A store to the host pte of a gfn."""
    return E(now, task, "host_pte_change", (1, (HVA >> 12) + gfn, old, new))


def invalidation(now: int, gfn: int, pages: int, *inside: E, task: str = KSWAPD, why: str = "CLEAR") -> list[E]:
    """From range_start to range_end."""
    args = (HVA + (gfn << 12), HVA + (gfn + pages << 12), why, 1, 1)
    name = "mmu_notifier_invalidate_range"
    return [E(now, task, f"{name}_start", args), *inside, E(now, task, f"{name}_end", args)]


def write_trace(path: Path, events: Sequence[E], *, cut: bool = False, tail: Any = None, **config: Any) -> str:
    """A trace file of these events, in one chunk; `cut`: without its end."""
    header = {
        "guest": "made",
        "config": {"host_memory": 1 << 20, "memory": 1 << 24, "smp": 1, "mmu": "shadow", **config},
        "memslots": [{"id": 0, "gpa": 0, "size": 1 << 24, "hva": HVA, "flags": 0}],
    }
    parts = [FILE_HEADER.pack(MAGIC, VERSION), record(HEAD, to_json(header))]
    if events:
        parts.append(record(EVENTS, _chunk(events)))
    if not cut:
        parts.append(record(TAIL, to_json({"events": len(events), **(tail or {})})))
    path.write_bytes(b"".join(parts))
    return str(path)


def _chunk(events: Sequence[E]) -> bytes:
    names = [name for name in REGISTRY if any(event.name == name for event in events)]
    tasks = list(dict.fromkeys(event.task for event in events))
    strings: list[str] = []

    def number_of(text: str) -> int:
        if text not in strings:
            strings.append(text)
        return strings.index(text)

    def column(values: Sequence[Any]) -> bytes:
        return encode_column(list(values), number_of)

    columns = [encode_numbers(Kind.UNSIGNED, np.array([names.index(event.name) for event in events], np.uint64))]
    marks = (range(len(events)), [event.now for event in events], [tasks.index(event.task) for event in events])
    columns += [column(each) for each in marks]
    for name in names:
        rows = [event.args for event in events if event.name == name]
        columns += [column(values) for values in zip(*rows, strict=True)]
    prelude = to_json(
        {
            "tracepoints": [
                (number, name, REGISTRY[name].system, flat_fields(REGISTRY[name].fields))
                for number, name in enumerate(names)
            ],
            "tasks": [
                (name, 100 + number, int(name.split()[1][:-4]) if "KVM" in name else None)
                for number, name in enumerate(tasks)
            ],
            "strings": strings,
        }
    )
    head = len(prelude).to_bytes(4, "little"), prelude, COUNTS.pack(len(events), len(events))
    return b"".join((*head, *columns))
