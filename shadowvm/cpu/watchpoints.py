"""A debugger's watchpoints on data: an exit after the accessing instruction, which no guest can see.

    engine.watchpoints.set([WatchRow(0x1000, 8, writes=True)])
    reason = engine.watchpoints.enter(engine)
    if reason == CpuExit.DEBUG and engine.watchpoints.is_suspect():
        engine.watchpoints.begin(); engine.set_budget(1); engine.watchpoints.enter(engine); engine.watchpoints.end()
    hits = engine.watchpoints.hits

Native code (native/watch.py) finds accesses by page, while the TLB and all that follows from it stay what they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SIZE, Gva
from ..errors import ConfigError
from . import mailbox as mb
from .engine import CpuExit

if TYPE_CHECKING:
    from .unicorn_engine import UnicornEngine

NR_MODES = 3
_MASK64 = (1 << 64) - 1


class WatchRow(NamedTuple):
    """Bytes [address, address + size) to watch: linear addresses, or host-physical ones."""

    address: int
    size: int
    reads: bool = False
    writes: bool = False
    physical: bool = False


class Watchpoints:
    """Those of one engine; only one that counts has any."""

    __slots__ = ("_box", "_mark_all", "_rows", "_unmark")

    def __init__(self, box: memoryview[int], address: int, native: dict[str, int]) -> None:
        mark_all: Callable[[int], None] = ctypes.CFUNCTYPE(None, ctypes.c_int64)(native["watch_mark_all"])
        unmark: Callable[[int, int, int], None] = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(native["watch_unmark"])
        self._box = box
        self._mark_all: Callable[[], None] = lambda: mark_all(address)
        self._unmark: Callable[[int, int], None] = lambda page, idx: unmark(address, page, idx)
        self._rows: tuple[WatchRow, ...] = ()

    def set(self, rows: Sequence[WatchRow]) -> None:
        """Watch these from now on. ConfigError: too many."""
        if len(rows) > mb.MAX_WATCHPOINTS:
            raise ConfigError(f"{len(rows)} watchpoints are more than {mb.MAX_WATCHPOINTS}")
        if tuple(rows) == self._rows:
            return
        self._rows = tuple(rows)
        box = self._box
        for number, row in enumerate(rows):
            at = mb.WATCHPOINTS + mb.WATCHPOINT_WORDS * number
            box[at] = mb.WATCH_READS * row.reads | mb.WATCH_WRITES * row.writes | mb.WATCH_PHYSICAL * row.physical
            box[at + 1], box[at + 2] = row.address & _MASK64, row.address + row.size & _MASK64
        box[mb.NR_WATCHPOINTS], box[mb.WATCH_PAGE_BEFORE] = len(rows), 1
        self.forget()
        self._mark_all()

    @property
    def on(self) -> bool:
        """Is there any?"""
        return bool(self._rows)

    def enter(self, engine: UnicornEngine) -> int:
        """engine.enter(), with an exit at each INVLPG: marked entries have to be found for it. If nobody else wants
        that exit, it is done here."""
        controls = engine.controls
        wanted, controls.invlpg = controls.invlpg, True
        reason = engine.enter()
        while reason == CpuExit.INVLPG and not wanted:
            engine.flush_page(Gva(self._box[mb.EXIT_VA]))
            engine.skip_instruction()
            reason = engine.enter() if engine.budget > 0 else CpuExit.QUANTUM
        controls.invlpg = wanted
        return reason

    def before_flush(self, va: int) -> None:
        """The TLB is about to drop a page: let it find the page."""
        if self._rows:
            for idx in range(NR_MODES):
                self._unmark(va & ~(PAGE_SIZE - 1) & _MASK64, idx)

    def is_suspect(self) -> bool:
        """Was the last exit before an instruction that seems to hit? It is to be done alone, after begin()."""
        return bool(self._box[mb.WATCH_SUSPECT])

    def begin(self) -> None:
        """From now on hits are noted and are no exits."""
        self._box[mb.WATCH_SUSPECT], self._box[mb.WATCH_PASSING] = 0, 1

    def end(self) -> None:
        """They are exits again."""
        self._box[mb.WATCH_PASSING] = 0

    @property
    def hits(self) -> int:
        """A bit for each row that was hit."""
        return self._box[mb.WATCHPOINT_HITS]

    def forget(self) -> None:
        """Of the instruction that hit nothing is left, or it has been reported."""
        self._box[mb.WATCHPOINT_HITS] = 0
