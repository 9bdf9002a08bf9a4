"""The guest's memory as the oracle sees it: flat words, and for each word what it was and until when.

What the host does (swap, page migration) is invisible here. What its user does is not: pages are unmapped, made
read-only or thrown away, slots come and go.
"""

from __future__ import annotations

from .layout import (
    ACCESSED,
    DIRTY,
    HIGH,
    HIGH_BASE,
    HIGH_PAGES,
    LOW,
    LOW_BASE,
    LOW_PAGES,
    MOVING,
    MOVING_BASES,
    MOVING_PAGES,
    PRESENT,
    SMM_BASE,
    SMM_OFFSET,
)

FOREVER = 1 << 62
_CACHEABLE = PRESENT | ACCESSED
_MARKS = ACCESSED | DIRTY
_KEPT = 12
"""More former values of a word than this are looked through for those that nobody can use any more."""


class Memory:
    """Words by `hpage << 9 | index`; what is not there is 0.

    history: for each word the values that a CPU may still have cached, with the time until which they stood; FOREVER
    for one that was overwritten from outside, which no flush of the guest removes. horizon: nobody uses what was
    overwritten before it. since: by `word << 1 | half`, when it was changed last, marks aside. rom: whether the third
    slot is read-only. logged: slots, by number and address space, that have a dirty log; dirty: by slot, pages whose
    contents the guest has changed by it since the last harvest. journal: by word, what it was before each change, while
    somebody wants to know.
    """

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.history: dict[int, list[tuple[int, int]]] = {}
        self.bases: dict[int, int] = {LOW: LOW_BASE, HIGH: HIGH_BASE, MOVING: MOVING_BASES[0]}
        self.read_only: set[int] = set()
        self.unmapped: set[int] = set()
        self.logged: set[int] = set()
        self.dirty: dict[int, set[int]] = {}
        self.since: dict[int, int] = {}
        self.rom = False
        self.horizon = 0
        self.journal: dict[int, list[int]] | None = None

    def find(self, gfn: int, smm: bool = False) -> int:
        """The host page behind a frame, outside or inside of SMM; -1 where no slot is."""
        if gfn < LOW_PAGES:
            return gfn
        if gfn < HIGH_BASE + HIGH_PAGES:
            return HIGH << 16 | gfn - HIGH_BASE
        if smm:
            return MOVING << 16 | gfn - SMM_BASE if SMM_BASE + SMM_OFFSET <= gfn < SMM_BASE + MOVING_PAGES else -1
        base = self.bases.get(MOVING, -1)
        return MOVING << 16 | gfn - base if 0 <= base <= gfn < base + MOVING_PAGES else -1

    def is_rom(self, hpage: int, smm: bool) -> bool:
        """Whether the guest cannot write there."""
        return self.rom and hpage >> 16 == MOVING and not smm

    def set_word(self, at: int, value: int, now: int, smm: bool = False) -> None:
        """The guest or its CPU changes a word at time `now`."""
        old = self.words.get(at, 0)
        if old == value:
            return
        former = self.history.get(at)
        if former is not None:
            former[:] = _end(former, old ^ value, now)
        self._change(at, old, value, now, smm)

    def mark_word(self, at: int, bits: int, now: int, smm: bool | None = False) -> None:
        """The CPU sets A or D. What was overwritten from outside may still be cached. No `smm`: in either log."""
        old = self.words.get(at, 0)
        if old | bits != old:
            self._change(at, old, old | bits, now, smm)

    def _change(self, at: int, old: int, value: int, now: int, smm: bool | None) -> None:
        self._remember(at, old, now)
        self._date(at, old ^ value, now)
        self.words[at] = value
        slot = -1 if smm is None else at >> 25 | smm << 16
        if slot in self.logged:
            self.dirty.setdefault(slot, set()).add(at >> 9)
        if self.journal is not None:
            self.journal.setdefault(at, []).append(old)

    def _date(self, at: int, changed: int, now: int) -> None:
        if changed & 0xFFFFFFFF & ~_MARKS:
            self.since[at << 1] = now
        if changed >> 32 & ~_MARKS:
            self.since[at << 1 | 1] = now

    def set_outside(self, at: int, value: int, now: int = 0) -> None:
        """The VMM stores a word. KVM does not hear of it."""
        old = self.words.get(at, 0)
        if old != value:
            self._remember(at, old, FOREVER)
            self._date(at, old ^ value, now)
            self.words[at] = value

    def clear_page(self, hpage: int, now: int = 0) -> None:
        """The contents are thrown away."""
        first = hpage << 9
        for at in [at for at in self.words if at >> 9 == hpage] if len(self.words) < 512 else range(first, first + 512):
            if self.words.get(at):
                self.set_outside(at, 0, now)

    def _unmarked(self, at: int, old: int) -> bool:
        """In ROM an entry is used as it is, marked or not."""
        return at >> 25 == MOVING and self.rom and bool((old | old >> 32) & PRESENT)

    def _remember(self, at: int, old: int, end: int) -> None:
        """A value is worth keeping if it can be in a TLB: present, and marked as used. Of 32-bit entries either."""
        if old & _CACHEABLE != _CACHEABLE and old >> 32 & _CACHEABLE != _CACHEABLE and not self._unmarked(at, old):
            return
        former = self.history.setdefault(at, [])
        if len(former) >= _KEPT:
            former[:] = [each for each in former if each[1] > self.horizon]
        if (old, end) not in former:
            former.append((old, end))


def _end(former: list[tuple[int, int]], changed: int, now: int) -> list[tuple[int, int]]:
    """The guest has changed these bits: what had been overwritten from outside is found out, by halves of a word."""
    kept = (0 if changed & 0xFFFFFFFF else 0xFFFFFFFF) | (0 if changed >> 32 else 0xFFFFFFFF << 32)
    ended = [(value, now if end == FOREVER else end) for value, end in former]
    return ended + [(value & kept, FOREVER) for value, end in former if end == FOREVER and value & kept]
