"""The host's threads as gdb's: vCPU n is number n + 1, another one is its PID."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..sync import Lock

if TYPE_CHECKING:
    from ..sync import Task
    from .target import Target


class Thread(NamedTuple):
    """vcpu: None for a thread that runs no guest. text: what it is doing. is_current: it has the host's CPU."""

    number: int
    vcpu: int | None
    name: str
    text: str
    is_current: bool


def threads(target: Target) -> list[Thread]:
    """All that have not ended, vCPUs first."""
    machine = target.machine
    current = machine.sched.current
    found = []
    for vcpu in machine.vcpus:
        state = vcpu.mp_state.name.lower()
        doing = "" if vcpu.task is None or vcpu.task is current else f", its thread {_doing(vcpu.task)}"
        is_current = current.vcpu == vcpu.id
        found.append(Thread(vcpu.id + 1, vcpu.id, f"CPU {vcpu.id}", state + doing, is_current))
    others = (task for task in machine.sched.tasks if task.vcpu is None and not task.glet.dead)
    found += [Thread(task.pid, None, task.name, _doing(task), task is current) for task in others]
    return found


def _doing(task: Task) -> str:
    """Whether it can run, or what it waits for."""
    what = task.waiting
    held = f", holds {', '.join(lock.name for lock in task.held)}" if task.held else ""
    if what is None:
        return f"can run{held}"
    return f"waits for {what.name if isinstance(what, Lock) else 'work'}{held}"
