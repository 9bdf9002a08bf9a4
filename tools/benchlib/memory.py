"""What a fault, a page through swap and a big guest cost, against the real kernel under this process."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Hva
from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import find_image
from shadowvm.machine import Machine
from shadowvm.mm.mmu_notifier import (
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from shadowvm.mm.rmap import CLEAR

from .marks import MARK_PORT, Marks
from .table import Row

NAMES = ("spte-fault", "fault-1g", "swap", "resident")
FAULT_GOAL, SWAP_GOAL, FLAT_GOAL = 4, 5, 1.2
KERNEL_FAULT_PAGES = 8192
BATCH = 32
ROOT = Path(__file__).resolve().parents[2]
RUN_AND_REPORT = """
import sys
from shadowvm.cli.main import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(status)
"""


class StopMarks(Marks):
    """Marks that also stop the guest, so that something can be done to the host before a round."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._stop = machine.vcpu.engine.request_stop

    def port_write(self, port: int, size: int, value: int) -> None:
        """Take the time, then stop."""
        super().port_write(port, size, value)
        self._stop()

    def resume(self) -> None:
        """The guest goes on now."""
        self._began = time.thread_time()


class Difference:
    """What something costs beyond a loop without it: the best of each, since noise only ever adds."""

    def __init__(self) -> None:
        self._with: list[float] = []
        self._without: list[float] = []

    def add(self, with_it: float, without: float) -> None:
        """One measurement of both, per operation."""
        self._with.append(with_it)
        self._without.append(without)

    @property
    def us(self) -> float:
        """Microseconds."""
        return (min(self._with) - min(self._without)) * 1e6


