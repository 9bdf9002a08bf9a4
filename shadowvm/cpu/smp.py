"""Coherence of translated code between the CPUs of one machine: a store by one is seen by the others' next fetch.

Unicorn sees stores of its own CPU only. Frames that any CPU executes are marked in one array; a CPU that gets a
writable TLB entry for such a frame takes a copy of the frame first (native/coherence.py) and is its suspect from then
on. After that CPU has run, and before another does, `sync_code` compares: the other CPUs forget what they translated
from the bytes that changed. With no suspect it costs 0.2 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..addr import PAGE_SIZE, Pfn
from . import mailbox as mb
from .arena import Arena

if TYPE_CHECKING:
    from .unicorn_engine import UnicornEngine

CHUNK = 64
LIST_SIZE = 8 * mb.CODE_SLOTS


class Suspects:
    """The frames that one CPU may have written while others execute them; slots shared with native code.

    `stale`: those that the host rewrote since their copy was taken.
    """

    __slots__ = ("_box", "_copies", "_new", "_pfns", "_slots", "stale")

    def __init__(self, box: memoryview[int]) -> None:
        self._box = box
        self._slots = Arena(2 * LIST_SIZE + mb.CODE_SLOTS * PAGE_SIZE)
        self._pfns = self._slots.b[:LIST_SIZE].cast("Q")
        self._new = self._slots.b[LIST_SIZE : 2 * LIST_SIZE].cast("Q")
        self._copies = self._slots.b[2 * LIST_SIZE :]
        self.stale: set[int] = set()
        box[mb.CODE_LISTS] = self._slots.address

    def note_host_write(self, pfn: Pfn) -> None:
        if self._box[mb.SUSPECTS] and pfn in self.frames():
            self.stale.add(pfn)

    def frames(self) -> list[int]:
        return self._pfns[: min(self._box[mb.SUSPECTS], mb.CODE_SLOTS)].tolist()

    def copy_of(self, slot: int) -> bytes:
        return bytes(self._copies[slot * PAGE_SIZE : (slot + 1) * PAGE_SIZE])

    def take_new(self) -> list[int] | None:
        """Frames that this CPU was the first to execute since the last call; None if they were too many to note."""
        count, self._box[mb.NEW_CODE] = self._box[mb.NEW_CODE], 0
        return None if count > mb.CODE_SLOTS else self._new[:count].tolist()

    def replace(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Go on with these frames and their contents."""
        for slot, (pfn, data) in enumerate(frames):
            self._pfns[slot] = pfn
            self._copies[slot * PAGE_SIZE : (slot + 1) * PAGE_SIZE] = data
        self._box[mb.SUSPECTS] = len(frames)
        self.stale.clear()

    def refresh(self, pfn: int, data: bytes) -> None:
        """Another CPU has written the frame, and that is known everywhere."""
        for slot, known in enumerate(self.frames()):
            if known == pfn:
                self._copies[slot * PAGE_SIZE : (slot + 1) * PAGE_SIZE] = data


class CodeShare:
    """One byte for each frame that any of `engines` executes."""

    __slots__ = ("_arena", "_engines", "address")

    def __init__(self, engines: Sequence[UnicornEngine]) -> None:
        self._engines = engines
        self._arena = Arena(engines[0].ram.nr_frames)
        self.address = self._arena.address
        for engine in engines:
            for pfn, executed in enumerate(engine.executed):
                if executed:
                    self._arena.b[pfn] = 1

    def forget(self, pfn: Pfn) -> None:
        """One CPU executes the frame no longer."""
        self._arena.b[pfn] = any(engine.executed[pfn] for engine in self._engines)


def share_code(engines: Sequence[UnicornEngine]) -> None:
    """Have these engines mark executed frames together. Empties their TLBs, so that nothing is missed."""
    share = CodeShare(engines)
    for engine in engines:
        engine.join(share)
        engine.flush_tlb()


def sync_code(engine: UnicornEngine, others: Sequence[UnicornEngine]) -> None:
    """`engine` has run; call it before one of `others`, the machine's other CPUs, does."""
    if engine.code_share is None:
        share_code([engine, *others])
        return
    box = engine.box
    if box[mb.NEW_CODE]:
        _announce(engine, others)
    if box[mb.SUSPECTS] > mb.CODE_SLOTS:
        for other in others:
            other.drop_all_code()
        engine.suspects.replace([])
        engine.flush_tlb()
    elif box[mb.SUSPECTS]:
        _compare(engine, others)


def _announce(engine: UnicornEngine, others: Sequence[UnicornEngine]) -> None:
    """Others may hold writable TLB entries of frames that have just become code: they have to come to the walker."""
    new = engine.suspects.take_new()
    for other in others:
        if new is None or any(other.may_cache_writable(Pfn(pfn)) for pfn in new):
            other.flush_tlb()


def _compare(engine: UnicornEngine, others: Sequence[UnicornEngine]) -> None:
    suspects = engine.suspects
    kept: list[tuple[int, bytes]] = []
    for slot, pfn in enumerate(suspects.frames()):
        now = engine.ram.read_page(Pfn(pfn))
        before = None if pfn in suspects.stale else suspects.copy_of(slot)
        if now != before:
            ranges = [(0, PAGE_SIZE)] if before is None else changed_ranges(before, now)
            for other in others:
                other.drop_code_ranges(Pfn(pfn), ranges)
                other.suspects.refresh(pfn, now)
        if engine.may_cache_writable(Pfn(pfn)):
            kept.append((pfn, now))
    suspects.replace(kept)


def changed_ranges(before: bytes, now: bytes) -> list[tuple[int, int]]:
    """Where two pages differ, by whole chunks: (start, end), ascending and apart."""
    ranges: list[tuple[int, int]] = []
    for start in range(0, PAGE_SIZE, CHUNK):
        end = start + CHUNK
        if before[start:end] != now[start:end]:
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
    return ranges
