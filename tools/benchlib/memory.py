"""What an spte fault and a big guest cost, against the real kernel under this process."""

from __future__ import annotations

import mmap
import subprocess
import sys
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
from shadowvm.params import KvmParams

from .marks import MARK_PORT, WITHOUT_EVENTS, StopMarks
from .table import Row

BIG = {
    "shadow": {"fault-1g": (1024 * MIB, 128 * MIB), "fault-4g": (4096 * MIB, 256 * MIB)},
    "tdp": {"fault-4g-tdp": (4096 * MIB, 128 * MIB)},
}
"""By MMU: guest memory of a row, and when there is little time. Five eighths are touched: of 4 GiB, what is below the
hole."""
NAMES = ("spte-fault", *BIG["shadow"], *BIG["tdp"], "resident")
FAULT_GOAL, FLAT_GOAL = 4, 1.2
KERNEL_FAULT_PAGES = 8192
ROOT = Path(__file__).resolve().parents[2]
RUN_AND_REPORT = """
import sys
from shadowvm.cli.main import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(status)
"""


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

    def __init__(self, mmu: str, memory: int, size: int, rounds: int) -> None:
        append = f"size={size} rounds={rounds} touch=1 mixed=0 copy=0 chase=0 switches=0 faults=0 {WITHOUT_EVENTS}"
        name, image = find_image("bench")
        # One page a fault: what prefetch maps beside it would make the fault dear, and the page cheap.
        knobs = KvmParams(prefetch=0)
        host = memory + memory // 4
        config = MachineConfig(image, name, memory=memory, host_memory=host, append=append, mmu=mmu, kvm_params=knobs)
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


def _fault_rows(mmu: str, names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    small_rounds = repeat if quick else 4 * repeat
    small = FaultRun(mmu, 64 * MIB, 48 * MIB, 2 * small_rounds)
    kernel = Difference()
    big = {name: sizes[quick] for name, sizes in BIG[mmu].items() if name in names}
    rounds = {name: min(small_rounds, max(1, repeat * MIB * 512 // memory)) for name, memory in big.items()}
    runs = {name: FaultRun(mmu, memory, memory * 5 // 8, 2 * rounds[name]) for name, memory in big.items()}
    for i in range(small_rounds):
        time_kernel_faults(kernel)
        small.measure()
        for name, run in runs.items():
            if i < rounds[name]:
                run.measure()
    small.close()
    if "spte-fault" in names and mmu == "shadow":
        yield Row("spte-fault", "kernel's minor fault", "us/fault", kernel.us, small.cost.us, FAULT_GOAL)
    for name, run in runs.items():
        run.close()
        note = f"-m {big[name] // MIB}M"
        yield Row(name, "the same at -m 64M", "us/fault", small.cost.us, run.cost.us, FLAT_GOAL, note)


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
    for mmu, big in BIG.items():
        if names & big.keys() or (mmu == "shadow" and "spte-fault" in names):
            yield from _fault_rows(mmu, names, repeat, quick)
    if "resident" in names:
        yield _resident_row(quick)
