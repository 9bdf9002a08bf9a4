"""Commands that let the machine run on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..breaks import AddressBreak, PointBreak
from . import Command, Lines, count_of

if TYPE_CHECKING:
    from ..monitor import Monitor

_END_OF_FAULT = "kvm_entry"


def _continue(monitor: Monitor, _text: str) -> Lines:
    """continue, c: run to the next break"""
    return monitor.stopped(monitor.run())


def _stepi(monitor: Monitor, text: str) -> Lines:
    """stepi, s, si [N]: execute N instructions of any vCPU, unless a break comes first"""
    here = monitor.timeline.position.instructions
    return monitor.stopped(monitor.run(until=here + count_of(monitor, text)))


def _until(monitor: Monitor, text: str) -> Lines:
    """until N | until event N | until *ADDRESS | until SYMBOL: run to instruction, event, or address

    N counts from the start of the run, as `when` prints it. A break that comes first stops the run.
    """
    if re.match(r"event\b", text):
        wanted = monitor.number(text.removeprefix("event"))
        if wanted <= monitor.timeline.position.events:
            raise ConfigError(f"event {wanted} is not ahead; use replay_seek")
        return monitor.stopped(monitor.run(until_event=wanted))
    name = re.match(r"[A-Za-z_.][\w$.@]*", text)
    if text.startswith("*") or (name is not None and monitor.symbol(name[0]) is not None):
        address = monitor.number(text.removeprefix("*"))
        return monitor.stopped(monitor.run(more=[AddressBreak(0, address)]))
    wanted = monitor.number(text)
    if wanted <= monitor.timeline.position.instructions:
        raise ConfigError(f"instruction {wanted} is not ahead; use replay_seek")
    return monitor.stopped(monitor.run(until=wanted))


def _phase(monitor: Monitor, text: str) -> Lines:
    """phase, forward, event [N]: to the Nth event from here, inside the current fault or not"""
    return monitor.stopped(monitor.run(until_event=monitor.timeline.position.events + count_of(monitor, text)))


def _fin(monitor: Monitor, _text: str) -> Lines:
    """fin: to the end of the current fault, where the vCPU enters the guest again; breaks do not stop it"""
    vcpu = monitor.timeline.stop.vcpu
    wanted = f"vcpu_id == {vcpu}" if vcpu is not None else ""
    return monitor.stopped(monitor.timeline.go(breaks=[PointBreak(0, _END_OF_FAULT, wanted)]))


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("continue", "c", "cont"), _continue),
    **dict.fromkeys(("stepi", "s", "step", "si"), _stepi),
    "until": _until,
    **dict.fromkeys(("phase", "forward", "event"), _phase),
    "fin": _fin,
}
