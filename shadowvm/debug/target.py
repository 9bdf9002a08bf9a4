"""A machine under a debugger, in one process: run to a position or a break, stand still there, go on.

The machine runs in a greenlet of its own. A stop switches from wherever it is, inside a fault with its locks held or
between two instructions, to the debugger's greenlet, and going on switches back: nothing in the machine notices. A
stop between instructions cuts the budget of an entry in pieces (Debugger of kvm/vm.py), which leaves no event, counter
or turn behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import greenlet

from ..cpu.engine import CpuExit
from ..errors import ConfigError
from ..events import REGISTRY, Tracepoint, attached
from .breaks import AddressBreak, MemoryWatch
from .poke import Input, perform
from .position import Position, Stop
from .state import state_hash
from .story import Happened
from .views import VIEWS
from .watching import Watching

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from ..kvm.vm import Kvm
    from ..machine import Machine, Outcome

MAX_STEPS = 10_000
"""Of one step()."""
_ONLY_STOP: tuple[str, tuple[Any, ...]] = ("", ())
HISTORY = 4096
"""Events that are remembered, for the story of the last fault."""


class Break(Protocol):
    """Something to stop at. number: what the user calls it."""

    @property
    def number(self) -> int: ...

    def tracepoints(self) -> Sequence[Tracepoint]:
        """Which events it looks at."""

    def hit(self, target: Target, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str | None:
        """What to tell the user if this event is one to stop at."""


class Target:
    """See the module. output: all that the guest has said; outcome: how it ended, None while it has not."""

    def __init__(self, build: Callable[[Callable[[int], None]], Machine]) -> None:
        self.output = bytearray()
        self.machine = build(self.output.append)
        self.outcome: Outcome | None = None
        self.events = 0
        self.history: deque[Happened] = deque(maxlen=HISTORY)
        self.interrupted = False
        self.stop = Stop("start", Position(0, 0))
        self._until = 0
        self._entered: Vcpu | None = None
        self._withheld = 0
        self._until_event = 0
        self._least_event = 0
        self._watching = Watching(self.machine)
        self.inputs: list[Input] = []
        self._applied = 0
        self._errand: tuple[str, tuple[Any, ...]] | None = None
        self._refusal: ConfigError | None = None
        self._breaks: dict[Tracepoint, list[Break]] = {}
        self._addresses: dict[int, int] = {}
        self._passed: dict[int, tuple[int, int]] = {}
        self._on_hit: Callable[[Stop], None] = self._stand_still
        self._debugger = greenlet.getcurrent()
        self._here = greenlet.greenlet(self._main)
        self.machine.kvm.debugger = self

    def _main(self) -> None:
        """The machine's greenlet. It comes to its end in the debugger's, with what it raised."""
        try:
            with attached(self._sink, REGISTRY.values()):
                self.outcome = self.machine.run()
            text = f"{self.outcome.reason.value}, status {self.outcome.status} {self.outcome.text}"
            self.stop = Stop("exit", Position(self.machine.instructions, self.events), text.rstrip())
            error = None
        except BaseException as raised:
            error = raised
        if error is None:
            self._debugger.switch()
        else:
            self._debugger.throw(error)

    @property
    def position(self) -> Position:
        """Where the machine stands."""
        return self.stop.position

    def go(self, until: int = 0, until_event: int = 0, breaks: Sequence[Break] = ()) -> Stop:
        """Run to `until` instructions or `until_event` events, whichever comes first (0: neither), or to a break."""
        self._on_hit = self._stand_still
        return self._go(until, until_event, breaks)

    def step(self, number: int | None, low: int, high: int, breaks: Sequence[Break]) -> Stop:
        """Instructions until vCPU `number` (None: any) has executed one and its RIP is not in [low, high), or to a
        break. kind is "steps" if that is not so after many."""
        engines = [vcpu.engine for vcpu in self.machine.vcpus if number in (None, vcpu.id)]
        before = [engine.instructions for engine in engines]
        for _ in range(MAX_STEPS):
            stop = self.go(self.machine.instructions + 1, 0, breaks)
            done = any(engine.instructions != old for engine, old in zip(engines, before, strict=True))
            inside = number is not None and low <= engines[0].rip < high
            if stop.kind != "instructions" or (done and not inside):
                self.stop = stop if number is None or stop.kind != "instructions" else stop._replace(vcpu=number)
                return self.stop
        self.stop = stop._replace(kind="steps")
        return self.stop

    def last_hit(self, until: Position, breaks: Sequence[Break]) -> Stop | None:
        """Run to a position without stopping at breaks; the last hit before it."""
        hits: list[Stop] = []
        self._on_hit = lambda stop: hits.__setitem__(slice(None), [stop]) if _is_before(stop, until) else None
        self.go_to(until, breaks)
        return hits[0] if hits else None

    def stand_at_hit(self, hit: Stop) -> Stop:
        """Go to a hit of this run, which lies ahead. Delivery of an event takes no instruction: the position may be
        that before it as well."""
        if hit.began is not None:
            return self.go_to(Position(hit.began, 0))
        self.go_to(hit.position)
        if hit.pc is not None and self.machine.vcpus[hit.vcpu or 0].engine.linear_rip != hit.pc:
            self.go(breaks=[AddressBreak(0, hit.pc)])
        self.stop = hit
        return hit

    def go_to(self, where: Position, breaks: Sequence[Break] = ()) -> Stop:
        """Run to a position, which lies ahead."""
        if where.between:
            while self.position.instructions < where.instructions or not self.position.between:
                self._least_event = where.events
                self._go(where.instructions, 0, breaks)
                self._least_event = 0
                if self.outcome is not None or self.stop.kind == "interrupt":
                    break
        elif self.position.order < where.order:
            self._go(0, where.events, breaks)
        return self.stop

    def write(self, method: str, *arguments: Any) -> tuple[Stop, list[Input]]:
        """Write something, by poke.METHODS: (where the machine stands then, all inputs of the run so far).

        Raises:
            ConfigError: it cannot be done, or not here; nothing has changed.
        """
        if self.outcome is not None:
            raise ConfigError("the guest has ended: nothing can be written")
        if not self.position.between:
            raise ConfigError("inside of an event nothing can be written: go to the next instruction first")
        self._errand, self._on_hit = (method, arguments), lambda stop: None
        self._go(0, 0, ())
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        return self.stop, self.inputs

    def go_past_inputs(self, number: int) -> Stop:
        """To where so many inputs have been written, which is before the next instruction."""
        while self._applied < number and self.outcome is None and not self.interrupted:
            self._errand, self._on_hit = _ONLY_STOP, lambda stop: None
            self._go(0, 0, ())
        return self.stop

    def set_inputs(self, inputs: list[Input]) -> None:
        """What is written on the way from here on, and what has been so far."""
        self.inputs = inputs

    def _go(self, until: int, until_event: int, breaks: Sequence[Break]) -> Stop:
        if self.outcome is not None:
            return self.stop
        self._until, self._until_event, self.interrupted = until, until_event, False
        self._watching.set([each for each in breaks if isinstance(each, MemoryWatch)])
        self._breaks = {}
        self._addresses = {each.address: each.number for each in breaks if isinstance(each, AddressBreak)}
        for vcpu in self.machine.vcpus:
            vcpu.engine.breakpoints.set(self._addresses)
            if self._addresses:
                self._let_pass(vcpu, vcpu.engine.linear_rip)
        for each in breaks:
            for tracepoint in each.tracepoints():
                self._breaks.setdefault(tracepoint, []).append(each)
        entered = self._entered
        if entered is not None:  # amid an access to a device, from inside the guest
            self._take_back()
            self._grant(entered, max(until - entered.kvm.instructions, 0) if until else entered.engine.budget)
        self._debugger = greenlet.getcurrent()
        self._here.switch()
        return self.stop

    def _stand_still(self, stop: Stop) -> None:
        """In the machine's greenlets: give the debugger control until it lets the machine go on."""
        self.stop = stop
        self._here = greenlet.getcurrent()
        self._debugger.switch()

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        self.events += 1
        task = self.machine.sched.current
        now = self.machine.instructions
        self.history.append(Happened(self.events, now, task.name, task.vcpu, tracepoint, args))
        breaks = self._breaks.get(tracepoint, ())
        for each in breaks:
            text = each.hit(self, tracepoint, args)
            if text is not None:
                self._on_hit(self._inside("point", text, each.number))
                return
        if self.events == self._until_event:
            self._stand_still(self._inside("events", tracepoint.describe(args)))

    def _inside(self, kind: str, text: str, number: int | None = None) -> Stop:
        where = Position(self.machine.instructions, self.events, between=False)
        task = self.machine.sched.current
        return Stop(kind, where, text, task.vcpu, task.name, number)

    def enter(self, vcpu: Vcpu) -> int:
        """Enter the guest; stand still between instructions where that was asked for."""
        engine, kvm, watching = vcpu.engine, vcpu.kvm, self._watching
        alone = False
        while True:
            if watching.on:
                self._report_access(kvm)
                watching.arm()
            if (self._errand is not None or self._applied < len(self.inputs)) and self._serve_inputs(vcpu):
                return CpuExit.QUANTUM
            if self.interrupted or self._is_there(kvm.instructions):
                kind = "interrupt" if self.interrupted else "instructions"
                self.interrupted = False
                self._between(vcpu, kind)
                continue
            began = kvm.instructions
            self._grant(vcpu, 1 if alone else self._most(vcpu, began, engine.budget))
            reason = engine.watchpoints.enter(engine) if watching.on else engine.enter()
            self._take_back()
            if watching.on:
                alone = watching.settle(vcpu, reason, alone, kvm.instructions != began)
            if reason == CpuExit.DEBUG:
                if not alone and not engine.watchpoints.hits and engine.linear_rip in self._addresses:
                    self._at_address(vcpu)
                continue
            if reason != CpuExit.QUANTUM or engine.budget <= 0:
                return reason

    def _grant(self, vcpu: Vcpu, most: int) -> None:
        """Let the guest execute no more than this of its budget now."""
        left = vcpu.engine.budget
        piece = min(left, most)
        self._entered, self._withheld = vcpu, left - piece
        vcpu.engine.set_budget(piece)

    def _take_back(self) -> None:
        """Out of the guest: its budget is whole again."""
        if self._entered is not None:
            self._entered.engine.set_budget(self._entered.engine.budget + self._withheld)
            self._entered = None

    def _most(self, vcpu: Vcpu, now: int, left: int) -> int:
        """How many instructions may be executed before something is to be done."""
        most = max(self._until - now, 1) if self._until else left
        if self._applied < len(self.inputs):
            ahead = self.inputs[self._applied]
            most = min(most, max(ahead.instructions - now, 1))
            if ahead.instructions == now and ahead.vcpu == vcpu.id:  # it comes after the delivery of an event
                vcpu.engine.breakpoints.set({*self._addresses, ahead.pc})
        return most

    def _serve_inputs(self, vcpu: Vcpu) -> bool:
        """Write what is to be written here; whether there is something to do then before the entry."""
        kvm = vcpu.kvm
        done = self._applied
        while self._applied < len(self.inputs):
            each = self.inputs[self._applied]
            if not each.is_due(kvm.instructions, self.events, vcpu):
                break
            self._applied += 1
            perform(self, each.method, each.arguments)
        if self._applied > done:
            vcpu.engine.breakpoints.set(self._addresses)
        while self._errand is not None:
            (method, arguments), self._errand = self._errand, None
            if method:
                done = min(done, self._perform(vcpu, method, arguments))
            self._stand_still(self.stop._replace(position=Position(kvm.instructions, self.events)))
        return self._applied > done and bool(vcpu.requests or kvm.loaded is not vcpu)

    def _perform(self, vcpu: Vcpu, method: str, arguments: tuple[Any, ...]) -> int:
        """Write, and remember that unless it is refused; how many had been written before."""
        new = Input(vcpu.kvm.instructions, self.events, vcpu.id, vcpu.engine.linear_rip, method, arguments)
        before = self._applied
        self._refusal = perform(self, method, arguments)
        if self._refusal is None:
            self.inputs = [*self.inputs[:before], new]
            self._applied += 1
        return before

    def _is_there(self, instructions: int) -> bool:
        """At the position that was asked for, or past it."""
        if not self._until or instructions < self._until:
            return False
        return self.events >= self._least_event or instructions > self._until

    def _report_access(self, kvm: Kvm) -> None:
        """Tell of what the instruction before has hit, whoever comes first."""
        hit = self._watching.take()
        if hit is None:
            return
        vcpu, now = kvm.vcpus[hit.vcpu], kvm.instructions
        number, began = hit.watch.number, max(now - 1, 0) if hit.watch.undo else None
        pc, name = vcpu.engine.linear_rip, f"CPU {vcpu.id}/KVM"
        self._on_hit(Stop("watchpoint", Position(now, self.events), "", vcpu.id, name, number, pc, began))

    def _at_address(self, vcpu: Vcpu) -> None:
        """At a breakpoint, once for each time that its instruction is executed."""
        address = vcpu.engine.linear_rip
        where = Position(vcpu.kvm.instructions, self.events)
        if self._passed.get(vcpu.id) == (address, where.instructions):
            vcpu.engine.breakpoints.let_pass(address)  # it faulted, and is executed again
            return
        self._let_pass(vcpu, address)
        number = self._addresses.get(address)
        self._on_hit(Stop("breakpoint", where, "", vcpu.id, vcpu.sched.current.name, number, address))

    def _let_pass(self, vcpu: Vcpu, address: int) -> None:
        self._passed[vcpu.id] = (address, vcpu.kvm.instructions)
        vcpu.engine.breakpoints.let_pass(address)

    def _between(self, vcpu: Vcpu, kind: str) -> None:
        where = Position(vcpu.kvm.instructions, self.events)
        self._until = 0
        self._stand_still(Stop(kind, where, "", vcpu.id, vcpu.sched.current.name))

    def view(self, name: str, *arguments: Any) -> Any:
        """One of VIEWS: what does not move the machine."""
        return VIEWS[name](self, *arguments)

    def status(self) -> int:
        """Exit status of the run; 0 while it goes on."""
        return 0 if self.outcome is None else self.outcome.status

    def state_hash(self) -> str:
        """state.py."""
        return state_hash(self.machine, bytes(self.output))

    def close(self) -> None:
        """Give real resources back and hear of no events; the machine is not taken down, it may stand anywhere."""
        for tracepoint in REGISTRY.values():
            for sink in tracepoint.sinks:
                owner = getattr(sink, "__self__", None)
                if owner is self or getattr(owner, "sched", None) is self.machine.sched:
                    tracepoint.detach(sink)
        with ExitStack() as stack:
            stack.callback(self.machine.host.close)
            for vcpu in self.machine.vcpus:
                stack.callback(vcpu.engine.close)


def _is_before(stop: Stop, until: Position) -> bool:
    """Is a hit behind a position, on the way back?"""
    return stop.position.order < until.order if stop.began is None else stop.began < until.instructions
