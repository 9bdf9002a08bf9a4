"""Events as ftrace prints them: `TASK-PID [CPU] flags TIMESTAMP: event: args` (kernel/trace/trace_output.c).

The timestamp is virtual: one guest instruction is one nanosecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..events import REGISTRY, Tracepoint, attached

if TYPE_CHECKING:
    from ..machine import Machine
    from ..sync import Task

HEADER = """# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def ftrace_line(task: Task, now: int, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str:
    """One line, without the newline. `now` is in instructions. CPU n is that of vCPU n's thread."""
    return layout(task.name, task.pid, task.vcpu, now) + f": {tracepoint.describe(args)}"


def layout(task: str, pid: int, vcpu: int | None, now: int) -> str:
    """What stands before the event's name."""
    seconds, nanoseconds = divmod(now, 10**9)
    return f"{task:>16}-{pid:<7} [{vcpu or 0:03d}] ..... {seconds:5d}.{nanoseconds:09d}"


class TextSink(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Append text."""


class FtraceWriter:
    """Writes every event to a text file as it happens."""

    def __init__(self, machine: Machine, file: TextSink) -> None:
        self._machine = machine
        self._file = file

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write the header, then every event inside the block."""
        self._file.write(HEADER)
        with attached(self._sink, REGISTRY.values()):
            yield

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        machine = self._machine
        self._file.write(ftrace_line(machine.sched.current, machine.instructions, tracepoint, args) + "\n")
