"""Watchpoints on memory over all vCPUs of a machine: which bytes of which frames they are now, and what was hit.

A guest-physical or host-virtual address names other frames as pages come and go; whoever enters the guest has them
looked up again before (`arm`). Nothing of that changes the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Vpn
from ..cpu.engine import CpuExit
from ..cpu.mailbox import MAX_WATCHPOINTS, WATCH_DEVICE
from ..cpu.watchpoints import WatchRow
from ..errors import ConfigError
from ..mm.gup import host_pte
from ..x86 import PT_ADDR_MASK, PT_PRESENT
from .breaks import MemoryWatch

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from ..machine import Machine


class Hit(NamedTuple):
    """Which watchpoint, and the vCPU that did it."""

    watch: MemoryWatch
    vcpu: int


class Watching:
    """Those of a run. on: there are any."""

    __slots__ = ("_machine", "_rows", "_watches", "on")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._watches: tuple[MemoryWatch, ...] = ()
        self._rows: list[tuple[WatchRow, MemoryWatch]] = []
        self.on = False

    def set(self, watches: Sequence[MemoryWatch]) -> None:
        """Watch these from now on. ConfigError: too many, or too long."""
        if sum(_most_rows(each) for each in watches) > MAX_WATCHPOINTS:
            raise ConfigError(f"watch: more than {MAX_WATCHPOINTS} watchpoints, or pages of memory in them")
        self._watches = tuple(watches)
        self.arm()
        self.on = bool(watches)

    def arm(self) -> None:
        """Before an entry: tell the CPUs what to look for."""
        rows = [(row, watch) for watch in self._watches for row in _rows(self._machine, watch)]
        if rows != self._rows:
            self._rows = rows
            for vcpu in self._machine.vcpus:
                vcpu.engine.watchpoints.set([row for row, _ in rows])

    def settle(self, vcpu: Vcpu, reason: int, alone: bool, retired: bool) -> bool:
        """After a piece of an entry: is the next one for one instruction only, which seems to hit? alone: this one
        was. What an instruction has hit that did not retire is nothing."""
        points = vcpu.engine.watchpoints
        if reason == CpuExit.DEBUG and points.is_suspect():
            points.begin()
            return True
        if alone and reason == CpuExit.DEBUG and not retired and not points.hits:
            return True  # at a breakpoint on the same instruction
        if alone:
            points.end()
            if not retired and reason != CpuExit.DEBUG:
                points.forget()
        return False

    def take(self) -> Hit | None:
        """What the last instruction has hit; the first watchpoint if there are several."""
        for vcpu in self._machine.vcpus:
            hits = vcpu.engine.watchpoints.hits
            if hits:
                vcpu.engine.watchpoints.forget()
                return Hit(self._rows[(hits & -hits).bit_length() - 1][1], vcpu.id)
        return None


def _most_rows(watch: MemoryWatch) -> int:
    return 1 if watch.space == "gva" else len(list(_pages(watch)))


def _pages(watch: MemoryWatch) -> Iterator[tuple[int, int]]:
    """(address, size) of the part in each page."""
    at, end = watch.address, watch.address + watch.size
    while at < end:
        size = min(end, (at | PAGE_SIZE - 1) + 1) - at
        yield at, size
        at += size


def _rows(machine: Machine, watch: MemoryWatch) -> Iterator[WatchRow]:
    reads, writes = "r" in watch.access, "w" in watch.access
    if watch.space == "gva":
        yield WatchRow(watch.address, watch.size, reads, writes)
        return
    for address, size in _pages(watch):
        hpa = _hpa(machine, watch.space, address)
        if hpa is not None:
            yield WatchRow(hpa, size, reads, writes, physical=True)


def _hpa(machine: Machine, space: str, address: int) -> int | None:
    """Where a byte is in host memory now. None: it is not there."""
    if space == "pfn":
        return address
    vpn = Vpn(address >> PAGE_SHIFT)
    if space == "gpa":
        slot = machine.kvm.memslots.find(Gfn(address >> PAGE_SHIFT))
        if slot is None:
            return address | WATCH_DEVICE
        vpn = slot.vpn(Gfn(address >> PAGE_SHIFT))
    pte = host_pte(machine.mm, vpn)
    return pte & PT_ADDR_MASK | address & PAGE_SIZE - 1 if pte & PT_PRESENT else None
