"""Commands that let the machine run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..breaks import PointBreak
from . import Command, Lines, count_of

if TYPE_CHECKING:
    from ..monitor import Monitor

_END_OF_FAULT = "kvm_entry"


def _continue(monitor: Monitor, _text: str) -> Lines:
    """c, continue: run to the next break"""
    return monitor.stopped(monitor.timeline.go(breaks=list(monitor.breaks.values())))


def _stepi(monitor: Monitor, text: str) -> Lines:
    """stepi, s [N]: execute N instructions of any vCPU"""
    here = monitor.timeline.position.instructions
    return monitor.stopped(monitor.timeline.go(until=here + count_of(monitor, text)))


def _until(monitor: Monitor, text: str) -> Lines:
    """until N | until event N: run to instruction, or event, N"""
    if text.startswith("event"):
        wanted = monitor.number(text.removeprefix("event"))
        if wanted <= monitor.timeline.position.events:
            raise ConfigError(f"event {wanted} is not ahead; use replay_seek")
        return monitor.stopped(monitor.timeline.go(until_event=wanted))
    wanted = monitor.number(text)
    if wanted <= monitor.timeline.position.instructions:
        raise ConfigError(f"instruction {wanted} is not ahead; use replay_seek")
    return monitor.stopped(monitor.timeline.go(until=wanted))


def _phase(monitor: Monitor, text: str) -> Lines:
    """phase, forward [N]: to the Nth event from here, inside the current fault or not"""
    return monitor.stopped(monitor.timeline.go(until_event=monitor.timeline.position.events + count_of(monitor, text)))


def _fin(monitor: Monitor, _text: str) -> Lines:
    """fin: to the end of the current fault, where the vCPU enters the guest again"""
    vcpu = monitor.timeline.stop.vcpu
    wanted = f"vcpu_id == {vcpu}" if vcpu is not None else ""
    return monitor.stopped(monitor.timeline.go(breaks=[PointBreak(0, _END_OF_FAULT, wanted)]))


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("continue", "c", "cont"), _continue),
    **dict.fromkeys(("stepi", "s", "step", "si"), _stepi),
    "until": _until,
    **dict.fromkeys(("phase", "forward"), _phase),
    "fin": _fin,
}
