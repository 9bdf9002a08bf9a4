"""An unlucky moment on purpose: the page that a vCPU has just looked up is swapped out before its spte is set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Hva
from shadowvm.events import Tracepoint, attached, host_pte_change, kvm_faultin_pfn
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import madvise_pageout
from shadowvm.sync import Task

EVERY = 8


class PageoutRace:
    """At every eighth look-up a task of the VMM pages the page out. With `pause` it stops halfway for the vCPU."""

    def __init__(self, machine: Machine, *, pause: bool) -> None:
        self.machine = machine
        self.pause = pause
        self.count = 0
        self.task: Task | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Race inside the block."""
        with attached(self._sink, (kvm_faultin_pfn, host_pte_change)):
            yield

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        sched = self.machine.sched
        if tracepoint is host_pte_change:
            if self.pause and sched.current is self.task:
                sched.preempt()
        elif self.task is None or self.task.glet.dead:
            self.count += 1
            if self.count % EVERY == 0:
                self.task = sched.spawn("madvise", lambda: self._pageout(args[1]))
                sched.preempt()

    def _pageout(self, gfn: int) -> None:
        slot = next(slot for slot in self.machine.kvm.memslots.slots if gfn < slot.base_gfn + slot.npages)
        hva = Hva(slot.userspace_addr + (gfn - slot.base_gfn << PAGE_SHIFT))
        madvise_pageout(self.machine.mm, hva, PAGE_SIZE)
