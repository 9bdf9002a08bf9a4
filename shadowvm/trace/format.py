"""The trace file: how events lie on disk. `writer` and `reader` are its two ends.

    file     MAGIC, version (u16), 6 zero bytes; then records
    record   tag (4 bytes), length (u32), CRC-32 of the payload, CRC-32 of these 12 bytes; then the payload
    HEAD     JSON: what ran. Always the first record
    EVTS     one chunk of events: length of a prelude (u32) and the prelude, number of events (u32) and of marks (u32),
             then columns: the tracepoint of each event; index of its first event, time and task of each mark, which
             hold until the next one; and, for each tracepoint that occurs, in order of numbers, one per field
    TAIL     JSON: how it ended. A file without it was cut short
    prelude  JSON, or nothing: the tracepoints, tasks and strings that no chunk before it mentions
    column   kind and width (u8 each), base (u64), then as many numbers of `width` bytes as there are rows; the value
             is base + number, modulo 2**64. Of kind JSON, base is the length in bytes of a JSON list

Everything is little-endian. A field with a dot in its name is a member of a structure: `range.start`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

MAGIC = b"SVMTRACE"
VERSION = 1
FILE_HEADER = Struct("<8sH6x")
RECORD = Struct("<4sII")
CHECK = Struct("<I")
RECORD_SIZE = RECORD.size + CHECK.size
HEAD, EVENTS, TAIL = b"HEAD", b"EVTS", b"TAIL"
COUNTS = Struct("<II")
COLUMN = Struct("<BBQ")
MAX_PAYLOAD = 1 << 28
MAX_EVENTS = 1 << 16
"""Events of one chunk at most."""


class Kind(IntEnum):
    """What a column's numbers mean."""

    UNSIGNED = 0
    SIGNED = 1
    STRING = 2
    JSON = 3


class Event(NamedTuple):
    """A member of a range: what the text of its tracepoint asks for."""

    name: str


class Mm(NamedTuple):
    """An address space."""

    id: int


class RangeRef(NamedTuple):
    """A MmuNotifierRange as it was at the event."""

    start: int
    end: int
    event: Event
    mm: Mm
    blockable: int


class LockRef(NamedTuple):
    """A lock."""

    name: str


class Structure(NamedTuple):
    """How an argument that is an object becomes values, and values become something with the same members."""

    members: tuple[str, ...]
    take: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]


STRUCTURES = {
    "lock": Structure(("name",), lambda lock: (lock.name,), LockRef),
    "range": Structure(
        ("start", "end", "event.name", "mm.id", "blockable"),
        lambda r: (r.start, r.end, r.event.name, r.mm.id, r.blockable),
        lambda start, end, event, mm, blockable: RangeRef(start, end, Event(event), Mm(mm), blockable),
    ),
}
"""By the name of the field."""
LISTS = frozenset(("dirty", "gfns"))
"""Fields whose arguments are lists of numbers."""


def flat_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """The columns of a tracepoint with these fields: structures as their members."""
    flat: list[str] = []
    for field in fields:
        structure = STRUCTURES.get(field)
        flat += [field] if structure is None else [f"{field}.{member}" for member in structure.members]
    return tuple(flat)


def record(tag: bytes, payload: bytes) -> bytes:
    """One record, whole."""
    header = RECORD.pack(tag, len(payload), crc32(payload))
    return b"".join((header, CHECK.pack(crc32(header)), payload))


def one_line(text: str) -> str:
    """A text that cannot break the line, or the terminal, that it is printed to."""
    return text if text.isprintable() else repr(text)


def to_json(value: Any) -> bytes:
    """Compact JSON; what JSON has no form for becomes its text."""
    return json.dumps(value, separators=(",", ":"), default=str).encode()


def encode_column(values: Sequence[Any], number_of: Callable[[str], int]) -> bytes:
    """The column of these values. `number_of` gives strings their numbers."""
    try:
        return encode_numbers(Kind.UNSIGNED, np.frombuffer(array("Q", values), np.uint64))
    except OverflowError:
        try:
            return encode_numbers(Kind.SIGNED, np.frombuffer(array("q", values), np.int64))
        except OverflowError:
            return _encode_json(values)
    except TypeError:
        return _encode_strings(values, number_of) or _encode_json(values)


def _encode_strings(values: Sequence[Any], number_of: Callable[[str], int]) -> bytes:
    """Nothing if some are no strings. A chunk has few different ones."""
    try:
        different = dict.fromkeys(values)
    except TypeError:
        return b""
    if not all(type(value) is str for value in different):
        return b""
    numbers = {value: number_of(value) for value in different}
    return encode_numbers(Kind.STRING, np.frombuffer(array("Q", map(numbers.__getitem__, values)), np.uint64))


def encode_numbers(kind: Kind, numbers: npt.NDArray[Any]) -> bytes:
    """As many bytes for each as the distance between the least and the greatest needs."""
    if not len(numbers):
        return COLUMN.pack(kind, 0, 0)
    base = numbers.min()
    spread = int(numbers.max()) - int(base)
    head = COLUMN.pack(kind, width := _width(spread), int(base) & (1 << 64) - 1)
    if not width:
        return head
    # The difference of two's complements is right whatever the sign.
    data: bytes = (numbers.view(np.uint64) - base.view(np.uint64)).astype(f"<u{width}").tobytes()
    return head + data


def _width(spread: int) -> int:
    return 0 if not spread else 1 if spread < 1 << 8 else 2 if spread < 1 << 16 else 4 if spread < 1 << 32 else 8


def _encode_json(values: Sequence[Any]) -> bytes:
    text = to_json(list(values))
    return COLUMN.pack(Kind.JSON, 0, len(text)) + text


class Column(NamedTuple):
    """A column of a chunk that has been found, and not decoded yet. rows: how many values."""

    kind: Kind
    width: int
    base: int
    rows: int
    data: memoryview

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return COLUMN.size + len(self.data)

    def numbers(self) -> npt.NDArray[Any]:
        """Values (int64 if some may be negative, else uint64), or the numbers of strings."""
        if not self.width:
            numbers = np.full(self.rows, self.base, np.uint64)
        else:
            numbers = np.frombuffer(self.data, f"<u{self.width}").astype(np.uint64) + np.uint64(self.base)
        return numbers.view(np.int64) if self.kind is Kind.SIGNED else numbers

    def values(self, strings: Sequence[str]) -> list[Any]:
        """Values as Python's own. ValueError, IndexError: the column is not what the writer writes."""
        if self.kind is Kind.JSON:
            values = json.loads(bytes(self.data))
            if not isinstance(values, list) or len(values) != self.rows:
                raise ValueError("a list of another length")
            return [one_line(value) if isinstance(value, str) else value for value in values]
        numbers: list[int] = self.numbers().tolist()
        return [strings[number] for number in numbers] if self.kind is Kind.STRING else numbers


def find_column(payload: memoryview, at: int, rows: int) -> Column:
    """The column of so many rows at an offset. ValueError: none is there."""
    if at + COLUMN.size > len(payload):
        raise ValueError("a column is missing")
    kind, width, base = COLUMN.unpack_from(payload, at)
    if kind > Kind.JSON or width not in (0, 1, 2, 4, 8) or (kind == Kind.JSON and width):
        raise ValueError("no such column")
    start = at + COLUMN.size
    size = base if kind == Kind.JSON else rows * width
    if size > len(payload) - start:
        raise ValueError("a column is longer than its chunk")
    return Column(Kind(kind), width, base, rows, payload[start : start + size])
