"""Targets of machines that a configuration describes, made in the process that they are to live in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..machine import Machine
from .symbols import load_symbols
from .target import Target

if TYPE_CHECKING:
    from ..config import MachineConfig


def target_maker(config: MachineConfig) -> Callable[[], Target]:
    """What makes the target. Its swap is in memory, since forks would share a file."""

    def build(output: Callable[[int], None]) -> Machine:
        machine = Machine(config, output)
        machine.host.swap.move_to_memory()
        return machine

    def make() -> Target:
        load_symbols(config.image)
        return Target(build)

    return make
