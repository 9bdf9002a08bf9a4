"""Where in a run something is: after how many instructions of all vCPUs, and after how many events."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """A place in the run of a machine. The same one has the same state in every run.

    events: tracepoint hits so far, counted from 1; the state is that inside the last one, or, if `between` is set,
    the one before the next instruction. instructions: retired so far; inside of an event that a device causes, at most
    to the end of the block of translated code that the access is in, which is paid for as a whole.
    """

    instructions: int
    events: int
    between: bool = True

    @property
    def order(self) -> tuple[int, bool, int]:
        """Compares as the run passes positions."""
        return self.events, self.between, self.instructions

    def __str__(self) -> str:
        return f"instruction {self.instructions}, event {self.events}{'' if self.between else ' (inside)'}"


class Stop(NamedTuple):
    """Why a machine stands still. kind: instructions, events, point, breakpoint, watchpoint, interrupt or exit.

    text: what to tell the user; vcpu: the CPU that runs there, None for a host thread of another kind; task: that
    thread. number: of the break that was hit. pc: linear address of the next instruction, at breakpoints and
    watchpoints. began: instructions before the one that hit a watchpoint, if it is to be undone.
    """

    kind: str
    position: Position
    text: str = ""
    vcpu: int | None = None
    task: str = ""
    number: int | None = None
    pc: int | None = None
    began: int | None = None
