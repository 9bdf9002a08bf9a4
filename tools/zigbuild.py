# SPDX-License-Identifier: GPL-2.0-or-later
"""What the builders of guests and of the firmware share: the pinned compiler, and the comparison with what is there.

The compiler is the one inside the ziglang wheel of pyproject.toml's `guests` extra, at exactly that version, so that
the same sources give the same bytes on every machine: sources are named relative to the working directory, and the
outputs carry no debug information, build id or time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ZIGLANG_VERSION = "0.17.0"
TARGET64 = ["-target", "x86_64-freestanding-none", "-mno-red-zone", "-mcmodel=small"]
NO_FPU64 = "-mcpu=x86_64-mmx-sse-sse2-x87+soft_float"
CFLAGS = [
    *("-std=c11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-fno-pic", "-fno-pie"),
    *("-fno-stack-protector", "-fno-sanitize=all", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"),
    *("-fomit-frame-pointer", "-ffile-prefix-map=./="),
]
LDFLAGS = ["-static", "--strip-debug", "--build-id=none", "-z", "max-page-size=4096", "--fatal-warnings"]


class BuildError(Exception):
    """What could not be built, and why. Exit status 1."""


class UsageError(BuildError):
    """What was asked for can't be tried at all. Exit status 2."""


def require_compiler() -> None:
    """UsageError without the pinned version."""
    if importlib.util.find_spec("ziglang") is None:
        raise UsageError(f"no compiler: pip install ziglang=={ZIGLANG_VERSION}")
    found = importlib.metadata.version("ziglang")
    if found != ZIGLANG_VERSION:
        raise UsageError(f"ziglang {found} is installed, the images need {ZIGLANG_VERSION}")


def zig(arguments: list[str], directory: Path, scratch: Path) -> None:
    """Run one tool in `directory`; BuildError with what it says when it fails."""
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(scratch / "cache"), "ZIG_LOCAL_CACHE_DIR": str(scratch / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=directory,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"zig {arguments[0]} failed:\n{done.stderr.rstrip()}")


def sources(directory: Path, folder: str = ".") -> Iterator[str]:
    """C and assembly files of a folder, named relative to `directory`, in an order that does not depend on the disk."""
    for path in sorted((directory / folder).iterdir()):
        if path.suffix in {".c", ".S"}:
            yield str(path.relative_to(directory))


def differs(path: Path, built: bytes) -> str | None:
    """How the committed file differs from what was built, None if it does not."""
    if not path.exists():
        return f"{path.name} is missing"
    old = path.read_bytes()
    if old == built:
        return None
    at = next((i for i, (a, b) in enumerate(zip(old, built, strict=False)) if a != b), min(len(old), len(built)))
    sizes = f"{len(old)} and {len(built)} bytes"
    return f"{path.name} is not what its sources give: first difference at {at:#x}, {sizes}"
