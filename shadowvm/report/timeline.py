"""A trace as arrays: what the report is made from.

An event is known by its number in the file. `place` orders events by task, then by number: what a task did between two
of its events lies between their places, whatever other tasks did meanwhile. The take-down of the machine, by its task
`exit`, is left out: every page would end in it. Only `torn_down` has its host ptes, which tell what was there before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..events import REGISTRY
from ..trace.chunk import TraceTask
from ..trace.reader import Hits, Order, Trace
from .bins import Flags, Ints

READ = (
    "kvm_entry kvm_exit kvm_page_fault kvm_inj_exception kvm_mmio vcpu_match_mmio handle_mmio_page_fault "
    "mark_mmio_spte kvm_emulate_insn fast_page_fault kvm_mmu_seq_sample kvm_mmu_set_spte kvm_mmu_walker_error "
    "kvm_try_async_get_page kvm_flush_remote_tlbs kvm_set_memslot kvm_mmu_get_page "
    "spte_change handle_mm_fault swap_readpage swap_writepage host_pte_change mm_page_alloc mm_page_free "
    "mm_vmscan_kswapd_wake mm_vmscan_kswapd_sleep mm_vmscan_direct_reclaim_begin mm_vmscan_direct_reclaim_end "
    "mm_vmscan_lru_shrink_inactive mmu_notifier_invalidate_range_start mmu_notifier_invalidate_range_end "
    "mmu_notifier_invalidate_range_failed"
).split()
"""The tracepoints whose fields the report wants."""
TEAR_DOWN = "exit"
"""The task of Machine.close()."""


class Timeline(NamedTuple):
    """total: events that are shown. now: of each, ns. at_place: the event at each place. points: scheduling points
    before a place. counts: hits by tracepoint. start, stop: of the run, ns. truncated: the file was cut short.
    """

    path: str
    header: dict[str, Any]
    tail: dict[str, Any]
    truncated: bool
    tasks: list[TraceTask]
    total: int
    now: Ints
    task: Ints
    place: Ints
    at_place: Ints
    points: Ints
    counts: dict[str, int]
    hits: dict[str, Hits]
    torn_down: Hits

    @property
    def start(self) -> int:
        """The first moment, ns."""
        return int(self.now[0]) if self.total else 0

    @property
    def stop(self) -> int:
        """One after the last moment, ns."""
        return int(self.now[-1]) + 1 if self.total else 1

    @property
    def config(self) -> dict[str, Any]:
        """Of the machine; empty if the file does not say."""
        config = self.header.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def tdp(self) -> bool:
        """Two-dimensional paging: fault addresses are gpas."""
        return self.config.get("mmu") == "tdp"

    def field(self, tracepoint: str, name: str) -> Ints:
        """A field of all hits as numbers, modulo 2**64. ConfigError: it has none."""
        try:
            return numbers(self.hits[tracepoint], name)
        except KeyError:
            raise ConfigError(f"{self.path}: {tracepoint}.{name} is not as this shadowvm writes it") from None

    def words(self, tracepoint: str, name: str) -> list[str]:
        """A field of all hits as text."""
        values: npt.NDArray[Any] | None = self.hits[tracepoint].fields.get(name)
        return [] if values is None else [str(value) for value in values.tolist()]

    def places(self, *tracepoints: str) -> Ints:
        """Where hits of these are, in order of place."""
        return np.sort(np.concatenate([self.place[self.hits[each].event] for each in tracepoints]))

    def next_in_task(self, events: Ints, places: Ints) -> Ints:
        """For each event the first of the (sorted) places behind it in the same task, or -1."""
        ends = self._task_ends()[self.task[events]]
        at = np.searchsorted(places, self.place[events], "right")
        found = np.append(places, self.total)[at]
        return np.where(found < ends, found, -1)

    def task_end(self, events: Ints) -> Ints:
        """The place behind the last event of each event's task."""
        ends: Ints = self._task_ends()[self.task[events]]
        return ends

    def _task_ends(self) -> Ints:
        ends: Ints = np.cumsum(np.bincount(self.task, minlength=len(self.tasks)))
        return ends


def numbers(hits: Hits, name: str) -> Ints:
    """A field as numbers, modulo 2**64. KeyError: it has none."""
    values: npt.NDArray[Any] = hits.fields[name]
    if values.dtype == object:
        raise KeyError(name)
    signed: Ints = values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64, copy=False)
    return signed


def between(places: Ints, first: Ints, last: Ints) -> Ints:
    """How many of the (sorted) places lie behind `first` and before `last`."""
    low = np.searchsorted(places, first, "right")
    found: Ints = np.maximum(np.searchsorted(places, last, "left") - low, 0)
    return found


def load(trace: Trace) -> Timeline:
    """Read a trace; two passes over the file."""
    order = trace.order()
    hits = trace.all_columns(READ)
    count = _shown(order, trace.tasks)
    task = order.task[:count]
    # Of numbers this small a stable sort is one of digits.
    by_task = np.argsort(task.astype(np.uint16) if len(trace.tasks) < 1 << 16 else task, kind="stable")
    place = np.empty(count, np.int64)
    place[by_task] = np.arange(count)
    name = order.name[:count]
    is_point = np.array([each in REGISTRY and REGISTRY[each].point for each in order.names], bool)
    totals = np.bincount(name, minlength=len(order.names)).tolist()
    return Timeline(
        path=trace.path,
        header=trace.header,
        tail=trace.tail,
        truncated=trace.truncated,
        tasks=trace.tasks,
        total=count,
        now=np.maximum.accumulate(order.now[:count]),  # inside a port's handler, time is ahead of the exit's
        task=task,
        place=place,
        at_place=by_task,
        points=np.concatenate([[0], np.cumsum(is_point[name[by_task]])]),
        counts={each: total for each, total in zip(order.names, totals, strict=True) if total},
        hits={each: _chosen(found, found.event < count) for each, found in hits.items()},
        torn_down=_chosen(hits["host_pte_change"], hits["host_pte_change"].event >= count),
    )


def _shown(order: Order, tasks: list[TraceTask]) -> int:
    """Events before the take-down begins."""
    ends = [number for number, task in enumerate(tasks) if task.name == TEAR_DOWN and task.vcpu is None]
    (last,) = np.nonzero(np.isin(order.task, ends))
    return int(last[0]) if len(last) else len(order.name)


def _chosen(hits: Hits, chosen: Flags) -> Hits:
    if chosen.all():
        return hits
    fields = {name: values[chosen] for name, values in hits.fields.items()}
    return Hits(hits.event[chosen], hits.now[chosen], hits.task[chosen], hits.vcpu[chosen], fields)
