"""Commands that list what a machine consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import ConfigError
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import Monitor

Topic = Callable[["Monitor", str], Lines]


def _info(monitor: Monitor, text: str) -> Lines:
    """info TOPIC: one of registers, cpus, tlb, mem, mtree, spte, shadow, rmap, lru, vma, swap, ...; `help info`

    The guest: registers, creg, cpus, tlb [GVA] (its own mappings, flags XGPDACTUW), mem (ranges of equal rights), tab
    (ranges in one piece), mtree, symbols [TEXT].
    KVM: memslots, shadow, spte GFN, rmap GFN, notifiers, stats.
    The host: host, vma, lru, swap, locks, tasks.
    The debugger: breaks, checkpoints, replay.
    """
    what, _, rest = text.partition(" ")
    matching = [what] if what in _TOPICS else [name for name in _TOPICS if what and name.startswith(what)]
    if len(matching) != 1:
        many = f"is one of {', '.join(matching)}" if matching else f"is unknown; there are {', '.join(_TOPICS)}"
        raise ConfigError(f"info: '{what}' {many}")
    return _TOPICS[matching[0]](monitor, rest.strip())


def _view(name: str, *, of_vcpu: bool = False) -> Topic:
    def show(monitor: Monitor, _text: str) -> Lines:
        lines: Lines = monitor.timeline.call("view", name, *([monitor.vcpu] if of_vcpu else []))
        return lines

    return show


def _of_number(name: str) -> Topic:
    def show(monitor: Monitor, text: str) -> Lines:
        lines: Lines = monitor.timeline.call("view", name, monitor.number(text))
        return lines

    return show


def _tlb(monitor: Monitor, text: str) -> Lines:
    lines: Lines = monitor.timeline.call("view", "tlb", monitor.number(text) if text else 0, monitor.vcpu)
    return lines


def _stats(monitor: Monitor, _text: str) -> Lines:
    counters: dict[str, int] = monitor.timeline.call("view", "counters")
    return [f"{name:<32}{value:>12}" for name, value in counters.items() if value]


def _breaks(monitor: Monitor, _text: str) -> Lines:
    lines = [f"{number}: {each}" for number, each in monitor.breakpoints.items()]
    ahead = monitor.breakpoints.replay_break
    return [*lines, f"replay_break {ahead}"] if ahead else lines


def _checkpoints(monitor: Monitor, _text: str) -> Lines:
    kept = [f"{number}: {position}" for number, position in monitor.timeline.kept().items()]
    return [*kept, f"and {len(monitor.timeline.checkpoints)} automatic ones"]


def _replay(monitor: Monitor, _text: str) -> Lines:
    timeline = monitor.timeline
    end = f", of {timeline.end.instructions}" if timeline.end is not None else ""
    return [f"instruction count = {timeline.position.instructions}{end}"]


def _symbols(monitor: Monitor, text: str) -> Lines:
    names: list[str] = monitor.timeline.call("view", "symbol_names")
    found = [name for name in names if text in name]
    return [f"{monitor.symbol(name) or 0:#018x} {name}" for name in found[:512]] + (["..."] if found[512:] else [])


_TOPICS: dict[str, Topic] = {
    "registers": _view("info_registers", of_vcpu=True),
    "creg": _view("creg", of_vcpu=True),
    "cpus": _view("cpus"),
    "tlb": _tlb,
    "mem": _view("mem", of_vcpu=True),
    "tab": _view("tab", of_vcpu=True),
    "mtree": _view("mtree"),
    "symbols": _symbols,
    "memslots": _view("memslots"),
    "shadow": _view("shadow"),
    "spte": _of_number("sptes"),
    "rmap": _of_number("rmap"),
    "notifiers": _view("notifiers"),
    "stats": _stats,
    "host": _view("host"),
    "vma": _view("vma"),
    "lru": _view("lru"),
    "swap": _view("swap"),
    "locks": _view("locks"),
    "tasks": _view("tasks"),
    "breaks": _breaks,
    "breakpoints": _breaks,
    "checkpoints": _checkpoints,
    "replay": _replay,
}
TOPICS = tuple(_TOPICS)


def _creg(monitor: Monitor, _text: str) -> Lines:
    """creg: control registers with their bits by name, those that are set in capitals"""
    return _TOPICS["creg"](monitor, "")


def _state_hash(monitor: Monitor, _text: str) -> Lines:
    """hash: SHA-256 of the machine's state"""
    return [monitor.timeline.call("state_hash")]


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("info", "i"), _info),
    "creg": _creg,
    "hash": _state_hash,
}
