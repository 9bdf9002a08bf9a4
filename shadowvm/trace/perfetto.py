"""A trace as Perfetto's viewer reads it (ui.perfetto.dev): TrackEvent packets, written as the events come.

A track for each task, the vCPUs' among them. Slices: a fault from kvm_page_fault to the next kvm_entry of its vCPU,
an invalidation from range_start to range_end. All else is an instant with its fields. A flow leads from an invalidation
to each spte that is set again for one of its gfns. A counter follows the free frames of the host.

Virtual time stands still while the host works, so that all of a fault would lie on one point. Here every event takes a
nanosecond besides: the timestamp is the retired instructions plus the number of events so far; `now` of a slice is the
virtual time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from .chunk import TraceEvent
from .format import RangeRef
from .protobuf import fixed64, message, number, string

SEQUENCE = 1
PROCESS_UUID, COUNTER_UUID, FIRST_TASK_UUID = 1, 2, 16
MAX_FLOWS = 64
"""Invalidations of more pages than that are no flows: they are of whole areas."""
MAX_ORDER = 18
_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4
_STATE_CLEARED, _STATE_NEEDED = 1, 2
# Fields of TracePacket, TrackEvent, TrackDescriptor, DebugAnnotation and InternedData.
_PACKET, _TIMESTAMP, _SEQUENCE_ID, _TRACK_EVENT, _INTERNED, _FLAGS, _DESCRIPTOR = 1, 8, 10, 11, 12, 13, 60
_ANNOTATION, _TYPE, _NAME_IID, _TRACK, _COUNTER_VALUE, _FLOW_IDS = 4, 9, 10, 11, 30, 47
_UUID, _NAME, _PROCESS, _PARENT, _IS_COUNTER = 1, 2, 3, 5, 8
_UINT, _INT, _STRING = 3, 4, 6
_EVENT_NAMES, _ANNOTATION_NAMES = 2, 3

FAULT, ENTRY, SET_SPTE = "kvm_page_fault", "kvm_entry", "kvm_mmu_set_spte"
START = "mmu_notifier_invalidate_range_start"
ENDS = ("mmu_notifier_invalidate_range_end", "mmu_notifier_invalidate_range_failed")
ALLOC, FREE = "mm_page_alloc", "mm_page_free"


class Memslot(NamedTuple):
    """Frames [gfn, gfn + npages) of the guest, at a host frame number of the VMM's address space."""

    gfn: int
    npages: int
    vpn: int


FieldsOf: TypeAlias = Callable[[str], Iterable[str]]


def packets(header: dict[str, Any], events: Iterable[TraceEvent], fields_of: FieldsOf) -> Iterator[bytes]:
    """A file, in pieces. header: the trace's; fields_of: names of an event's arguments."""
    encoder = _Encoder(header, fields_of)
    yield encoder.start()
    for event in events:
        yield encoder.encode(event)
    yield encoder.finish()


