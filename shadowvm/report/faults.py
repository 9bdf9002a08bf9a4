"""What became of every spte fault: from kvm_page_fault to the kvm_entry of the same task.

The kinds are exclusive. A fault is of the first kind whose events it has: a fault that swaps in and is then emulated is
emulated. Names in KINDS are kvm_stat's and the kernel's where they have one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..x86 import PFERR_PRESENT, PFERR_WRITE
from .bins import Flags, Ints
from .timeline import Timeline, between

PF_VECTOR = 14
_RET_PF_FIXED = 5


class Kind(NamedTuple):
    """A kind of fault. explain: a sentence for the legend."""

    name: str
    explain: str


KINDS = (
    Kind("async_pf", "the page is being read from swap; the guest runs something else meanwhile"),
    Kind("guest #PF", "the guest's own tables refuse: #PF was injected"),
    Kind("mmio", "no memory slot there: a device's registers"),
    Kind("emulated", "a store to a table of the guest's that KVM write-protects"),
    Kind("major", "the host reads the page from swap"),
    Kind("minor", "the host maps a page without reading: first touch, copy on write, or read ahead before"),
    Kind("fast_page_fault", "rights given back without mmu_lock"),
    Kind("spte upgrade", "the host has the page; the spte was there, with too few rights, such as a first write"),
    Kind("spte only", "the host has the page; only the spte was missing"),
    Kind("spurious, retried", "no spte was set: one was there by then, or an invalidation came in between"),
)
ASYNC, GUEST, MMIO, EMULATED, MAJOR, MINOR, FAST, UPGRADE, SPTE, SPURIOUS = range(len(KINDS))


class Faults(NamedTuple):
    """One row for each kvm_page_fault. gfn: -1 where no memory was looked for. write: of the access. kind: in KINDS.

    instructions, events, points: retired by all vCPUs, traced and passed by the task, until the entry; -1 if the trace
    shows none.
    """

    event: Ints
    now: Ints
    vcpu: Ints
    gfn: Ints
    write: Flags
    kind: Ints
    instructions: Ints
    events: Ints
    points: Ints


def find_faults(timeline: Timeline) -> Faults:
    """Every fault, in order."""
    event = timeline.hits["kvm_page_fault"].event
    first = timeline.place[event]
    entry = timeline.next_in_task(event, timeline.places("kvm_entry"))
    following = timeline.next_in_task(event, timeline.places("kvm_page_fault"))
    again = np.where(following < 0, timeline.task_end(event), following)
    ended = (entry >= 0) & (entry < again)
    last = np.where(ended, entry, again)
    entered = timeline.at_place[np.where(ended, entry, 0)] if len(event) else event
    now = timeline.now[event]
    return Faults(
        event=event,
        now=now,
        vcpu=timeline.field("kvm_page_fault", "vcpu_id"),
        gfn=_gfns(timeline, first, last),
        write=timeline.field("kvm_page_fault", "error_code") & PFERR_WRITE != 0,
        kind=_kinds(timeline, first, last),
        instructions=np.where(ended, timeline.now[entered] - now, -1),
        events=np.where(ended, entry - first - 1, -1),
        points=np.where(ended, timeline.points[np.where(ended, entry, 0)] - timeline.points[first + 1], -1),
    )


def _gfns(timeline: Timeline, first: Ints, last: Ints) -> Ints:
    """That of the first kvm_mmu_seq_sample; of two-dimensional paging, of the address."""
    gfn = np.full(len(first), -1, np.int64)
    if timeline.tdp:
        gfn = timeline.field("kvm_page_fault", "fault_address") >> 12
    sampled = timeline.place[timeline.hits["kvm_mmu_seq_sample"].event]
    order = np.argsort(sampled)
    places = np.append(sampled[order], timeline.total)
    gfns = np.append(timeline.field("kvm_mmu_seq_sample", "gfn")[order], -1)
    at = np.searchsorted(places, first, "right")
    return np.where(places[at] < last, gfns[at], gfn)


def _kinds(timeline: Timeline, first: Ints, last: Ints) -> Ints:
    def has(*tracepoints: str) -> Flags:
        return between(timeline.places(*tracepoints), first, last) > 0

    def has_some(tracepoint: str, field: str, value: int) -> Flags:
        chosen = timeline.hits[tracepoint].event[timeline.field(tracepoint, field) == value]
        return between(np.sort(timeline.place[chosen]), first, last) > 0

    rules = {
        ASYNC: has("kvm_try_async_get_page"),
        GUEST: has_some("kvm_inj_exception", "exception", PF_VECTOR),
        MMIO: has("handle_mmio_page_fault", "vcpu_match_mmio", "mark_mmio_spte", "kvm_mmio"),
        EMULATED: has("kvm_emulate_insn"),
        MAJOR: has("swap_readpage"),
        MINOR: has("handle_mm_fault"),
        FAST: has_some("fast_page_fault", "ret", _RET_PF_FIXED),
        UPGRADE: has("kvm_mmu_set_spte") & (timeline.field("kvm_page_fault", "error_code") & PFERR_PRESENT != 0),
        SPTE: has("kvm_mmu_set_spte"),
    }
    return np.select(list(rules.values()), list(rules), SPURIOUS)
