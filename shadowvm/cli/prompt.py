"""Lines from a terminal or a pipe, with readline's history and completion where there is readline.

An empty line repeats the last command, as in gdb; Ctrl-C drops the line, Ctrl-D ends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..debug.monitor import Monitor
    from .interrupt import Interrupts

HISTORY_LENGTH = 1000
_DELIMITERS = " \t\n+-*/%&|^~()<>=!"


def prompt(monitor: Monitor, interrupts: Interrupts, text: str) -> Iterator[str]:
    """Commands until the monitor is done."""
    _use_readline(monitor)
    last = ""
    while not monitor.done:
        monitor.timeline.interrupted = False
        try:
            line = interrupts.input(text)
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        last = line if line.strip() else last
        yield last


def candidates(monitor: Monitor, line: str, word: str) -> list[str]:
    """What a word may be completed to: at the start of the line a command, further on what the command takes."""
    from ..debug.complete import completions  # noqa: PLC0415
    from ..errors import ShadowvmError  # noqa: PLC0415

    is_command = len(line.split()) <= 1 and not line[-1:].isspace()
    try:
        symbols: list[str] = [] if is_command else monitor.timeline.call("view", "symbol_names")
    except ShadowvmError:
        return []
    start = len(line) - len(word)
    return [whole[start:] + (" " if is_command else "") for whole in completions(line, symbols)]


def _use_readline(monitor: Monitor) -> None:
    try:
        import readline  # noqa: PLC0415
    except ImportError:
        return
    found: list[str] = []

    def complete(word: str, number: int) -> str | None:
        if number == 0:
            found[:] = candidates(monitor, readline.get_line_buffer()[: readline.get_endidx()], word)
        return found[number] if number < len(found) else None

    readline.parse_and_bind("tab: complete")
    readline.set_completer_delims(_DELIMITERS)
    readline.set_completer(complete)
    readline.set_history_length(HISTORY_LENGTH)
