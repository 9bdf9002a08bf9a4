"""The command language of the debugger: QEMU's monitor words, rr's for time, and our own for faults.

    monitor = Monitor(timeline)
    for line in monitor.execute("break kvm_page_fault if error_code & 2"): print(line)

A refused command raises ConfigError with one line. Numbers are as in C; sums such as `rip+8` take registers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError
from .breaks import AddressBreak, PointBreak, Watch
from .commands.table import find

if TYPE_CHECKING:
    from .commands import Lines
    from .position import Stop
    from .timeline import Timeline

AnyBreak: TypeAlias = "AddressBreak | PointBreak | Watch"


class Monitor:
    """A session. breaks: by number. vcpu: the CPU that is looked at, None for the one that runs."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.breaks: dict[int, AnyBreak] = {}
        self.vcpu: int | None = None
        self.done = False
        self.next_number = 1
        self._said = 0

    def execute(self, line: str) -> Lines:
        """What one command line prints. ConfigError: it cannot be done."""
        line = line.strip()
        if not line or line.startswith("#"):
            return []
        word, _, rest = line.partition(" ")
        word, slash, form = word.partition("/")
        command = find(word)
        return command(self, f"/{form} {rest.strip()}" if slash else rest.strip())

    def number(self, text: str) -> int:
        """A sum of numbers and registers of the current vCPU."""
        registers: dict[str, int] | None = None
        total, sign = 0, 1
        for token in re.findall(r"[+-]|[^+\-\s]+", text):
            if token in "+-":
                sign = 1 if token == "+" else -1
                continue
            name = token.lstrip("$").lower()
            if re.fullmatch(r"[a-z]\w*", name):
                registers = registers or self.timeline.call("view", "registers", self.vcpu)
                if name not in registers:
                    raise ConfigError(f"'{token}' is no register")
                value = registers[name]
            else:
                value = _integer(token)
            total, sign = total + sign * value, 1
        if not text.strip():
            raise ConfigError("a number is missing")
        return total & (1 << 64) - 1

    def stopped(self, stop: Stop | None) -> Lines:
        """How a stop is told, after what the guest has said on the way."""
        lines = self._new_output()
        if stop is None:
            return [*lines, "no break was hit before: at the start of history"]
        if stop.kind == "exit":
            return [*lines, f"the guest has ended: {stop.text}", f"at {stop.position}"]
        where = f"vCPU {stop.vcpu}" if stop.vcpu is not None else stop.task or "start"
        number = f"break {stop.number}, " if stop.number is not None else ""
        lines.append(f"{number}{where} at {stop.position}")
        if stop.text:
            lines.append(f"  {stop.text}")
        elif stop.kind in ("instructions", "interrupt", "breakpoint"):
            lines += [f"  {text}" for text in self.timeline.call("view", "disassembly", 1, None, stop.vcpu)]
        return lines

    def _new_output(self) -> Lines:
        said: bytes = self.timeline.call("view", "output")
        new, self._said = said[self._said :], max(self._said, len(said))
        return [f"guest: {line}" for line in new.decode("latin-1").splitlines()]


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"'{text}' is no number") from None