def time_kernel_faults(cost: Difference, pages: int = KERNEL_FAULT_PAGES) -> None:
    """Real minor faults: one byte stored to each page of a new mapping, and the same once more."""
    memory = mmap.mmap(-1, pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    ones = b"\1" * pages
    times = []
    for _ in range(2):
        began = time.thread_time()
        memory[::PAGE_SIZE] = ones
        times.append((time.thread_time() - began) / pages)
    memory.close()
    cost.add(times[0], times[1])


def _zap_all(machine: Machine) -> None:
    """What a host actor that changes all of the guest's memory does; the pages stay where they are."""
    for slot in machine.kvm.memslots.slots:
        start = Hva(slot.vpn(slot.base_gfn) << PAGE_SHIFT)
        range_ = MmuNotifierRange(machine.mm, start, Hva(start + (slot.npages << PAGE_SHIFT)), CLEAR)
        mmu_notifier_invalidate_range_start(range_)
        mmu_notifier_invalidate_range_end(range_)


class FaultRun:
    """A guest of `memory` bytes that touches `size` of them, with and without sptes in turn."""

    def __init__(self, memory: int, size: int, rounds: int) -> None:
        append = f"size={size} rounds={rounds} touch=1 mixed=0 copy=0 chase=0 switches=0 faults=0"
        name, image = find_image("bench")
        config = MachineConfig(image, name, memory=memory, host_memory=memory + memory // 4, append=append)
        self.machine = Machine(config, lambda byte: None)
        self.marks = StopMarks(self.machine)
        self.machine.bus.register(self.marks, MARK_PORT, 1)
        self.cost = Difference()
        self.machine.run()

    def measure(self) -> None:
        """One round with every spte gone, one with all there: the difference is what the faults cost."""
        machine, stat = self.machine, self.machine.vcpu.stat
        machine.sched.spawn("zap", lambda: _zap_all(machine))
        machine.sched.run()
        before = stat.pf_fixed
        self._round()
        faults = stat.pf_fixed - before
        self._round()
        cold, warm = self.marks.rounds["t"][-2:]
        self.cost.add(cold / faults, warm / faults)

    def _round(self) -> None:
        self.marks.resume()
        self.machine.run()

    def close(self) -> None:
        """Let the guest check its work and end."""
        assert self.machine.run().status == 0
        self.machine.close()


def _fault_rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    small_rounds = repeat if quick else 4 * repeat
    small = FaultRun(64 * MIB, 48 * MIB, 2 * small_rounds)
    kernel = Difference()
    rounds = max(1, repeat // 2)
    big_memory = 128 * MIB if quick else 1024 * MIB
    big = FaultRun(big_memory, big_memory * 3 // 4, 2 * rounds) if "fault-1g" in names else None
    for i in range(small_rounds):
        time_kernel_faults(kernel)
        small.measure()
        if big is not None and i < rounds:
            big.measure()
    small.close()
    if "spte-fault" in names:
        yield Row("spte-fault", "kernel's minor fault", "us/fault", kernel.us, small.cost.us, FAULT_GOAL)
    if big is not None:
        big.close()
        note = f"-m {big_memory // MIB}M"
        yield Row("fault-1g", "the same at -m 64M", "us/fault", small.cost.us, big.cost.us, FLAT_GOAL, note)


def raw_io(pages: int) -> float:
    """Seconds to write a page to a file and read it back: 32 pages a call, from all over memory as in reclaim."""
    memory = memoryview(bytearray(pages * PAGE_SIZE))
    order = list(range(0, pages * PAGE_SIZE, PAGE_SIZE))
    random.Random(1).shuffle(order)
    frames = [memory[at : at + PAGE_SIZE] for at in order]
    times = []
    with tempfile.TemporaryFile() as file:
        for call in (os.pwritev, os.pwritev, os.preadv):
            began = time.thread_time()
            for first in range(0, pages, BATCH):
                call(file.fileno(), frames[first : first + BATCH], first * PAGE_SIZE)
            times.append(time.thread_time() - began)
    return (times[1] + times[2]) / pages


def _swap_once(size: int, host_memory: int) -> float:
    """Seconds per page of the guest's rounds through more memory than there is: each page goes out and comes in."""
    append = f"size={size} rounds=4 touch=1 mixed=0 copy=0 chase=0 switches=0 faults=0"
    name, image = find_image("bench")
    config = MachineConfig(image, name, memory=2 * size, host_memory=host_memory, append=append)
    machine = Machine(config, lambda byte: None)
    marks = StopMarks(machine)
    machine.bus.register(marks, MARK_PORT, 1)
    machine.run()
    vmstat, costs = machine.host.vmstat, []
    for _ in range(4):
        pages = vmstat.pswpin + vmstat.pswpout
        marks.resume()
        machine.run()
        costs.append(marks.rounds["t"][-1] / ((vmstat.pswpin + vmstat.pswpout - pages) / 2))
    assert machine.run().status == 0
    machine.close()
    return min(costs)


def _swap_row(repeat: int, quick: bool) -> Row:
    size, host_memory = (8 * MIB, 4 * MIB) if quick else (16 * MIB, 8 * MIB)
    raw, ours = [], []
    for _ in range(repeat):
        raw.append(raw_io(size // PAGE_SIZE))
        ours.append(_swap_once(size, host_memory))
    return Row("swap", "raw file I/O", "us/page", min(raw) * 1e6, min(ours) * 1e6, SWAP_GOAL)


def _resident_row(quick: bool) -> Row:
    """Peak resident set of a process whose guest touches far more than the host has; the rest is the constant."""
    memory, size, host = ("64M", "48M", 16) if quick else ("1G", "900M", 64)
    guest = ["run", "memtouch", "-m", memory, "--host-memory", f"{host}M", "-append", f"size={size} passes=1"]
    command = [sys.executable, "-c", RUN_AND_REPORT, *guest]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak = int(done.stdout.split("peak ")[1]) / 1024
    return Row("resident", "--host-memory", "MiB", host, peak, None, f"constant {peak - host:.0f} MiB, guest {size}")


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The rows among `names`."""
    if names & {"spte-fault", "fault-1g"}:
        yield from _fault_rows(names, repeat, quick)
    if "swap" in names:
        yield _swap_row(repeat, quick)
    if "resident" in names:
        yield _resident_row(quick)
