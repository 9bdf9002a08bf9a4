"""Commands that pass over whole calls: next and finish, and next backwards.

A frame is known by its stack pointer: the callee's is lower, and it is back when the function has returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..breaks import AddressBreak
from ..disassemble import Instruction, is_call
from . import Command, Lines, count_of

if TYPE_CHECKING:
    from ..monitor import Monitor
    from ..position import Stop

MAX_STEPS = 100_000
"""Instructions of other vCPUs that may pass while one is stepped."""
MAX_BACK = 200
_LONGEST_CALL = 8


def _next(monitor: Monitor, text: str) -> Lines:
    """next, n, nexti, ni [N]: N instructions of this vCPU, calls and repeated ones as a whole"""
    for _ in range(min(count_of(monitor, text), MAX_STEPS)):
        stop = _next_one(monitor)
        if monitor.timeline.interrupted or stop.kind not in ("instructions", "breakpoint") or stop.number:
            break
    return monitor.stopped(monitor.timeline.stop)


def _next_one(monitor: Monitor) -> Stop:
    vcpu, sp = _vcpu(monitor), _registers(monitor)["rsp"]
    one: Instruction | None = monitor.timeline.call("view", "code", vcpu)
    if one is None or not is_call(one):
        return _step(monitor, vcpu)
    return _run_to(monitor, [one.address + one.size], vcpu, sp)


def _vcpu(monitor: Monitor) -> int:
    stop = monitor.timeline.stop
    if monitor.vcpu is not None:
        return monitor.vcpu
    return stop.vcpu if stop.vcpu is not None else 0


def _registers(monitor: Monitor) -> dict[str, int]:
    found: dict[str, int] = monitor.timeline.call("view", "registers", _vcpu(monitor))
    return found


def _step(monitor: Monitor, vcpu: int) -> Stop:
    """One instruction of this vCPU, whatever others do meanwhile."""
    before = _registers(monitor)["rip"]
    for _ in range(MAX_STEPS):
        stop = monitor.run(until=monitor.timeline.position.instructions + 1)
        if stop.kind != "instructions" or stop.vcpu == vcpu or _registers(monitor)["rip"] != before:
            break
    return stop


def _run_to(monitor: Monitor, addresses: list[int], vcpu: int, sp: int) -> Stop:
    """To one of some addresses in the same frame or an outer one."""
    breaks = [AddressBreak(0, address) for address in addresses]
    while True:
        stop = monitor.run(more=breaks)
        if stop.kind != "breakpoint" or stop.number:
            return stop
        if stop.vcpu == vcpu and _registers(monitor)["rsp"] >= sp:
            return stop


def _finish(monitor: Monitor, _text: str) -> Lines:
    """finish: run until the current function has returned

    The guest's symbols tell where it ends. `fin` is another command: to the end of the current fault.
    """
    vcpu = _vcpu(monitor)
    while True:
        sp = _registers(monitor)["rsp"]
        ends: list[int] = monitor.timeline.call("view", "ways_out", vcpu)
        if not ends:
            raise ConfigError("finish: this function never returns")
        one: Instruction | None = monitor.timeline.call("view", "code", vcpu)
        if one is None or one.address not in ends:
            stop = _run_to(monitor, ends, vcpu, sp)
            if stop.kind != "breakpoint" or stop.number:
                return monitor.stopped(stop)
            one = monitor.timeline.call("view", "code", vcpu)
        stop = _step(monitor, vcpu)
        left = one is not None and "ret" in one.mnemonic
        if left or stop.kind != "instructions":
            return monitor.stopped(stop)


def _reverse_next(monitor: Monitor, text: str) -> Lines:
    """reverse-next, rn, reverse-nexti, rni [N]: N instructions back, calls as a whole"""
    timeline, count = monitor.timeline, count_of(monitor, text)
    if count >= timeline.position.instructions:
        return monitor.stopped(timeline.back(count))
    if count > MAX_BACK:
        raise ConfigError(f"reverse-next: {count} calls are too many at once (at most {MAX_BACK}); see reverse-stepi")
    for _ in range(count):
        if not timeline.position.instructions or timeline.interrupted:
            break
        _reverse_one(monitor)
    return monitor.stopped(timeline.stop)


def _reverse_one(monitor: Monitor) -> None:
    timeline = monitor.timeline
    here, registers = timeline.position, _registers(monitor)
    timeline.back(1)
    before: Instruction | None = timeline.call("view", "code", None)
    if before is None or not before.mnemonic.startswith("ret"):
        return
    instruction_before = timeline.position
    at = registers["rip"]
    calls = [AddressBreak(0, at - size) for size in range(2, _LONGEST_CALL)]
    while (hit := timeline.back_to_break(calls)) is not None:
        one: Instruction | None = timeline.call("view", "code", None)
        is_it = one is not None and is_call(one) and one.address + one.size == at
        if is_it and _registers(monitor)["rsp"] == registers["rsp"]:
            return
        if hit.position >= here:
            break
    timeline.go_to(instruction_before)


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("next", "n", "nexti", "ni"), _next),
    "finish": _finish,
    **dict.fromkeys(("reverse-next", "rn", "reverse-nexti", "rni"), _reverse_next),
}
