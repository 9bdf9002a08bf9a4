"""Records every event of a machine to a file of trace/format.py, in bounded memory.

An event costs its tracepoint's call and two appends. Time and task are marked where they change: both stand still
between two entries of the guest. A chunk is encoded, and written at once, when it is full; so a process that is
killed leaves a file that is good up to its last whole chunk.
"""

from __future__ import annotations

import signal
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import ModelBug
from ..events import REGISTRY, Sink, Tracepoint, trace_clock
from ..params import DEFAULT_PARAMS
from .format import (
    COUNTS,
    EVENTS,
    FILE_HEADER,
    HEAD,
    LISTS,
    MAGIC,
    STRUCTURES,
    TAIL,
    VERSION,
    Kind,
    encode_column,
    encode_numbers,
    flat_fields,
    record,
    to_json,
)

if TYPE_CHECKING:
    from ..machine import Machine
    from ..sync import Task

CHUNK_EVENTS = 1 << 14
"""Events of a full chunk, some 120 KiB."""
CHUNK_LISTED = 1 << 16
"""Or as many elements of lists."""
_NEVER = -1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ByteSink(Protocol):
    """Where records go, each in one write."""

    def write(self, data: bytes, /) -> object:
        """Append all of the data."""


class TraceWriter:
    """Writes the events of a machine. tail: what the last record says beside the number of events."""

    def __init__(self, machine: Machine, file: ByteSink) -> None:
        self.tail: dict[str, Any] = {}
        self.count = 0
        self._machine = machine
        self._file = file
        self._tracepoints = list(REGISTRY.values())
        self._columns = [flat_fields(each.fields) for each in self._tracepoints]
        self._order: list[int] = []
        self._rows: list[list[Any]] = [[] for _ in self._tracepoints]
        self._marks: list[tuple[int, int, int]] = []
        self._ticks = _NEVER
        self._listed = 0
        self._failed = False
        self._known: set[int] = set()
        self._tasks: dict[Task, int] = {}
        self._strings: dict[str, int] = {}
        self._told = 0, 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write the head, every event inside the block, and the tail, also if the block fails."""
        self._file.write(FILE_HEADER.pack(MAGIC, VERSION) + record(HEAD, to_json(describe(self._machine))))
        sinks: list[tuple[Tracepoint, Sink]] = []
        for number, tracepoint in enumerate(self._tracepoints):
            hit = self._hit(number)
            sinks.append((tracepoint, _sink_of(hit)))
            tracepoint.attach(sinks[-1][1], hit)
        try:
            yield
        finally:
            for tracepoint, sink in sinks:
                tracepoint.detach(sink)
            self.flush()
            if not self._failed:
                self._file.write(record(TAIL, to_json({"events": self.count, **self.tail})))

    def _hit(self, number: int) -> Callable[..., None]:
        """What a tracepoint calls. It is done for every event: it is as short as it can be."""
        order, clock, fields = self._order, trace_clock, self._tracepoints[number].fields
        append, rows = order.append, self._rows[number]

        # A signal's exception may come after any call: what belongs together has none between.
        def hit(*args: Any) -> None:
            nonlocal rows
            if clock.ticks != self._ticks:
                self._mark()
            rows += args
            append(number)
            if len(order) >= CHUNK_EVENTS:
                self.flush()

        def hit_lock(lock: Any) -> None:
            nonlocal rows
            if clock.ticks != self._ticks:
                self._mark()
            rows += (lock.name,)
            append(number)
            if len(order) >= CHUNK_EVENTS:
                self.flush()

        if not LISTS.isdisjoint(fields):
            return lambda *args: hit(*self._copy_lists(args))
        if len(fields) == 1 and fields[0] in STRUCTURES:
            take = STRUCTURES[fields[0]].take
            return hit_lock if fields[0] == "lock" else lambda arg: hit(*take(arg))
        return hit

    def _mark(self) -> None:
        """Time or task are not what they were. While the guest executes, nobody says when time passes."""
        machine = self._machine
        loaded = machine.kvm.loaded
        ticks = _NEVER if loaded is not None and loaded.engine.running else trace_clock.ticks
        task = machine.sched.current
        number = self._tasks.get(task)
        if number is None:
            number = self._tasks[task] = len(self._tasks)
        mark = len(self._order), machine.instructions, number
        if self._marks and self._marks[-1][0] == mark[0]:
            self._marks[-1] = mark
        else:
            self._marks.append(mark)
        self._ticks = ticks

    def _copy_lists(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Others may change them; and long ones fill a chunk, too."""
        copied = tuple(arg if isinstance(arg, (int, str)) else [int(each) for each in arg] for arg in args)
        self._listed += sum(len(arg) for arg in copied if isinstance(arg, list))
        if self._listed > CHUNK_LISTED:
            self.flush()
        return copied

    def flush(self) -> None:
        """Write what has not been written yet. An error ends the trace: what comes after it is not recorded."""
        with _signals_wait():
            if self._order and not self._failed:
                self._failed = True
                self._file.write(record(EVENTS, self._chunk()))
                self._failed = False
            for rows in self._rows:
                rows.clear()
            self._order.clear()
            self._marks.clear()
            self._ticks, self._listed = _NEVER, 0

    def _chunk(self) -> bytes:
        """The payload of a record."""
        order = np.frombuffer(array("q", self._order), np.int64)
        hits = np.bincount(order).tolist()
        present = [number for number, count in enumerate(hits) if count]
        marks = [mark for mark in self._marks if mark[0] < len(order)]
        columns = [encode_numbers(Kind.UNSIGNED, order)]
        columns += [self._encode(values) for values in zip(*marks, strict=True)]
        for number in present:
            columns += self._encode_rows(number, hits[number])
        prelude = self._prelude(present)
        self.count += len(order)
        return b"".join((len(prelude).to_bytes(4, "little"), prelude, COUNTS.pack(len(order), len(marks)), *columns))

    def _encode_rows(self, number: int, hits: int) -> Iterator[bytes]:
        """The columns of one tracepoint."""
        rows, tracepoint, width = self._rows[number], self._tracepoints[number], len(self._columns[number])
        if len(rows) != width * hits:
            raise ModelBug(f"{tracepoint.name} was hit with other arguments than {', '.join(tracepoint.fields)}")
        for index in range(width):
            yield self._encode(rows[index::width])

    def _encode(self, values: Any) -> bytes:
        return encode_column(values, self._string)

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _prelude(self, present: list[int]) -> bytes:
        """What has become known with this chunk."""
        new = [number for number in present if number not in self._known]
        told_tasks, told_strings = self._told
        self._known.update(new)
        self._told = len(self._tasks), len(self._strings)
        prelude = {
            "tracepoints": [(n, self._tracepoints[n].name, self._tracepoints[n].system, self._columns[n]) for n in new],
            "tasks": [(task.name, task.pid, task.vcpu) for task in islice(self._tasks, told_tasks, None)],
            "strings": list(islice(self._strings, told_strings, None)),
        }
        return to_json(prelude) if any(prelude.values()) else b""


@contextmanager
def _signals_wait() -> Iterator[None]:
    """What ends a run does so after the block. Python's handlers run in the main thread, whoever gets the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        for number in _ENDING:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


def _sink_of(hit: Callable[..., None]) -> Sink:
    """The same for a tracepoint that others listen to as well."""
    return lambda _tracepoint, args: hit(*args)


def describe(machine: Machine) -> dict[str, Any]:
    """What a reader of the trace wants to know of the machine: sizes in bytes, hvas and gpas as numbers."""
    config = machine.config
    plain = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "kvm_params"}
    params = {each.name: getattr(config.kvm_params, each.name) for each in fields(config.kvm_params)}
    return {
        "guest": config.name,
        "config": {
            **plain,
            "swap": config.swap_size,
            "kvm_params": {name: value for name, value in params.items() if value != getattr(DEFAULT_PARAMS, name)},
        },
        "host_pages": machine.ram.nr_frames,
        "free_pages": machine.host.zone.nr_free,
        "memslots": [
            {
                "id": slot.id,
                "gpa": slot.base_gfn << 12,
                "size": slot.npages << 12,
                "hva": slot.userspace_addr,
                "flags": slot.flags,
            }
            for slot in machine.kvm.memslots.slots
        ],
    }
