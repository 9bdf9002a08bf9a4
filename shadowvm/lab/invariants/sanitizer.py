"""`--check`: the laws of the MMU (laws.py), verified at every transition that can break them, or by samples.

The sanitizer is a listener. It keeps its own books (frames, shadow entries, invalidations) from the events and the
raw memory, and compares them with the kernel's. A law that is broken stops the run with an InvariantViolation that
names the law, the event, the two sides that disagree and the events before it.

`validate()` checks from the state alone, with books made on the spot: at any time at which no task holds mmu_lock.
With `every` = N the run is checked in that way, at each N-th exit: nearly all of the events go unheard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...cpu.mailbox import WINDOWS_OPEN
from ...errors import ConfigError, InvariantViolation
from ...events import REGISTRY, Tracepoint, attached, kvm_exit
from ...sync import Lockdep, Task
from ...trace.ftrace import ftrace_line
from .ageing import AgeingRules
from .async_pf import AsyncPfRules
from .content import ContentRules
from .dirty import DirtyRules
from .frames import FrameRules
from .laws import BOTH, LAWS, STATE, describe, laws_seen
from .lpage import LpageRules
from .memslots import SlotRules
from .mmio import MmioRules
from .notifier import NotifierRules
from .rules import Handler, KvmSubject, Rules, Subject
from .shadow import ShadowRules
from .tdp import TdpRules
from .tlb import TlbRules
from .unsync import UnsyncRules

if TYPE_CHECKING:
    from ...kvm.vm import Kvm

HISTORY = 40
"""Events that a report shows."""
History = deque[tuple[Task, int, Tracepoint, tuple[Any, ...]]]

GROUPS: tuple[type[Rules], ...] = (
    TlbRules,
    NotifierRules,
    FrameRules,
    ContentRules,
    DirtyRules,
    AgeingRules,
    SlotRules,
    MmioRules,
    UnsyncRules,
    LpageRules,
    AsyncPfRules,
)
"""Who looks after which laws, besides ShadowRules, whose books the others use."""

ALL = laws_seen(BOTH)


class Sanitizer:
    """Laws over one machine, all of them unless `laws` names some.

    every: 0 to check at every transition. Otherwise laws that the state shows are checked at each `every`-th exit, and
    only those that it does not show are followed from event to event; all that were not named are left out.
    """

    def __init__(self, machine: Subject, laws: frozenset[str] = ALL, *, every: int = 0) -> None:
        self.machine = machine
        self.by_state = laws & laws_seen(STATE)
        self.laws = laws - self.by_state if every else laws
        self.every = every
        self.events = 0
        self.history: History = deque(maxlen=HISTORY)
        self.shadow = TdpRules(self) if machine.kvm.tdp_mmu_enabled else ShadowRules(self)
        self.rules: list[Rules] = [self.shadow] if self.laws else []
        self.rules += [group(self) for group in GROUPS if group.laws & self.laws]
        self._exits = 0
        self._handlers: dict[Tracepoint, list[Handler]] = {}
        for group in self.rules:
            for tracepoint, handler in group.handlers().items():
                self._handlers.setdefault(tracepoint, []).append(handler)
        if every and self.by_state:
            self._handlers.setdefault(kvm_exit, []).append(self._on_exit)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check inside the block. The history holds every event if all laws are followed, else what they need."""
        lockdep = Lockdep(self.machine.sched).watching() if "LOCKDEP" in self.laws else nullcontext()
        heard = REGISTRY.values() if self.laws == ALL else self._handlers
        with lockdep, attached(self._sink, heard):
            yield

    def validate(self, *laws: str) -> None:
        """Check these laws, by default all that were asked for, from the state of the machine, which is at rest.

        Raises:
            InvariantViolation: one is broken.
            ConfigError: one of them shows only at the transition that breaks it.
        """
        _validate(self.machine, frozenset(laws) or self.by_state, self.history)

    def coverage(self) -> str:
        """Which laws were checked, and how, for people."""
        if self.laws == ALL:
            return "every law at every transition"
        followed = [f"{describe(self.laws)} at every transition"] if self.laws else []
        sampled = [f"{describe(self.by_state)} at each {self.every}. exit"] if self.every and self.by_state else []
        return "; ".join(sampled + followed)

    def finish(self) -> None:
        """Check what must hold when the run has ended and the host was taken down."""
        for group in self.rules:
            group.finish()

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        machine = self.machine
        self.events += 1
        self.history.append((machine.sched.current, machine.instructions, tracepoint, args))
        for handler in self._handlers.get(tracepoint, ()):
            handler(*args)

    def _on_exit(self, *_: Any) -> None:
        self._exits += 1
        if self._exits >= self.every and at_rest(self.machine.kvm):
            self._exits = 0
            self.validate()

    def fail(self, law: str, one_side: str, other_side: str) -> None:
        """`law` is broken, and these two disagree: stop the run, if it is one of those that are checked."""
        if law not in self.laws:
            return
        lines = [ftrace_line(*each) for each in self.history]
        report = [f"invariant {law} violated: {LAWS[law].sentence}", f"  here:  {one_side}", f"  there: {other_side}"]
        if lines:
            report += [f"  at:    {lines[-1].strip()}", "  before it:", *(f"    {line}" for line in lines[:-1])]
        raise InvariantViolation("\n".join(report), law)


def at_rest(kvm: Kvm) -> bool:
    """Nobody changes shadow tables now, and no vCPU has a page table open for a store that is yet to be tracked."""
    return not kvm.mmu_lock.held and not any(vcpu.engine.box[WINDOWS_OPEN] for vcpu in kvm.vcpus)


def validate(kvm: Kvm, *laws: str) -> None:
    """Sanitizer.validate() of a VM at rest, without a run: by default every law that its state shows."""
    _validate(KvmSubject(kvm), frozenset(laws) or laws_seen(STATE), deque())


def _validate(machine: Subject, laws: frozenset[str], history: History) -> None:
    """Check with fresh books, but with what has happened so far in the report."""
    if laws - laws_seen(STATE):
        raise ConfigError(f"{describe(laws - laws_seen(STATE))}: the state does not show it, only events do")
    fresh = Sanitizer(machine, laws)
    fresh.history = history
    for group in fresh.rules:
        group.validate()
