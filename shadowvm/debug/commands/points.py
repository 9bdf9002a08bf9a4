"""Commands that say where to stop."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, PAGE_SIZE
from ...errors import ConfigError
from ...events import REGISTRY
from ...trace.filter import find_tracepoint
from ..breaks import AddressBreak, MemoryWatch, PointBreak, Watch
from . import Command, Lines

if TYPE_CHECKING:
    from ..breakpoints import AnyBreak
    from ..monitor import Monitor

_WATCHES = ("spte", "sptep", "pte", "page")
MASK64 = (1 << 64) - 1
_SPACES = ("gva", "gpa", "hva", "pfn")


def _break(monitor: Monitor, text: str) -> Lines:
    """break, b POINT [if FILTER] | break SYMBOL | break *ADDRESS: stop at a tracepoint, or before an instruction

    FILTER is one of ftrace's, over the fields of the tracepoint: gfn == 0x123 && error_code & 2. `if` may be left out.
    A name that is both a tracepoint and a symbol is the tracepoint; *NAME is the symbol. ADDRESS may be a sum.
    """
    return _set(monitor, text, temporary=False)


def _tbreak(monitor: Monitor, text: str) -> Lines:
    """tbreak POINT [if FILTER] | SYMBOL | *ADDRESS: a break that goes when it is hit"""
    return _set(monitor, text, temporary=True)


def _set(monitor: Monitor, text: str, *, temporary: bool) -> Lines:
    name, _, rest = text.partition(" ")
    if not name:
        raise ConfigError("break: name a tracepoint, such as kvm_page_fault, or a symbol, or give *ADDRESS")
    if name.startswith("*"):
        return _at_address(monitor, text[1:], temporary=temporary)
    if name.rpartition(":")[2] not in REGISTRY and _is_symbol(monitor, name):
        return _at_address(monitor, text, temporary=temporary)
    where = re.sub(r"^if\b", "", rest.strip()).strip()
    point = PointBreak(0, find_tracepoint(name).name, where)
    point.validate()
    return _add(monitor, point, temporary=temporary)


def _is_symbol(monitor: Monitor, text: str) -> bool:
    match = re.match(r"[A-Za-z_$.@][\w$.@]*", text)
    return match is not None and monitor.symbol(match[0]) is not None


def _at_address(monitor: Monitor, text: str, *, temporary: bool) -> Lines:
    if re.search(r"\bif\b", text):
        raise ConfigError("break: only tracepoints have filters")
    address = monitor.number(text)
    symbol: str = monitor.timeline.call("view", "symbol_text", address)
    return _add(monitor, AddressBreak(0, address), temporary=temporary, symbol=symbol)


def _watch(monitor: Monitor, text: str) -> Lines:
    """watch spte|sptep|pte|page WHAT | gva|gpa|hva|pfn ADDRESS [SIZE] [r|w|rw]: stop at a change, or an access

    spte GFN, sptep HPA, pte HVA and page PFN are changes that KVM and the host make. The others are stores of the
    guest, or with r loads and with rw both, to SIZE bytes (1) of a guest-virtual, guest-physical or host-virtual
    address, or to a frame; the stop is after the instruction, as with a debug register.
    """
    kind, _, value = text.partition(" ")
    if kind in _WATCHES:
        return _add(monitor, Watch(0, kind, monitor.number(value)))
    if kind not in _SPACES:
        raise ConfigError(f"watch: '{kind}' is none of {', '.join(_WATCHES + _SPACES)}")
    words = value.split()
    access = words.pop() if words and words[-1] in ("r", "w", "rw") else "w"
    if not 1 <= len(words) <= (1 if kind == "pfn" else 2):
        raise ConfigError(f"watch: the form is watch {kind} ADDRESS [SIZE] [r|w|rw]")
    address, size = monitor.number(words[0]), monitor.number(words[1]) if len(words) > 1 else 1
    if kind == "pfn":
        address, size = address << PAGE_SHIFT & MASK64, PAGE_SIZE
    if not 0 < size <= 1 << 30:
        raise ConfigError(f"watch: {size} bytes are out of range (1 to 1 GiB)")
    return _add(monitor, MemoryWatch(0, kind, address, size, access))


def _add(monitor: Monitor, new: AnyBreak, *, temporary: bool = False, symbol: str = "") -> Lines:
    number = monitor.breakpoints.add(new, temporary=temporary, symbol=symbol)
    return [f"{number}: {monitor.breakpoints.get(number)}"]


def _delete(monitor: Monitor, text: str) -> Lines:
    """delete, d [N...] | delete checkpoint N: forget breaks, by default all, or a checkpoint"""
    if not text:
        monitor.breakpoints.clear()
    elif text.split(maxsplit=1)[0] == "checkpoint":
        monitor.timeline.forget(monitor.number(text.partition(" ")[2]))
    else:
        for number in _numbers(monitor, text):
            monitor.breakpoints.delete(number)
    return []


def _numbers(monitor: Monitor, text: str) -> list[int]:
    """Of breaks; all of them are there."""
    numbers = [monitor.number(word) for word in text.split()]
    for number in numbers:
        monitor.breakpoints.get(number)
    return list(dict.fromkeys(numbers)) or [number for number, _ in monitor.breakpoints.items()]


def _enable(monitor: Monitor, text: str) -> Lines:
    """enable [N...]: let breaks stop the machine again, by default all"""
    return _switch(monitor, text, enabled=True)


def _disable(monitor: Monitor, text: str) -> Lines:
    """disable [N...]: keep breaks, by default all, but do not stop at them"""
    return _switch(monitor, text, enabled=False)


def _switch(monitor: Monitor, text: str, *, enabled: bool) -> Lines:
    for number in _numbers(monitor, text):
        monitor.breakpoints.get(number).enabled = enabled
    return []


def _ignore(monitor: Monitor, text: str) -> Lines:
    """ignore N COUNT: do not stop at the next COUNT hits of break N

    Hits are counted forwards; reverse-continue stops at every one.
    """
    number, _, count = text.partition(" ")
    point = monitor.breakpoints.get(monitor.number(number))
    point.ignore = monitor.number(count)
    return []


def _condition(monitor: Monitor, text: str) -> Lines:
    """condition N [FILTER]: give the tracepoint of break N another filter, or none"""
    number, _, filter_text = text.partition(" ")
    monitor.breakpoints.condition(monitor.number(number), filter_text.strip())
    return [f"{monitor.number(number)}: {monitor.breakpoints.get(monitor.number(number))}"]


def _replay_break(monitor: Monitor, text: str) -> Lines:
    """replay_break N: stop before instruction N of the run; there is one such break"""
    monitor.breakpoints.replay_break = monitor.number(text)
    return []


def _replay_delete_break(monitor: Monitor, _text: str) -> Lines:
    """replay_delete_break: forget that of replay_break"""
    if not monitor.breakpoints.replay_break:
        raise ConfigError("replay_break has set none")
    monitor.breakpoints.replay_break = 0
    return []


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("break", "b"), _break),
    "tbreak": _tbreak,
    "watch": _watch,
    **dict.fromkeys(("delete", "d"), _delete),
    "enable": _enable,
    "disable": _disable,
    "ignore": _ignore,
    "condition": _condition,
    "replay_break": _replay_break,
    "replay_delete_break": _replay_delete_break,
}
