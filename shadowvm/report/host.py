"""The host's side: where guest pages are (host ptes), frames in use, and who reclaims."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..mm.pgtable import SWP_ENTRY
from ..x86 import PT_PRESENT
from .bins import Axis, Flags, Ints
from .timeline import Timeline, numbers

_CREATED = frozenset(("CREATE", "MOVE"))


class Slot(NamedTuple):
    """A memory slot: pages from vpn and gfn on."""

    vpn: int
    gfn: int
    npages: int


class HostPtes(NamedTuple):
    """One row for each change of a host pte under guest memory, in order. old, new: the ptes.

    before: (gfn, pte) of the pages that were somewhere already when the trace began.
    """

    event: Ints
    now: Ints
    gfn: Ints
    old: Ints
    new: Ints
    before: tuple[Ints, Ints]

    @property
    def swapped_in(self) -> Flags:
        """Rows that bring a page back."""
        return is_swapped(self.old) & is_present(self.new)

    @property
    def swapped_out(self) -> Flags:
        """Rows after which the page is in swap alone."""
        return ~is_swapped(self.old) & is_swapped(self.new)

    def gfn_of_frame(self, pfn: Ints, event: Ints) -> Ints:
        """The gfn whose host pte named a frame last before an event; -1 if none did."""
        rows = np.flatnonzero(is_present(self.new))
        frames = self.new[rows] >> 12 & (1 << 40) - 1
        order = np.lexsort((self.event[rows], frames))
        top = 1 + max([0, *self.event[-1:].tolist(), *event.tolist()])
        _, numbers = np.unique(np.concatenate([frames[order], pfn]), return_inverse=True)
        keys = numbers.ravel() * top
        at = np.searchsorted(keys[: len(order)] + self.event[rows][order], keys[len(order) :] + event, "left") - 1
        found = np.append(frames[order], -1)[at] == pfn
        return np.where(found & (at >= 0), np.append(self.gfn[rows][order], -1)[at], -1)


def is_present(pte: Ints) -> Flags:
    """A frame is there."""
    present: Flags = pte & PT_PRESENT != 0
    return present


def is_swapped(pte: Ints) -> Flags:
    """The page is in swap."""
    swapped: Flags = pte & (PT_PRESENT | SWP_ENTRY) == SWP_ENTRY
    return swapped


def memory_slots(timeline: Timeline) -> list[Slot]:
    """Those at the start, and those made later: the last one counts where they overlap."""
    slots = []
    told = timeline.header.get("memslots")
    for each in told if isinstance(told, list) else []:
        hva, gpa, size = (_number(each, name) for name in ("hva", "gpa", "size"))
        slots.append(Slot(hva >> 12, gpa >> 12, size >> 12))
    changes = [name.upper() for name in timeline.words("kvm_set_memslot", "change")]
    fields = [timeline.field("kvm_set_memslot", name).tolist() for name in ("hva", "gpa", "size")]
    for change, hva, gpa, size in zip(changes, *fields, strict=True):
        if change in _CREATED:
            slots.append(Slot(hva >> 12, gpa >> 12, size >> 12))
    return slots


def _number(slot: Any, name: str) -> int:
    value = slot.get(name) if isinstance(slot, dict) else None
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def find_ptes(timeline: Timeline, slots: list[Slot]) -> HostPtes:
    """Changes of host ptes that a slot covers."""
    event = timeline.hits["host_pte_change"].event
    gfn = _gfns(timeline.field("host_pte_change", "vpn"), slots)
    old, new = (timeline.field("host_pte_change", name) for name in ("old_pte", "new_pte"))
    rows = np.flatnonzero(gfn >= 0)
    # What a page's first change replaces was there before, also if only the take-down changes it.
    later = _gfns(numbers(timeline.torn_down, "vpn"), slots)
    every, first = np.unique(np.concatenate([gfn, later]), return_index=True)
    pte = np.concatenate([old, numbers(timeline.torn_down, "old_pte")])[first]
    there = (every >= 0) & (pte != 0)
    before = every[there], pte[there]
    return HostPtes(event[rows], timeline.now[event[rows]], gfn[rows], old[rows], new[rows], before)


def _gfns(vpn: Ints, slots: list[Slot]) -> Ints:
    """-1 for what no slot covers."""
    gfn = np.full(len(vpn), -1, np.int64)
    for slot in slots:
        inside = (vpn >= slot.vpn) & (vpn < slot.vpn + slot.npages)
        gfn[inside] = vpn[inside] - slot.vpn + slot.gfn
    return gfn


class Frames(NamedTuple):
    """used: frames in use at the end of each bin. absolute: it counts all of them, not only since the trace began.

    total: frames of the host, 0 if unknown.
    """

    used: Ints
    absolute: bool
    total: int


def frames_in_use(timeline: Timeline, axis: Axis) -> Frames:
    """By mm_page_alloc and mm_page_free; where the run left free pages, from there back."""
    now: list[Ints] = []
    change: list[Ints] = []
    for name, sign in (("mm_page_alloc", 1), ("mm_page_free", -1)):
        now.append(timeline.now[timeline.hits[name].event])
        change.append(sign << np.clip(timeline.field(name, "order"), 0, 20))
    moment, weight = np.concatenate(now), np.concatenate(change)
    used = int(weight[moment < axis.start].sum()) + np.cumsum(axis.per_bin(moment, weight))
    total = timeline.config.get("host_memory")
    frames = total >> 12 if isinstance(total, int) else 0
    vmstat = timeline.tail.get("vmstat")
    free = vmstat.get("nr_free_pages") if isinstance(vmstat, dict) else None
    if frames and isinstance(free, int):
        return Frames(used + (frames - free - int(weight.sum())), True, frames)
    return Frames(used, False, frames)


def time_within(timeline: Timeline, begin: str, end: str, axis: Axis) -> tuple[Ints, Ints]:
    """(from, to) in ns of each stretch between two tracepoints of one task, as far as it is on the axis."""
    start = timeline.hits[begin].event
    last = timeline.next_in_task(start, timeline.places(end))
    stop = np.where(last < 0, timeline.stop, timeline.now[timeline.at_place[last]] if timeline.total else 0)
    low, high = np.clip(timeline.now[start], axis.start, axis.stop), np.clip(stop, axis.start, axis.stop)
    return low, high
