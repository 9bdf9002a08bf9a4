"""A guest image under QEMU's TCG, timed by its marks: an isa-debugcon stands at the mark port and writes to a pipe.

The clock is the CPU time of QEMU's process, read from outside when a mark arrives, so that a busy machine disturbs
little. The guest does not wait for the reader: a single round is uncertain by the time that the reader takes to wake
up, so only the time from the first round to the last is used.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

from .marks import MARK_END, MARK_PORT

QEMU = "qemu-system-x86_64"
FLAGS = ["-accel", "tcg,thread=single", "-nodefaults", "-display", "none", "-no-reboot", "-cpu", "max"]
DEVICES = [
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    *("-chardev", "stdio,id=marks", "-device", f"isa-debugcon,iobase={MARK_PORT:#x},chardev=marks"),
]


def is_installed() -> bool:
    """Without QEMU the rows have no base."""
    return shutil.which(QEMU) is not None


def time_loops(image: str, memory: int, append: str, cpus: int = 1) -> dict[str, float]:
    """Run `image`; for each loop's letter the CPU seconds of one round, on average.

    Raises:
        RuntimeError: the guest was not content.
    """
    command = [QEMU, *FLAGS, *DEVICES, "-m", f"{memory >> 20}M", "-smp", str(cpus), "-kernel", image, "-append", append]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        stamps = list(_stamps(process))
    if process.returncode != 1:
        raise RuntimeError(f"QEMU ends with {process.returncode}: {' '.join(command)}")
    return _rounds(stamps)


def _stamps(process: subprocess.Popen[bytes]) -> Iterator[tuple[int, float]]:
    """(mark, CPU seconds of the process) as they arrive."""
    clock = ~process.pid << 3 | 2
    assert process.stdout is not None
    while data := process.stdout.read(64):
        now = time.clock_gettime(clock)
        yield from ((byte, now) for byte in data)


def _rounds(stamps: list[tuple[int, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    began, rounds = 0.0, 0
    for i, (mark, now) in enumerate(stamps):
        if mark == MARK_END:
            found[chr(stamps[i - 1][0])] = (now - began) / rounds
            rounds = 0
            continue
        if rounds == 0:
            began = now
        rounds += 1
    return found
