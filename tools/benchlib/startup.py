"""From the command to the guest's first byte of output, against QEMU booting the same image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from shadowvm.guests import find_image

from .table import Row

NAMES = ("startup",)
GOAL = 2
ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
QEMU_FLAGS = ["-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-m", "64M"]
QEMU_EXIT = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]


def _first_byte(command: list[str]) -> float:
    """Seconds until the first byte on stdout. Bytecode is cached, as it is wherever a package is installed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        took = time.perf_counter() - began
        process.stdout.read()
    assert first == b"H", f"{command[0]} does not run hello"
    return took


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The row, if it is among `names`. Without QEMU it has no base."""
    if "startup" not in names:
        return
    ours, theirs = [], []
    image = find_image("hello")[1]
    _first_byte([sys.executable, "-m", "shadowvm", "run", "hello"])
    for _ in range(repeat):
        ours.append(_first_byte([sys.executable, "-m", "shadowvm", "run", "hello"]))
        if shutil.which(QEMU):
            theirs.append(_first_byte([QEMU, *QEMU_FLAGS, *QEMU_EXIT, "-kernel", image]))
    base = min(theirs) * 1e3 if theirs else float("nan")
    yield Row("startup", "qemu -kernel", "ms", base, min(ours) * 1e3, GOAL if theirs else None)
