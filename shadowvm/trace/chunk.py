"""One chunk of a trace file: its columns found and checked, and events made of them. ValueError: it is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..events import REGISTRY
from .format import COUNTS, MAX_EVENTS, STRUCTURES, Column, find_column, flat_fields, one_line

MAX_FIELDS = 64


class TraceTask(NamedTuple):
    """A task of the simulated host. vcpu: the number of the virtual CPU that it runs, or None."""

    name: str
    pid: int
    vcpu: int | None


class TraceEvent(NamedTuple):
    """One hit of a tracepoint. now: retired instructions, each a nanosecond. vcpu: None for tasks that run none."""

    now: int
    task: str
    pid: int
    vcpu: int | None
    name: str
    args: tuple[Any, ...]


class Declared(NamedTuple):
    """A tracepoint as the file has it. columns: its fields, structures by member. known: events.py has the same."""

    name: str
    system: str
    columns: tuple[str, ...]
    known: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """What the arguments of an event are called."""
        return REGISTRY[self.name].fields if self.known else self.columns

    def arguments(self, columns: Sequence[Column], strings: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The arguments of each hit."""
        values = iter([column.values(strings) for column in columns])
        fields: list[Any] = []
        for field in self.fields:
            structure = STRUCTURES.get(field) if self.known else None
            if structure is None:
                fields.append(next(values))
            else:
                fields.append(map(structure.make, *(next(values) for _ in structure.members)))
        return zip(*fields, strict=True) if fields else repeat(())


class Tables:
    """What chunks so far have declared. Numbers of tasks and strings count from 0."""

    def __init__(self) -> None:
        self.tracepoints: dict[int, Declared] = {}
        self.numbers: dict[str, int] = {}
        self.tasks: list[TraceTask] = []
        self.strings: list[str] = []

    def extend(self, prelude: bytes) -> None:
        """Take in a chunk's prelude."""
        told = json.loads(prelude)
        for number, name, system, columns in told["tracepoints"]:
            self._declare(number, _word(name), _word(system), tuple(map(_word, columns)))
        for name, pid, vcpu in told["tasks"]:
            if type(pid) is not int or type(vcpu) not in (int, type(None)) or not 0 <= pid < 1 << 31:
                raise ValueError("no task")
            if vcpu is not None and not 0 <= vcpu < 1 << 15:
                raise ValueError("no vCPU")
            self.tasks.append(TraceTask(_line(name), pid, vcpu))
        self.strings += map(_line, told["strings"])

    def _declare(self, number: int, name: str, system: str, columns: tuple[str, ...]) -> None:
        if type(number) is not int or number in self.tracepoints or name in self.numbers or len(columns) > MAX_FIELDS:
            raise ValueError("no tracepoint")
        known = name in REGISTRY and flat_fields(REGISTRY[name].fields) == columns
        self.tracepoints[number] = Declared(name, system, columns, known)
        self.numbers[name] = number


def _word(text: Any) -> str:
    if not isinstance(text, str) or not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("no name")
    return text


def _line(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError("no text")
    return one_line(text)


class Chunk(NamedTuple):
    """order: the tracepoint of each event, by number. at, now, tasks: marks. columns: of each tracepoint in `order`."""

    tables: Tables
    order: npt.NDArray[Any]
    at: npt.NDArray[Any]
    now: npt.NDArray[Any]
    tasks: npt.NDArray[Any]
    columns: dict[int, list[Column]]

    def spread(self, marks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the marks say, for each event."""
        return np.repeat(marks, np.diff(self.at, append=len(self.order)))

    def events(self, wanted: frozenset[int] | None) -> Iterator[TraceEvent]:
        """Every event, or those of the wanted tracepoints."""
        tables = self.tables
        order, nows, tasks = self.order, self.spread(self.now), self.spread(self.tasks)
        if wanted is not None:
            chosen = np.isin(order, list(wanted))
            order, nows, tasks = order[chosen], nows[chosen], tasks[chosen]
        present = self.columns.keys() if wanted is None else self.columns.keys() & wanted
        rows = {
            number: tables.tracepoints[number].arguments(self.columns[number], tables.strings) for number in present
        }
        names = {number: tables.tracepoints[number].name for number in present}
        for number, now, task in zip(order.tolist(), nows.tolist(), tasks.tolist(), strict=True):
            name, pid, vcpu = tables.tasks[task]
            yield TraceEvent(now, name, pid, vcpu, names[number], next(rows[number]))


def parse_chunk(payload: memoryview, tables: Tables) -> Chunk:
    """The chunk in a record; its prelude goes into `tables`. ValueError and the like: it is damaged."""
    length = int.from_bytes(payload[:4], "little")
    if 4 + length + COUNTS.size > len(payload):
        raise ValueError("the chunk is too short")
    if length:
        tables.extend(bytes(payload[4 : 4 + length]))
    count, marks = COUNTS.unpack_from(payload, 4 + length)
    if not 0 < marks <= count <= MAX_EVENTS:
        raise ValueError(f"{count} events, {marks} marks")
    found = _Columns(payload, 4 + length + COUNTS.size)
    order = found.take(count).numbers()
    at, now, tasks = (found.take(marks).numbers() for _ in range(3))
    if at[0] or at[-1] >= count or (np.diff(at.astype(np.int64)) <= 0).any() or tasks.max() >= len(tables.tasks):
        raise ValueError("marks out of order")
    columns: dict[int, list[Column]] = {}
    for number, rows in zip(*(each.tolist() for each in np.unique(order, return_counts=True)), strict=True):
        columns[number] = [found.take(rows) for _ in tables.tracepoints[number].columns]
    if found.at != len(payload):
        raise ValueError("more than its columns")
    return Chunk(tables, order, at.astype(np.int64), now.astype(np.int64), tasks.astype(np.int64), columns)


class _Columns:
    """One column after the other."""

    def __init__(self, payload: memoryview, at: int) -> None:
        self.payload, self.at = payload, at

    def take(self, rows: int) -> Column:
        column = find_column(self.payload, self.at, rows)
        self.at += column.size
        return column
