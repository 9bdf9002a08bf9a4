"""Commands that say where to stop."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...trace.filter import find_tracepoint
from ..breaks import AddressBreak, PointBreak, Watch
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import AnyBreak, Monitor

_WATCHES = ("spte", "sptep", "pte", "page")


def _break(monitor: Monitor, text: str) -> Lines:
    """b, break POINT [if FILTER] | break *ADDRESS: stop at a tracepoint, or before an instruction"""
    name, _, rest = text.partition(" ")
    if not name:
        raise ConfigError("break: name a tracepoint, such as kvm_page_fault, or give *ADDRESS")
    if name.startswith("*"):
        return _add(monitor, AddressBreak(monitor.next_number, monitor.number(text[1:])))
    where = re.sub(r"^if\b", "", rest.strip()).strip()
    point = PointBreak(monitor.next_number, find_tracepoint(name).name, where)
    point.validate()
    return _add(monitor, point)


def _watch(monitor: Monitor, text: str) -> Lines:
    """watch spte GFN | sptep HPA | pte HVA | page PFN: stop when it changes"""
    kind, _, value = text.partition(" ")
    if kind not in _WATCHES:
        raise ConfigError(f"watch: '{kind}' is none of {', '.join(_WATCHES)}")
    return _add(monitor, Watch(monitor.next_number, kind, monitor.number(value)))


def _add(monitor: Monitor, new: AnyBreak) -> Lines:
    monitor.breaks[new.number] = new
    monitor.next_number += 1
    return [f"{new.number}: {new}"]


def _delete(monitor: Monitor, text: str) -> Lines:
    """delete [N]: forget break N, or all"""
    if not text:
        monitor.breaks.clear()
        return []
    if monitor.breaks.pop(monitor.number(text), None) is None:
        raise ConfigError(f"there is no break {text}")
    return []


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("break", "b"), _break),
    "watch": _watch,
    "delete": _delete,
}
