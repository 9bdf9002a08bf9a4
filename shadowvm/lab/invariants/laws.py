"""The laws of the MMU by name: I1-I35 of the notifier and shadow paging protocols, and a few of the host's own.

To add one: a line in LAWS; its name in `laws` of the group of rules that looks after it (a new group: one more line in
sanitizer.py, GROUPS); there a check on the events that can break it, in a handler, or on the state alone, in
`validate()`, or both. Each ends in `sanitizer.fail(name, one_side, other_side)`, which returns if the law was not asked
for, so that bookkeeping must go on after it. tests/lab/invariants holds that LAWS and the groups agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Flag
from typing import NamedTuple

from ...errors import ConfigError


class Seen(Flag):
    """How a law can be checked.

    EVENTS: at the transition that breaks it, by books that need every event. STATE: by looking at a machine at rest.
    """

    EVENTS = 1
    STATE = 2
    BOTH = 3


EVENTS, STATE, BOTH = Seen.EVENTS, Seen.STATE, Seen.BOTH


class Law(NamedTuple):
    """One law. `looks_at`: what a check of it compares."""

    name: str
    sentence: str
    looks_at: str
    seen: Seen


_ALL = (
    Law(
        "I1",
        "every range_start has exactly one range_end, and every change of a present host pte lies between them",
        "host ptes, invalidations",
        EVENTS,
    ),
    Law(
        "I2",
        "between start and end no secondary mapping is installed inside the range",
        "sptes, invalidations",
        EVENTS,
    ),
    Law("I3", "when start has returned no spte and no TLB entry maps any page of the range", "sptes, TLBs, ptes", BOTH),
    Law("I4", "a frame is freed only when no spte and no TLB entry maps it", "sptes, TLBs, free frames", BOTH),
    Law("I5", "a host pte goes from one frame to another only through none", "host ptes", EVENTS),
    Law(
        "I6",
        "when a host pte is write-protected no writable spte or TLB entry survives",
        "sptes, TLBs, host ptes",
        BOTH,
    ),
    Law(
        "I7",
        "release ends every mapping before the mm's pages are freed, and none is installed after it",
        "sptes, subscribers",
        BOTH,
    ),
    Law(
        "I8",
        "a page is old only if neither the host nor any secondary MMU has used it, and young only if one has",
        "accessed bits, ageing decisions",
        EVENTS,
    ),
    Law("I9", "ageing takes nothing from an spte but its mark of use", "sptes", EVENTS),
    Law(
        "I10",
        "the sequence is sampled before the host page table is read and is unchanged when the spte is installed",
        "sptes, samples",
        EVENTS,
    ),
    Law("I11", "the sequence moves before the in-progress count drops", "counters of invalidation", EVENTS),
    Law(
        "I12",
        "the sequence never goes backwards, and its samples have its full width",
        "counters of invalidation",
        EVENTS,
    ),
    Law(
        "I13",
        "the in-progress count is never negative and is 0 when no invalidation is open",
        "counters of invalidation",
        BOTH,
    ),
    Law("I14", "the tracked range covers every open invalidation", "host ptes, tracked range", EVENTS),
    Law("I15", "a fault makes progress", "faults", EVENTS),
    Law(
        "I16",
        "TLBs are flushed before mmu_lock is dropped when an spte was removed or lost write access",
        "sptes, TLBs",
        BOTH,
    ),
    Law(
        "I17",
        "when a dirty log has been harvested no spte and no TLB lets a store to a clean page pass",
        "sptes, TLBs, dirty bitmaps",
        BOTH,
    ),
    Law("I18", "a shadow page is freed only after a flush that followed its unlinking", "roots, shadow pages", BOTH),
    Law("I19", "a present leaf never changes its pfn directly", "sptes", EVENTS),
    Law("I20", "an entry changes its page size only through non-present and a flush", "sptes, TLBs", EVENTS),
    Law("I21", "each leaf spte is on exactly the rmap list of its gfn", "sptes, rmaps", BOTH),
    Law(
        "I22",
        "a link points to the shadow page that the guest's entry demands, one level lower, listed as its parent",
        "shadow pages, guest tables",
        BOTH,
    ),
    Law(
        "I23",
        "an spte's rights are within those of the guest's tables, the slot and the host pte, and so is its frame",
        "sptes, guest tables, host ptes",
        BOTH,
    ),
    Law("I24", "legal (host-writable, mmu-writable, W) are 111, 110, 100, 000", "sptes", BOTH),
    Law(
        "I25",
        "no writable spte exists for a gfn that is shadowed, unless by unsync leaf tables only",
        "sptes, write tracking",
        BOTH,
    ),
    Law(
        "I26",
        "a page is unsync before the guest may write it, all pages above it know, and every flush exits meanwhile",
        "unsync pages, intercepts",
        BOTH,
    ),
    Law(
        "I27",
        "after a flush, or below a new link, no spte that the guest's tables contradict is left",
        "sptes, guest tables",
        EVENTS,
    ),
    Law(
        "I28",
        "disallow_lpage of a block counts the shadow pages of guest tables in it, and a ragged end of the slot",
        "lpage_info, shadow pages",
        BOTH,
    ),
    Law(
        "I29",
        "a large spte is for gfns of one slot and a large page of the host, with no table shadowed and nothing logged",
        "sptes, slots, host ptes",
        BOTH,
    ),
    Law(
        "I30",
        "a page that was written since its dirty bit was cleared is in the next harvest",
        "dirty bitmaps, contents",
        EVENTS,
    ),
    Law(
        "I31",
        "enabling a dirty log flushes every TLB that may hold a writable entry, whatever W and D say",
        "TLBs, dirty bitmaps",
        EVENTS,
    ),
    Law(
        "I32",
        "an mmio spte is used only in the generation that it is of, and none is left when these begin anew",
        "mmio sptes, slots",
        BOTH,
    ),
    Law("I33", "a present spte becomes an mmio spte only through none, with a flush", "sptes", EVENTS),
    Law(
        "I34",
        "when a slot was deleted or moved, nothing refers to it, and no fault installs anything for it",
        "sptes, rmaps, shadow pages, slots",
        BOTH,
    ),
    Law("I35", "shadow pages and leaves are as many as the counters and lists say", "shadow pages, counters", BOTH),
    Law("FRAME", "a frame is handed out once and freed once", "free frames, reference counts", BOTH),
    Law("POISON", "nobody writes a free frame", "free frames", BOTH),
    Law("SWAP", "what is read from swap is what was last written, and no dirty page is dropped", "swap slots", EVENTS),
    Law("CONTENT", "a page is new with zeros, or a copy with what it was copied from", "contents", EVENTS),
    Law("APF", "who was told to wait for a page is told, once, that it is there", "pages on their way", EVENTS),
    Law("HOST-TLB", "the host's own TLB maps nothing that its page table does not", "host TLB, host ptes", BOTH),
    Law(
        "LOCKDEP",
        "locks are taken in order, nobody sleeps under a spinlock, and sptes go under mmu_lock alone",
        "locks, sptes",
        EVENTS,
    ),
)

LAWS: dict[str, Law] = {law.name: law for law in _ALL}
"""Every law by its name."""


def laws_seen(how: Seen) -> frozenset[str]:
    """Names of the laws that can be checked in this way."""
    return frozenset(law.name for law in _ALL if law.seen & how)


def parse_laws(text: str) -> frozenset[str]:
    """Names in a comma-separated list. ConfigError for one that is no law."""
    names = [name.strip().upper() for name in text.split(",")]
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"--check-laws: '{name}' is no law (--check-laws help lists them)")
    return frozenset(names)


def describe(laws: Iterable[str]) -> str:
    """Names in the order of LAWS, for people."""
    chosen = set(laws)
    return ",".join(name for name in LAWS if name in chosen)


def help_text() -> str:
    """Every law, how it can be checked, and its sentence, one a line."""
    how = {EVENTS: "events", STATE: "state", BOTH: "both"}
    return "\n".join(f"{law.name:9}{how[law.seen]:8}{law.sentence}" for law in _ALL)
