"""A run in which a bug shows, if it is there: a guest, a machine, and what the host does meanwhile. Deterministic.

Host actions come from the guest, which leaves for them at a place of its own choice, or from Meanwhile, which lets
another task of the host act at an unlucky moment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...api import Vm
from ...config import MIB, MachineConfig
from ...errors import InvariantViolation, ModelBug
from ...events import Tracepoint, attached
from ...guests import find_image
from ...machine import Machine
from ...sync import Task
from ..invariants import Sanitizer
from .guest import HOST_PORT, Code
from .patch import Swap, changed

LIMIT = 20_000_000
"""Guest instructions after which a scenario has hung."""

Action = Callable[[Machine], None]
Actor = Callable[[Machine], AbstractContextManager[None]]


@dataclass(frozen=True)
class Scenario:
    """guest: a bundled guest or the code of a tiny one. config: fields of MachineConfig.

    prepare: before the guest runs. actions: what Code.host(n) asks for. actors: listeners that are there during the
    run. takedown: instead of the machine's own order, VM first and process after it.
    """

    guest: str | Code
    append: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    prepare: Action | None = None
    actions: tuple[Action, ...] = ()
    actors: tuple[Actor, ...] = ()
    takedown: Callable[[Vm], None] | None = None


class Finding(NamedTuple):
    """How a run ended. law: what was violated, "ModelBug" for another bug, "guest" when the guest failed, or None."""

    law: str | None
    events: int
    text: str


def run_scenario(scenario: Scenario) -> Finding:
    """Run it under the sanitizer, to the take-down of the host."""
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(_config(scenario, Path(directory)), lambda byte: None)
        sanitizer = Sanitizer(machine)
        law, text = None, ""
        try:
            with ExitStack() as stack:
                stack.enter_context(sanitizer.watching())
                _run(machine, scenario, stack, sanitizer)
        except InvariantViolation as violation:
            law, text = violation.law, str(violation)
        except ModelBug as bug:
            law, text = "ModelBug", str(bug)
        except _GuestFailed as failed:
            law, text = "guest", str(failed)
        return Finding(law, sanitizer.events, text)


def _config(scenario: Scenario, directory: Path) -> MachineConfig:
    if isinstance(scenario.guest, Code):
        path = directory / "guest.elf"
        path.write_bytes(scenario.guest.image())
        name, image = "tiny", str(path)
    else:
        name, image = find_image(scenario.guest)
    values = {"host_memory": 4 * MIB, "memory": 16 * MIB, "timeout_instructions": LIMIT, **scenario.config}
    return MachineConfig(image=image, name=name, append=scenario.append, **values)


class _GuestFailed(Exception):
    """The guest's own checks, or a run that has no proper end."""


def _run(machine: Machine, scenario: Scenario, stack: ExitStack, sanitizer: Sanitizer) -> None:
    if scenario.takedown is not None:
        stack.enter_context(changed(Swap(Vm.release, scenario.takedown)))
    outcome = None
    try:
        machine.bus.register(_HostPort(machine, scenario.actions), HOST_PORT, 4)
        if scenario.prepare is not None:
            scenario.prepare(machine)
        for actor in scenario.actors:
            stack.enter_context(actor(machine))
        outcome = machine.run()
        sanitizer.validate()
    finally:
        machine.close()
    sanitizer.finish()
    if outcome.status:
        raise _GuestFailed(f"{outcome.reason.value}, status {outcome.status} {outcome.text}")


class _HostPort:
    """A port to which the guest writes the number of a host action. It runs before the guest's next instruction."""

    def __init__(self, machine: Machine, actions: tuple[Action, ...]) -> None:
        self._machine = machine
        self._actions = actions

    def port_read(self, port: int, size: int) -> int:
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        vcpu = self._machine.kvm.loaded
        assert vcpu is not None, "an instruction of its has written to the port"
        vcpu.do_outside(lambda: self._actions[value](self._machine))


class Meanwhile:
    """When `moment` is hit by a call for which `when` holds, another task does `action`, once, before it goes on.

    pause: at this tracepoint the task waits halfway, and is continued when somebody else gives way.
    """

    def __init__(
        self,
        moment: Tracepoint,
        action: Action,
        *,
        when: Callable[..., bool] = lambda *args: True,
        pause: Tracepoint | None = None,
    ) -> None:
        self.moment = moment
        self.action = action
        self.when = when
        self.pause = pause

    @contextmanager
    def __call__(self, machine: Machine) -> Iterator[None]:
        task: Task | None = None
        paused = False
        sched = machine.sched

        def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
            nonlocal task, paused
            if task is None:
                if tracepoint is self.moment and self.when(machine, *args):
                    task = sched.spawn("meanwhile", partial(self.action, machine))
                    while not task.glet.dead and task.waiting is None and not paused:
                        sched.preempt()
            elif tracepoint is self.pause and sched.current is task and not paused:
                paused = True
                sched.preempt()

        heard = [self.moment] if self.pause in (None, self.moment) else [self.moment, self.pause]
        with attached(sink, heard):
            yield
