"""Commands that go to where the run has been, or will be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..load import load_timeline
from ..position import Position
from ..snapshot import Snapshot, write_snapshot
from . import Command, Lines, count_of

if TYPE_CHECKING:
    from ..monitor import Monitor


def _back(monitor: Monitor, text: str) -> Lines:
    """back [N]: N events back"""
    return monitor.stopped(monitor.timeline.back_event(count_of(monitor, text)))


def _reverse_stepi(monitor: Monitor, text: str) -> Lines:
    """reverse-stepi, rsi [N]: N instructions back"""
    return monitor.stopped(monitor.timeline.back(count_of(monitor, text)))


def _reverse_continue(monitor: Monitor, _text: str) -> Lines:
    """reverse-continue, rc: to the last hit of a break before here"""
    return monitor.stopped(monitor.timeline.back_to_break(monitor.breakpoints.active()))


def _seek(monitor: Monitor, text: str) -> Lines:
    """replay_seek N | replay_seek event N: to an instruction or event of this run, behind or ahead"""
    timeline = monitor.timeline
    if text.startswith("event"):
        wanted = monitor.number(text.removeprefix("event"))
        return monitor.stopped(timeline.seek_event(wanted))
    wanted = monitor.number(text)
    if wanted <= timeline.position.instructions:
        return monitor.stopped(timeline.back(timeline.position.instructions - wanted))
    return monitor.stopped(timeline.go(until=wanted))


def _when(monitor: Monitor, _text: str) -> Lines:
    """when: where in the run this is"""
    return [str(monitor.timeline.position)]


def _checkpoint(monitor: Monitor, _text: str) -> Lines:
    """checkpoint: remember this position, for restart"""
    return [f"checkpoint {monitor.timeline.keep()} at {monitor.timeline.position}"]


def _restart(monitor: Monitor, text: str) -> Lines:
    """restart [N]: to checkpoint N, or to the start of the run"""
    if not text:
        return monitor.stopped(monitor.timeline.go_to(Position(0, 0)))
    number, kept = monitor.number(text), monitor.timeline.kept()
    if number not in kept:
        raise ConfigError(f"there is no checkpoint {number}")
    return monitor.stopped(monitor.timeline.go_to(kept[number]))


def _savevm(monitor: Monitor, text: str) -> Lines:
    """savevm FILE: save this position as a recipe: the configuration, and how far to run

    The file is small. It has the hashes of the guest's image and of the state, so that loadvm finds out what changed.
    """
    if not text:
        raise ConfigError("savevm: name a file")
    timeline = monitor.timeline
    config, state = timeline.call("view", "config"), timeline.call("state_hash")
    ended, inputs = timeline.stop.kind == "exit", tuple(timeline.inputs)
    write_snapshot(text, Snapshot(config, timeline.position, state, ended, inputs))
    return []


def _loadvm(monitor: Monitor, text: str) -> Lines:
    """loadvm FILE: make the machine of a file that savevm wrote, and run it to that position

    This takes about as long as the run took to get there. Breaks stay. If the file or the machine's images are not
    what they were, or the state comes out as another one, this machine stays.
    """
    if not text:
        raise ConfigError("loadvm: name a file")
    timeline = monitor.timeline
    timeline.become(load_timeline(text, timeline.limits, poll=lambda: timeline.interrupted))
    monitor.look_afresh()
    return monitor.stopped(monitor.timeline.stop)


COMMANDS: dict[str, Command] = {
    "back": _back,
    **dict.fromkeys(("reverse-stepi", "rsi"), _reverse_stepi),
    **dict.fromkeys(("reverse-continue", "rc"), _reverse_continue),
    "replay_seek": _seek,
    "when": _when,
    "checkpoint": _checkpoint,
    "restart": _restart,
    "savevm": _savevm,
    "loadvm": _loadvm,
}