class _Encoder:
    """What has been said so far, and what is open. Nothing grows but with the guest's pages and the tasks."""

    def __init__(self, header: dict[str, Any], fields_of: FieldsOf) -> None:
        self._fields_of = fields_of
        self._guest = str(header.get("guest", ""))
        self._slots = _memslots(header)
        free = header.get("free_pages")
        self._free: int | None = free if type(free) is int else None
        self._time = self._last = self._count = 0
        self._tracks: dict[tuple[str, int], int] = {}
        self._names: dict[tuple[int, str], int] = {}
        self._open: dict[int, list[str]] = {}
        self._flows: dict[int, int] = {}
        self._flow = 0

    def start(self) -> bytes:
        """The process under which all tracks are."""
        process = message(_PROCESS, number(1, 1), string(6, f"shadowvm {self._guest}"))
        text = self._descriptor(PROCESS_UUID, process)
        if self._free is not None:
            counter = string(_NAME, "free frames of the host") + number(_PARENT, PROCESS_UUID) + message(_IS_COUNTER)
            text += self._descriptor(COUNTER_UUID, counter) + self._counter()
        return text

    def encode(self, event: TraceEvent) -> bytes:
        """One event."""
        self._last = max(self._last, event.now)
        self._time = self._last + self._count
        self._count += 1
        before: list[bytes] = []
        track = self._track(event, before)
        stack = self._open.setdefault(track, [])
        name = event.name
        if name == FAULT:
            before += [self._end(track) for _ in stack]
            stack[:] = [FAULT]
            return b"".join((*before, self._begin(track, event, ())))
        if name == START:
            stack.append(START)
            return b"".join((*before, self._begin(track, event, self._invalidated(event))))
        if name in ENDS and stack and stack[-1] == START:
            stack.pop()
            return b"".join((*before, self._end(track)))
        if name == ENTRY and stack:
            before += [self._end(track) for _ in stack]
            stack.clear()
        flows = self._refaulted(event) if name == SET_SPTE else ()
        after = self._frames(event) if name in (ALLOC, FREE) else b""
        return b"".join((*before, self._event(_INSTANT, track, event, flows), after))

    def finish(self) -> bytes:
        """Close what is open."""
        self._time += 1
        return b"".join(self._end(track) for track, stack in self._open.items() for _ in stack)

    def _packet(self, *parts: bytes) -> bytes:
        return message(_PACKET, number(_TIMESTAMP, self._time), number(_SEQUENCE_ID, SEQUENCE), *parts)

    def _descriptor(self, uuid: int, *parts: bytes) -> bytes:
        first = b"" if uuid != PROCESS_UUID else number(_FLAGS, _STATE_CLEARED)
        return self._packet(first, message(_DESCRIPTOR, number(_UUID, uuid), *parts))

    def _track(self, event: TraceEvent, said: list[bytes]) -> int:
        """The track of the event's task; a new one is described."""
        key = (event.task, event.pid)
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = FIRST_TASK_UUID + len(self._tracks)
            title = f"{event.task} ({event.pid})" if event.vcpu is None else f"vCPU {event.vcpu} ({event.task})"
            said.append(self._descriptor(track, string(_NAME, title), number(_PARENT, PROCESS_UUID)))
        return track

    def _begin(self, track: int, event: TraceEvent, flows: Iterable[int]) -> bytes:
        return self._event(_BEGIN, track, event, flows, ("now", event.now))

    def _end(self, track: int) -> bytes:
        return self._packet(message(_TRACK_EVENT, number(_TYPE, _END), number(_TRACK, track)))

    def _event(self, kind: int, track: int, event: TraceEvent, flows: Iterable[int], *more: tuple[str, Any]) -> bytes:
        new: list[bytes] = []
        parts = [
            number(_TYPE, kind),
            number(_TRACK, track),
            number(_NAME_IID, self._name(_EVENT_NAMES, event.name, new)),
        ]
        for field, value in (*_flat(self._fields_of(event.name), event.args), *more):
            parts.append(message(_ANNOTATION, number(1, self._name(_ANNOTATION_NAMES, field, new)), _value(value)))
        parts += [fixed64(_FLOW_IDS, flow) for flow in flows]
        interned = message(_INTERNED, *new) if new else b""
        return self._packet(number(_FLAGS, _STATE_NEEDED), interned, message(_TRACK_EVENT, *parts))

    def _name(self, table: int, name: str, new: list[bytes]) -> int:
        """The number of a name, which is said once."""
        iid = self._names.get((table, name))
        if iid is None:
            iid = self._names[table, name] = len(self._names) + 1
            new.append(message(table, number(1, iid), string(2, name)))
        return iid

    def _gfns(self, start: int, end: int) -> Iterator[int]:
        """The guest's frames behind hvas [start, end)."""
        for slot in self._slots:
            first, last = max(start >> 12, slot.vpn), min(-(-end >> 12), slot.vpn + slot.npages)
            yield from range(first - slot.vpn + slot.gfn, last - slot.vpn + slot.gfn)

    def _invalidated(self, event: TraceEvent) -> list[int]:
        """A flow for each gfn, which waits for the spte that is set again."""
        span = event.args[0] if event.args else None
        if not isinstance(span, RangeRef) or type(span.start) is not int or type(span.end) is not int:
            return []  # as no version of ours has written it
        if span.end - span.start > MAX_FLOWS << 12:
            return []
        flows = []
        for gfn in self._gfns(span.start, span.end):
            self._flow += 1
            self._flows[gfn] = self._flow
            flows.append(self._flow)
        return flows

    def _refaulted(self, event: TraceEvent) -> tuple[int, ...]:
        flow = self._flows.pop(event.args[0], None) if event.args and type(event.args[0]) is int else None
        return () if flow is None else (flow,)

    def _frames(self, event: TraceEvent) -> bytes:
        order = event.args[1] if len(event.args) > 1 else None
        if self._free is None or type(order) is not int or not 0 <= order <= MAX_ORDER:
            return b""
        self._free += (1 << order) * (1 if event.name == FREE else -1)
        return self._counter()

    def _counter(self) -> bytes:
        value = number(_COUNTER_VALUE, self._free or 0)
        return self._packet(message(_TRACK_EVENT, number(_TYPE, _COUNTER), number(_TRACK, COUNTER_UUID), value))


def _memslots(header: dict[str, Any]) -> list[Memslot]:
    """Those that a trace's head tells of."""
    try:
        return [Memslot(slot["gpa"] >> 12, slot["size"] >> 12, slot["hva"] >> 12) for slot in header["memslots"]]
    except (KeyError, TypeError):
        return []


def _flat(fields: Iterable[str], args: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Structures by their members."""
    for field, value in zip(fields, args, strict=True):
        if hasattr(value, "_asdict"):
            yield from _flat([f"{field}.{member}" for member in value._fields], value)
        else:
            yield field, value


def _value(value: Any) -> bytes:
    if isinstance(value, int):
        return number(_INT, value) if value < 0 else number(_UINT, value)
    return string(_STRING, str(value))
