"""Compiles the callbacks: `python -m shadowvm.cpu.native.build` writes one JSON line of sizes, then the objects.

Run as a process of its own, so that numba and LLVM never enter the process that runs guests.
"""

from __future__ import annotations

import json
import os
import sys


def build() -> bytes:
    """All callbacks as relocatable ELF objects for any x86-64."""
    os.environ["NUMBA_CPU_NAME"] = "generic"
    os.environ["NUMBA_CPU_FEATURES"] = ""
    from .entry import CALLBACKS

    objects = {name: bytes(f._library._get_compiled_object()) for name, f in CALLBACKS.items()}
    head = json.dumps({name: len(blob) for name, blob in objects.items()})
    return head.encode() + b"\n" + b"".join(objects.values())


if __name__ == "__main__":
    sys.stdout.buffer.write(build())
