"""Commands that let the machine run on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..breaks import AddressBreak, FaultBreak, PointBreak
from . import Command, Lines, count_of

if TYPE_CHECKING:
    from ..monitor import Monitor

_BEGIN_OF_FAULT, _END_OF_FAULT = "kvm_page_fault", "kvm_entry"


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
    """phase [N]: to the next point of the current fault, or to its beginning if there is none yet

    What other threads do meanwhile is passed by; `forward` goes to whatever comes next. The fault ends at kvm_entry.
    """
    for _ in range(count_of(monitor, text)):
        vcpu: int | None = monitor.timeline.call("view", "faulting", monitor.timeline.stop.vcpu)
        point = PointBreak(0, _BEGIN_OF_FAULT) if vcpu is None else FaultBreak(0, vcpu)
        stop = monitor.run(more=[point])
        if stop.kind != "point" or stop.number or stop.text.startswith(f"{_END_OF_FAULT}:"):
            break
    else:
        stop = monitor.timeline.stop
    return monitor.stopped(stop)


def _forward(monitor: Monitor, text: str) -> Lines:
    """forward, event [N]: to the Nth event from here, of whatever thread"""
    return monitor.stopped(monitor.run(until_event=monitor.timeline.position.events + count_of(monitor, text)))


def _fin(monitor: Monitor, _text: str) -> Lines:
    """fin: to the end of the current fault, where the vCPU enters the guest again; breaks do not stop it"""
    vcpu: int | None = monitor.timeline.call("view", "faulting", monitor.timeline.stop.vcpu)
    wanted = f"vcpu_id == {vcpu}" if vcpu is not None else ""
    return monitor.stopped(monitor.timeline.go(breaks=[PointBreak(0, _END_OF_FAULT, wanted)]))


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("continue", "c", "cont"), _continue),
    **dict.fromkeys(("stepi", "s", "step", "si"), _stepi),
    "until": _until,
    "phase": _phase,
    **dict.fromkeys(("forward", "event"), _forward),
    "fin": _fin,
}
