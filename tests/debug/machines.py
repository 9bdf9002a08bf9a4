"""Targets of small guests."""

from __future__ import annotations

from collections.abc import Callable

from shadowvm.config import MIB
from shadowvm.debug.target import Target
from shadowvm.machine import Machine
from tests.guest_run import config_for

TOUCH = "size=3M passes=1"


def target_of(guest: str = "memtouch", append: str = TOUCH, host_memory: int = 2 * MIB, **more: object) -> Target:
    """A target at the start of a run, its swap in memory."""

    def build(output: Callable[[int], None]) -> Machine:
        machine = Machine(config_for(guest, append, host_memory=host_memory, **more), output)
        machine.host.swap.move_to_memory()
        return machine

    return Target(build)
