"""The simulated host as a program sees it: memory, swap, and threads that take turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from ..errors import ConfigError
from ..mm.host import Host as Node
from ..mm.huge import Thp
from ..mm.swap import SwapFile
from ..phys import Ram
from ..sync import RandomPreemption, Scheduler

if TYPE_CHECKING:
    from ..sync import Task
    from .vm import Vm

T = TypeVar("T")


class Host:
    """A host of `memory` bytes with a swap file of `swap` bytes. Use as a context manager.

    seed: 0 runs threads in a fixed order; any other preempts them at random points, the same ones for the same seed.
    thp: transparent_hugepage, "never", "madvise" or "always". sched, node, ram: the parts below this interface.
    """

    def __init__(
        self,
        memory: int,
        swap: int = 0,
        swap_file: str | os.PathLike[str] | None = None,
        seed: int = 0,
        thp: str = "never",
    ) -> None:
        self.sched = Scheduler()
        self._preemption = RandomPreemption(self.sched, seed) if seed else None
        self._orderly = True
        self.vms: list[Vm] = []
        self.ram = _ram(memory)
        with ExitStack() as undo:
            self.swap = SwapFile(swap, swap_file)
            undo.callback(self.swap.close)
            self.node = Node(self.ram, self.swap, self.sched, Thp(thp))
            undo.pop_all()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_thread(self) -> bool:
        """Whether the caller is a thread of the host."""
        return self.sched.current in self.sched.tasks

    def start_thread(self, name: str, main: Callable[[], None], vcpu: int | None = None) -> Task:
        """A host thread, which runs when run() is called; `vcpu` says which virtual CPU it is there for."""
        return self.sched.spawn(name, main, vcpu=vcpu)

    def run(self, *, drain: bool = False) -> None:
        """Run every thread to its end, and to `drain`, kernel threads until they sleep. What a thread raises comes out
        here; the host's state means nothing then."""
        self._orderly = False
        with ExitStack() as stack:
            if self._preemption is not None:
                stack.enter_context(self._preemption.watching())
            self.sched.run(drain=drain)
        self._orderly = True

    def call(self, function: Callable[[], T], name: str = "vmm", vcpu: int | None = None) -> T:
        """`function` as a host thread, and all others beside it; its result, or what it raises."""
        if self.in_thread:
            return function()
        results: list[T] = []
        errors: list[Exception] = []

        def main() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)

        task = self.sched.spawn(name, main, vcpu=vcpu)
        self.run()
        self.sched.tasks.remove(task)
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        """Destroy the VMs with their processes; give back what is real. After an error in a thread only the latter."""
        try:
            if self._orderly:
                self.sched.spawn("exit", self._release)
                self.run(drain=True)
        finally:
            self.ram.code_caches.clear()
            for vm in self.vms:
                for vcpu in vm.kvm.vcpus:
                    vcpu.engine.close()
            self.node.close()

    def _release(self) -> None:
        for vm in self.vms:
            vm.release()


def _ram(size: int) -> Ram:
    try:
        return Ram(size)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"--host-memory: cannot map {size} bytes: {error}") from None
