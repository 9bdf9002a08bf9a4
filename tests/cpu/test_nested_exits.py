"""Steps, windows, data breakpoints, task switches and disturbed runs once more, with the exits from a nested table.

These are the tests of other files: there a missing page is an exit of the one walk, here of the walk below the guest's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.unicorn_engine import UnicornEngine
from tests.cpu import machine as machines
from tests.cpu import (
    test_code,
    test_debug,
    test_mmio,
    test_smp,
    test_step,
    test_stress,
    test_stress_modes,
    test_task_switch,
)
from tests.cpu.machine import FlatMachine, Machine
from tests.cpu.nested_machine import load_flat_under_nothing, load_under_identity

NESTED_EXITS = (CpuExit.EPT_VIOLATION, CpuExit.EPT_MISCONFIG)


@pytest.fixture(autouse=True)
def nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines load nested roots, and call the exit what the other files call it."""
    enter: Callable[[UnicornEngine], int] = UnicornEngine.enter

    def entered(engine: UnicornEngine) -> int:
        code = enter(engine)
        return CpuExit.WALK_FAULT if code in NESTED_EXITS else code

    monkeypatch.setattr(UnicornEngine, "enter", entered)
    monkeypatch.setattr(machines.Machine, "load", load_under_identity)
    monkeypatch.setattr(machines.FlatMachine, "load", load_flat_under_nothing)


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    kind = FlatMachine if request.function.__module__ == test_task_switch.__name__ else Machine
    return kind(counting=request.param)


pair = test_smp.pair
MODULES = (test_code, test_debug, test_mmio, test_smp, test_step, test_stress, test_stress_modes, test_task_switch)
for module in MODULES:
    for name, value in vars(module).items():
        if name.startswith("test_"):
            globals()[name] = value
