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
    from ..debug.commands.info import TOPICS  # noqa: PLC0415
    from ..debug.commands.table import NAMES, find  # noqa: PLC0415
    from ..debug.explain import KINDS  # noqa: PLC0415
    from ..errors import ShadowvmError  # noqa: PLC0415
    from ..events import REGISTRY  # noqa: PLC0415

    before = line.split()
    if not before or (len(before) == 1 and not line.endswith(" ")):
        return [f"{name} " for name in NAMES if name.startswith(word)]
    try:
        command = find(before[0])
        symbols: list[str] = monitor.timeline.call("view", "symbol_names")
    except ShadowvmError:
        return []
    more = {
        find("help"): NAMES,
        find("info"): TOPICS,
        find("explain"): (*KINDS, "fault"),
        find("break"): REGISTRY,
        find("tbreak"): REGISTRY,
    }
    return sorted({name for name in (*more.get(command, ()), *symbols) if name.startswith(word)})


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
