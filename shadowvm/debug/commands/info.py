"""Commands that list what a machine consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import Monitor


def _info(monitor: Monitor, text: str) -> Lines:
    """info registers|cpus|memslots|shadow|host|notifiers|stats|breaks|checkpoints"""
    what = text.strip()
    call = monitor.timeline.call
    if what in ("cpus", "memslots", "shadow", "host", "notifiers"):
        lines: Lines = call("view", what)
        return lines
    if what == "registers":
        values: dict[str, int] = call("view", "registers", monitor.vcpu)
        pairs = [f"{name}={value:016x}" if value >> 16 else f"{name}={value:x}" for name, value in values.items()]
        return [" ".join(pairs[at : at + 4]) for at in range(0, len(pairs), 4)]
    if what == "stats":
        counters: dict[str, int] = call("view", "counters")
        return [f"{name:<32}{value:>12}" for name, value in counters.items() if value]
    if what == "breaks":
        return [f"{number}: {each}" for number, each in monitor.breakpoints.items()]
    if what == "checkpoints":
        kept = [f"{number}: {position}" for number, position in monitor.timeline.kept().items()]
        return [*kept, f"and {len(monitor.timeline.checkpoints)} automatic ones"]
    raise ConfigError(f"info: '{what}' is unknown; {_info.__doc__}")


def _state_hash(monitor: Monitor, _text: str) -> Lines:
    """hash: SHA-256 of the machine's state"""
    return [monitor.timeline.call("state_hash")]


COMMANDS: dict[str, Command] = {
    "info": _info,
    "hash": _state_hash,
}
