"""The command language of the debugger: QEMU's monitor words, rr's for time, and our own for faults.

    monitor = Monitor(timeline)
    for line in monitor.execute("break kvm_page_fault if error_code & 2"): print(line)

A refused command raises ConfigError with one line. commands/ has the commands, numbers.py says what a number may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from .breakpoints import Breakpoints
from .commands.table import find
from .numbers import MAX_LENGTH, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .breakpoints import AnyBreak
    from .commands import Lines
    from .position import Stop
    from .timeline import Timeline

ALIASES = {"pc": "rip", "sp": "rsp", "fp": "rbp", "eflags": "rflags"}
"""What gdb calls registers."""


def register_name(text: str) -> str:
    """Of `$REG`, as the views name it."""
    name = text.removeprefix("$").lower()
    return ALIASES.get(name, name)


class Monitor:
    """A session. vcpu: the CPU that is looked at, None for the one that runs. done: the user has had enough."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.breakpoints = Breakpoints()
        self.vcpu: int | None = None
        self.done = False
        self._said = 0

    def execute(self, line: str) -> Lines:
        """What one command line prints. ConfigError: it cannot be done."""
        line = line.strip()
        if not line or line.startswith("#"):
            return []
        if len(line) > MAX_LENGTH:
            raise ConfigError(f"a command of {len(line)} characters is too long ({MAX_LENGTH} at most)")
        word, _, rest = line.partition(" ")
        word, slash, form = word.partition("/")
        return find(word)(self, f"/{form} {rest.strip()}" if slash else rest.strip())

    def number(self, text: str) -> int:
        """The value of an expression of numbers, registers of the current vCPU and symbols."""
        registers: dict[str, int] = {}

        def lookup(name: str) -> int:
            if not registers:
                registers.update(self.timeline.call("view", "registers", self.vcpu))
            value = registers.get(register_name(name))
            if value is None:
                value = self.symbol(name)
            if value is None:
                raise ConfigError(f"'{name}' is no register and no symbol")
            return value

        return evaluate(text, lookup)

    def write_register(self, text: str, value: int) -> None:
        """Write `$REG` of the current vCPU. ShadowvmError: there is none, or it does not take that."""
        name = register_name(text)
        if name not in self.timeline.call("view", "registers", self.vcpu):
            raise ConfigError(f"there is no register '{text}'")
        self.timeline.write("register", self.vcpu, name, value)

    def symbol(self, name: str) -> int | None:
        """The address of a symbol of the guest."""
        found: int | None = self.timeline.call("view", "symbol", name)
        return found

    def run(self, until: int = 0, until_event: int = 0, more: Sequence[AnyBreak] = ()) -> Stop:
        """Forwards, to where asked or to a break; hits that are to be ignored are passed by."""
        ahead = self.breakpoints.replay_break
        if ahead > self.timeline.position.instructions and (not until or ahead < until):
            until = ahead
        while True:
            stop = self.timeline.go(until, until_event, [*self.breakpoints.active(), *more])
            if not self.breakpoints.pass_by(stop):
                return stop

    def stopped(self, stop: Stop | None) -> Lines:
        """How a stop is told, after what the guest has said on the way."""
        lines = self._new_output()
        if stop is None:
            return [*lines, "no break was hit before: at the start of history"]
        if stop.kind == "exit":
            return [*lines, f"the guest has ended: {stop.text}", f"at {stop.position}"]
        where = f"vCPU {stop.vcpu}" if stop.vcpu is not None else stop.task or "start"
        number = f"break {stop.number}, " if stop.number else ""
        why = "interrupted, " if stop.kind == "interrupt" else ""
        lines.append(f"{why}{number}{where} at {stop.position}")
        if stop.text:
            lines.append(f"  {stop.text}")
        elif stop.kind in ("instructions", "interrupt", "breakpoint", "watchpoint"):
            lines += [f"  {text}" for text in self.timeline.call("view", "disassembly", 1, None, stop.vcpu)]
        return lines

    def look_afresh(self) -> None:
        """The machine is another one: look at the CPU that runs there, and take no output of its guest for new."""
        self.vcpu = None
        self._said = len(self.timeline.call("view", "output"))

    def _new_output(self) -> Lines:
        said: bytes = self.timeline.call("view", "output")
        new, self._said = said[self._said :], max(self._said, len(said))
        return [f"guest: {line}" for line in new.decode("latin-1").splitlines()]
