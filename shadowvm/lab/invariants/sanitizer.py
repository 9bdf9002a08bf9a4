"""`--check`: the laws of the MMU, verified at every transition that can break them.

The sanitizer is a listener. It keeps its own books (frames, shadow entries, invalidations) from the events and the
raw memory, and compares them with the kernel's. A law that is broken stops the run with an InvariantViolation that
names the law, the event, the two sides that disagree and the events before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ...errors import InvariantViolation
from ...events import REGISTRY, Tracepoint, attached
from ...sync import Lockdep, Task
from ...trace.ftrace import ftrace_line
from .content import ContentRules
from .dirty import DirtyRules
from .frames import FrameRules
from .notifier import NotifierRules
from .shadow import ShadowRules
from .tlb import TlbRules

if TYPE_CHECKING:
    from ...machine import Machine

HISTORY = 40
"""Events that a report shows."""

Handler = Callable[..., None]

LAWS = {
    "I1": "every range_start has exactly one range_end, and every change of a present host pte lies between them",
    "I2": "between start and end no secondary mapping is installed inside the range",
    "I3": "when start has returned no spte and no TLB entry maps any page of the range",
    "I4": "a frame is freed only when no spte and no TLB entry maps it",
    "I5": "a host pte goes from one frame to another only through none",
    "I6": "when a host pte is write-protected no writable spte or TLB entry survives",
    "I7": "release ends every mapping before the mm's pages are freed, and none is installed after it",
    "I10": "the sequence is sampled before the host page table is read and is unchanged when the spte is installed",
    "I11": "the sequence moves before the in-progress count drops",
    "I12": "the sequence never goes backwards",
    "I13": "the in-progress count is never negative and is 0 when no invalidation is open",
    "I14": "the tracked range covers every open invalidation",
    "I15": "a fault makes progress",
    "I16": "TLBs are flushed before mmu_lock is dropped when an spte was removed or lost write access",
    "I17": "when a dirty log has been harvested no spte and no TLB lets a store to a clean page pass",
    "I18": "a shadow page is freed only after a flush that followed its unlinking",
    "I19": "a present leaf never changes its pfn directly",
    "I21": "each leaf spte is on exactly the rmap list of its gfn",
    "I22": "a link points to the shadow page that the guest's entry demands, one level lower, listed as its parent",
    "I23": "an spte's rights are within those of the guest's tables, the slot and the host pte, and so is its frame",
    "I24": "legal (host-writable, mmu-writable, W) are 111, 110, 100, 000",
    "I25": "no writable spte exists for a gfn that is shadowed",
    "I30": "a page that was written since its dirty bit was cleared is in the next harvest",
    "I34": "nothing that belongs to a deleted or moved slot is left, or comes back",
    "I35": "shadow pages and leaves are as many as the counters and lists say",
    "FRAME": "a frame is handed out once and freed once",
    "POISON": "nobody writes a free frame",
    "SWAP": "what is read from swap is what was last written, and no dirty page is dropped",
    "CONTENT": "a page is new with zeros, or a copy with what it was copied from",
    "HOST-TLB": "the host's own TLB maps nothing that its page table does not",
}


class Rules(Protocol):
    """One group of laws."""

    def handlers(self) -> dict[Tracepoint, Handler]:
        """What to call at which tracepoint, with the tracepoint's arguments."""

    def finish(self) -> None:
        """Check what must hold when the run has ended."""


class Sanitizer:
    """All laws over one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.history: deque[tuple[Task, int, Tracepoint, tuple[Any, ...]]] = deque(maxlen=HISTORY)
        shadow = ShadowRules(self)
        self.rules: list[Rules] = [
            shadow,
            TlbRules(self, shadow),
            NotifierRules(self, shadow),
            FrameRules(self, shadow),
            ContentRules(self),
            DirtyRules(self),
        ]
        self.lockdep = Lockdep(machine.sched)
        self._handlers: dict[Tracepoint, list[Handler]] = {}
        for group in self.rules:
            for tracepoint, handler in group.handlers().items():
                self._handlers.setdefault(tracepoint, []).append(handler)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check inside the block, and what must hold at its end unless it fails."""
        with self.lockdep.watching(), attached(self._sink, REGISTRY.values()):
            yield

    def finish(self) -> None:
        """Check what must hold when the run has ended."""
        for group in self.rules:
            group.finish()

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        machine = self.machine
        self.history.append((machine.sched.current, machine.instructions, tracepoint, args))
        for handler in self._handlers.get(tracepoint, ()):
            handler(*args)

    def fail(self, law: str, one_side: str, other_side: str) -> NoReturn:
        """Stop the run: `law` is broken, and these two disagree."""
        lines = [ftrace_line(*each) for each in self.history]
        report = [f"invariant {law} violated: {LAWS[law]}", f"  here:  {one_side}", f"  there: {other_side}"]
        if lines:
            report += [f"  at:    {lines[-1].strip()}", "  before it:", *(f"    {line}" for line in lines[:-1])]
        raise InvariantViolation("\n".join(report))
