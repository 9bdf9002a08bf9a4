"""What may follow in a command line: commands, tracepoints, symbols, registers and the words of some commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import ConfigError
from ..events import REGISTRY
from .commands.info import TOPICS
from .commands.table import NAMES, find
from .explain import KINDS

_WORDS: dict[str, tuple[str, ...]] = {
    "help": NAMES,
    "info": TOPICS,
    "watch": ("spte", "sptep", "pte", "page", "gva", "gpa", "hva", "pfn"),
    "explain": ("fault", *KINDS),
    "page": ("-s",),
    "until": ("event",),
    "replay_seek": ("event",),
    "delete": ("checkpoint",),
    "break": tuple(sorted(REGISTRY)),
    "tbreak": tuple(sorted(REGISTRY)),
}
_AFTER = {find(name): words for name, words in _WORDS.items()}
"""What the first word behind a command may be, besides a symbol."""


def completions(line: str, symbols: Sequence[str] = (), more: Iterable[str] = ()) -> list[str]:
    """Every way to go on with the last word of `line`, as whole lines. more: names of other commands."""
    match = re.search(r"[\w$.@-]*$", line)
    start = match.start() if match is not None else len(line)
    word, before = line[start:], line[:start]
    near = [*NAMES, *more] if not before.strip() else _behind(before, sorted(symbols))
    return [before + name for name in sorted({name for name in near if name.startswith(word)})]


def _behind(before: str, symbols: list[str]) -> list[str]:
    """What follows on `before`, which has a command."""
    words = before.split()
    try:
        command = find(words[0])
    except ConfigError:
        return symbols
    if command in (find("break"), find("tbreak")) and len(words) > 1 and words[1] in REGISTRY:
        return ["if", *REGISTRY[words[1]].fields]
    return [*(_AFTER.get(command, ()) if len(words) == 1 else ()), *symbols]


def common(lines: Sequence[str]) -> str:
    """What all of them begin with."""
    if not lines:
        return ""
    low, high = min(lines), max(lines)
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:same]
