"""Runs of guests inside the test process, with the sanitizer and with the machine left to look at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from shadowvm.config import MIB, MachineConfig
from shadowvm.errors import InvariantViolation, ModelBug
from shadowvm.guests import find_image
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine, Outcome


class Result(NamedTuple):
    """How a run ended. `law`: which invariant was violated, "LOCKDEP" or "ModelBug"; None if none was."""

    machine: Machine
    output: bytes
    outcome: Outcome | None
    law: str | None
    report: str


def config_for(guest: str, append: str = "", *, host_memory: int = 64 * MIB, **more: object) -> MachineConfig:
    """The configuration of a run; `guest` is a bundled name or a path."""
    name, image = find_image(guest)
    return MachineConfig(image=image, name=name, append=append, host_memory=host_memory, **more)  # type: ignore[arg-type]


def run_checked(
    config: MachineConfig, listener: Callable[[Machine], AbstractContextManager[None]] = lambda machine: nullcontext()
) -> Result:
    """Run under the sanitizer, to the take-down of the host; `listener` also listens. A violation is a result."""
    output = bytearray()
    machine = Machine(config, output.append)
    outcome, law, report = None, None, ""
    sanitizer = Sanitizer(machine)
    try:
        with sanitizer.watching(), listener(machine):
            try:
                outcome = machine.run()
                sanitizer.validate()
            finally:
                machine.close()
            sanitizer.finish()
    except ModelBug as bug:
        report = str(bug)
        law = bug.law if isinstance(bug, InvariantViolation) else "ModelBug"
    return Result(machine, bytes(output), outcome, law, report)
