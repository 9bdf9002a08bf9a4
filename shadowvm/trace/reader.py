"""Reads a trace file (trace/format.py), chunk by chunk.

    trace = open_trace(path)
    trace.header                                 what ran: guest, config, memslots
    for event in trace.events(): ...             every event, in order
    hits = trace.columns("kvm_page_fault")       all hits at once: hits.now, hits.fields["fault_address"]
    trace.tail                                   how it ended, after a pass over the file

A file whose writer was killed is good up to its last whole chunk: `truncated` is True after a pass then. What is
damaged otherwise is refused by a ConfigError that names file and offset, after the events before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from typing import IO, Any, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..events import REGISTRY
from .chunk import Chunk, Declared, Tables, TraceEvent, TraceTask, parse_chunk
from .format import (
    CHECK,
    EVENTS,
    FILE_HEADER,
    HEAD,
    MAGIC,
    MAX_PAYLOAD,
    RECORD,
    RECORD_SIZE,
    TAIL,
    VERSION,
    Column,
    Kind,
    flat_fields,
)

_Result = TypeVar("_Result")
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)
"""What parsing a damaged record may end in."""


class Hits(NamedTuple):
    """All hits of one tracepoint, a row each, as arrays of the same length.

    event: number of the event in the file. now: retired instructions, each a nanosecond. task: index into
    `Trace.tasks`. vcpu: -1 for tasks that run none. fields: uint64, int64 (some may be negative), or objects: strings
    and lists. A member of a structure has a dot in its name: `range.start`.
    """

    event: npt.NDArray[np.int64]
    now: npt.NDArray[np.int64]
    task: npt.NDArray[np.int64]
    vcpu: npt.NDArray[np.int64]
    fields: dict[str, npt.NDArray[Any]]


class Order(NamedTuple):
    """Every event of a file, as arrays of the same length. name: index into `names`. now, task: as in Hits."""

    names: list[str]
    name: npt.NDArray[np.int64]
    now: npt.NDArray[np.int64]
    task: npt.NDArray[np.int64]


class Trace:
    """A trace file. tail, truncated, count (events) and the tables are those of the last pass."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tail: dict[str, Any] = {}
        self.truncated = False
        self.count = 0
        self._tables = Tables()
        self.header: dict[str, Any] = {}
        with self._open() as file:
            self._read_head(file)

    @property
    def tasks(self) -> list[TraceTask]:
        """The tasks that the last pass met."""
        return self._tables.tasks

    @property
    def tracepoints(self) -> dict[str, Declared]:
        """The tracepoints that the last pass met, by name."""
        return {each.name: each for each in self._tables.tracepoints.values()}

    def events(self, names: Collection[str] | None = None) -> Iterator[TraceEvent]:
        """Every event, or those of some tracepoints, in order."""
        for offset, chunk in self._chunks():
            numbers = chunk.tables.numbers
            wanted = None if names is None else frozenset(numbers[name] for name in names if name in numbers)
            try:
                yield from chunk.events(wanted)
            except _DAMAGE as error:
                raise self._damaged(offset, error) from None

    def each(self, visit: Callable[[Chunk], _Result]) -> Iterator[_Result]:
        """What `visit` makes of each chunk; if it stumbles, the chunk is damaged."""
        for offset, chunk in self._chunks():
            try:
                result = visit(chunk)
            except _DAMAGE as error:
                raise self._damaged(offset, error) from None
            yield result

    def columns(self, name: str) -> Hits:
        """All hits of one tracepoint."""
        return self.all_columns([name])[name]

    def all_columns(self, names: Collection[str]) -> dict[str, Hits]:
        """All hits of each of these, in one pass."""
        found = {name: _Gatherer() for name in names}

        def gather(chunk: Chunk) -> None:
            for name in found.keys() & chunk.tables.numbers.keys():
                found[name].add(chunk, chunk.tables.numbers[name], self.count - len(chunk.order))

        for _ in self.each(gather):
            pass
        try:
            return {name: each.hits(name, self._tables) for name, each in found.items()}
        except _DAMAGE as error:
            raise ConfigError(f"{self.path}: damaged: {error}") from None

    def order(self) -> Order:
        """Which tracepoint every event is of, when, and in which task."""
        empty = np.zeros(0, np.int64)
        parts = [(empty, empty, empty), *self.each(_order_of)]
        numbers, now, task = (np.concatenate(part) for part in zip(*parts, strict=True))
        declared = sorted(self._tables.tracepoints)
        names = [self._tables.tracepoints[number].name for number in declared]
        return Order(names, np.searchsorted(np.array(declared, np.int64), numbers), now, task)

    def counts(self) -> dict[str, int]:
        """Hits of each tracepoint that was hit, by name."""
        totals: dict[int, int] = {}
        for order in self.each(lambda chunk: chunk.order):
            for number, rows in zip(*np.unique(order, return_counts=True), strict=True):
                totals[int(number)] = totals.get(int(number), 0) + int(rows)
        return {self._tables.tracepoints[number].name: total for number, total in totals.items()}

    def fields_of(self, name: str) -> tuple[str, ...]:
        """What the arguments of an event of this pass are called."""
        return self._tables.tracepoints[self._tables.numbers[name]].fields

    def text(self, event: TraceEvent) -> str:
        """What ftrace prints behind the event's name; a tracepoint that this version does not know, by its fields."""
        declared = self._tables.tracepoints[self._tables.numbers[event.name]]
        if declared.known:
            try:
                return REGISTRY[event.name].format(event.args)
            except (*_DAMAGE, AttributeError):
                pass  # arguments of other types than this version's
        return " ".join(f"{field}={value}" for field, value in zip(declared.fields, event.args, strict=True))

    def _chunks(self) -> Iterator[tuple[int, Chunk]]:
        """(offset, chunk) of one pass."""
        self._tables, self.tail, self.truncated, self.count = Tables(), {}, True, 0
        with self._open() as file:
            self._read_head(file)
            for offset, tag, payload in self._records(file):
                if not self.truncated or tag not in (EVENTS, TAIL):
                    raise self._damaged(offset, f"a record {tag!r} there")
                try:
                    if tag == TAIL:
                        self.tail = _json_object(payload)
                        self.truncated = False
                        continue
                    chunk = parse_chunk(memoryview(payload), self._tables)
                except _DAMAGE as error:
                    raise self._damaged(offset, error) from None
                self.count += len(chunk.order)
                yield offset, chunk

    def _open(self) -> IO[bytes]:
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - for who asked
            if file.seekable():
                return file
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None
        file.close()
        raise ConfigError(f"{self.path}: a trace is read from a file, not from a pipe")

    def _read_head(self, file: IO[bytes]) -> None:
        start = self._read(file, FILE_HEADER.size)
        if not start:
            raise ConfigError(f"{self.path}: empty, as a run that ends before its guest starts leaves it")
        if start[:8] != MAGIC or len(start) < FILE_HEADER.size:
            raise ConfigError(f"{self.path}: no trace of shadowvm")
        _, version = FILE_HEADER.unpack(start)
        if version != VERSION:
            raise ConfigError(f"{self.path}: a trace of version {version}; this shadowvm reads version {VERSION}")
        for offset, tag, payload in self._records(file):
            try:
                if tag == HEAD:
                    self.header = _json_object(payload)
                    return
            except _DAMAGE as error:
                raise self._damaged(offset, error) from None
            raise self._damaged(offset, "no head")
        raise ConfigError(f"{self.path}: the trace ends before its head")

    def _records(self, file: IO[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
        """(offset, tag, payload) of every whole record. An incomplete one is the end."""
        while True:
            offset = file.tell()
            header = self._read(file, RECORD_SIZE)
            if len(header) < RECORD_SIZE:
                return
            tag, length, crc = RECORD.unpack_from(header)
            if crc32(header[: RECORD.size]) != CHECK.unpack_from(header, RECORD.size)[0] or length > MAX_PAYLOAD:
                raise self._damaged(offset, "no record")
            if length > os.fstat(file.fileno()).st_size - offset - RECORD_SIZE:
                return
            payload = self._read(file, length)
            if len(payload) < length:
                return
            if crc32(payload) != crc:
                raise self._damaged(offset, "wrong checksum")
            yield offset, tag, payload

    def _read(self, file: IO[bytes], size: int) -> bytes:
        try:
            return file.read(size)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None

    def _damaged(self, offset: int, why: object) -> ConfigError:
        return ConfigError(f"{self.path}: damaged at offset {offset}: {why}"[:200])


def open_trace(path: str) -> Trace:
    """A trace file. ConfigError: there is none, or of another version, or its head is damaged."""
    return Trace(path)


def _json_object(payload: bytes) -> dict[str, Any]:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _order_of(chunk: Chunk) -> tuple[npt.NDArray[np.int64], ...]:
    return chunk.order.astype(np.int64), chunk.spread(chunk.now), chunk.spread(chunk.tasks)


class _Gatherer:
    """The hits of one tracepoint, as chunks bring them."""

    def __init__(self) -> None:
        self.parts: list[tuple[npt.NDArray[Any], ...]] = []
        self.columns: list[list[Column]] = []

    def add(self, chunk: Chunk, number: int, first: int) -> None:
        """Those of a chunk whose first event has the number `first`."""
        if number in chunk.columns:
            (at,) = np.nonzero(chunk.order == number)
            self.parts.append((at + first, chunk.spread(chunk.now)[at], chunk.spread(chunk.tasks)[at]))
            self.columns.append(chunk.columns[number])

    def hits(self, name: str, tables: Tables) -> Hits:
        """All of them."""
        number = tables.numbers.get(name)
        known = REGISTRY.get(name)
        columns = (
            tables.tracepoints[number].columns if number is not None else flat_fields(known.fields if known else ())
        )
        empty = np.zeros(0, np.int64)
        event, now, task = (
            (np.concatenate([empty, *part]) for part in zip(*self.parts, strict=True)) if self.parts else (empty,) * 3
        )
        vcpus = np.array([-1 if each.vcpu is None else each.vcpu for each in tables.tasks], np.int64)
        fields = {
            name: _join([each[index] for each in self.columns], tables.strings) for index, name in enumerate(columns)
        }
        return Hits(event, now, task, vcpus[task], fields)


def _join(columns: list[Column], strings: list[str]) -> npt.NDArray[Any]:
    """One array of what chunks have: numbers if all are."""
    if not columns:
        return np.zeros(0, np.uint64)
    kinds = {column.kind for column in columns}
    if kinds <= {Kind.UNSIGNED, Kind.SIGNED}:
        wanted = np.uint64 if kinds == {Kind.UNSIGNED} else np.int64
        return np.concatenate([column.numbers().astype(wanted) for column in columns])
    joined = np.empty(sum(column.rows for column in columns), object)
    for row, value in enumerate(value for column in columns for value in column.values(strings)):
        joined[row] = value
    return joined
