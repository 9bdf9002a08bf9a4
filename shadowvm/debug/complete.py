"""What may follow in a command line: commands, tracepoints, symbols, registers and the words of some commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..events import REGISTRY
from .commands.table import NAMES
from .explain import KINDS

_INFO = ("registers", "cpus", "memslots", "shadow", "host", "notifiers", "stats", "breaks", "checkpoints")
_POINTS = ("break", "b", "tbreak")
_WORDS: dict[str, tuple[str, ...]] = {
    "info": _INFO,
    "watch": ("spte", "sptep", "pte", "page"),
    "explain": ("fault", *KINDS),
    "page": ("-s",),
    "until": ("event",),
    "replay_seek": ("event",),
    "delete": ("checkpoint",),
}


def completions(line: str, symbols: Sequence[str] = (), more: Iterable[str] = ()) -> list[str]:
    """Every way to go on with the last word of `line`, as whole lines. more: names of other commands."""
    match = re.search(r"[\w$.@-]*$", line)
    start = match.start() if match is not None else len(line)
    word, before = line[start:], line[:start]
    names = sorted({*NAMES, *more})
    command = before.split(maxsplit=1)[0] if before.strip() else ""
    if not before.strip():
        near: Iterable[str] = names
    elif command == "help":
        near = names
    else:
        first = len(before.split()) == 1 or not before[-1].isspace()
        points = command in _POINTS and not before.endswith("*")
        near = [*(_WORDS.get(command, ()) if first else ()), *(sorted(REGISTRY) if points else ())]
        near = [*near, *sorted(symbols)]
        if command in _POINTS and not first:
            near = _fields(before)
    return [before + name for name in dict.fromkeys(near) if name.startswith(word)]


def _fields(before: str) -> list[str]:
    """Of the tracepoint that a break is at."""
    words = before.split()
    point = REGISTRY.get(words[1].rpartition(":")[2]) if len(words) > 1 else None
    return ["if", *point.fields] if point is not None else []


def common(lines: Sequence[str]) -> str:
    """What all of them begin with."""
    if not lines:
        return ""
    low, high = min(lines), max(lines)
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:same]
