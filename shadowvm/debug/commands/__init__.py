"""The commands of the debugger, by theme. A module has a table COMMANDS; table.py puts these together.

A command is a function of the session and the rest of the line, and returns what is to be printed. The first line of
its docstring is its line in `help`: its names and form, a colon, and what it does. `help CMD` prints all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..monitor import Monitor

Lines = list[str]
Command = Callable[["Monitor", str], Lines]


def count_of(monitor: Monitor, text: str) -> int:
    """An optional count, by default 1."""
    return monitor.number(text) if text else 1
