"""Compiles the callbacks: `python -m shadowvm.cpu.native.build` writes one JSON line of sizes, then the objects.

Run as a process of its own, so that numba and LLVM never enter the process that runs guests. numba makes the LLVM
text of a callback and of the wrapper with its C signature; here the one is put into the other, which numba forbids
itself, and both become a relocatable object for any x86-64.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

CPU = "generic"
TRIPLE = "x86_64-unknown-linux-gnu"


def emit(text: str, binding: Any) -> bytes:
    """LLVM text of one callback as an ELF object whose only function is the C entry `cfunc.*`."""
    module = binding.parse_assembly(text.replace("{ noinline }", "{ nounwind }"))
    for function in module.functions:
        if not function.is_declaration and not function.name.startswith("cfunc."):
            function.linkage = "internal"
    target = binding.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu=CPU, features="", opt=3, reloc="pic", codemodel="small")
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def build() -> bytes:
    """All callbacks, ready for the cache file."""
    os.environ["NUMBA_CPU_NAME"] = CPU
    os.environ["NUMBA_CPU_FEATURES"] = ""
    from llvmlite import binding  # noqa: PLC0415  numba reads its settings when it is imported

    from .entry import CALLBACKS  # noqa: PLC0415

    objects = {name: emit(f.inspect_llvm(), binding) for name, f in CALLBACKS.items()}
    head = json.dumps({name: len(blob) for name, blob in objects.items()})
    return head.encode() + b"\n" + b"".join(objects.values())


if __name__ == "__main__":
    sys.stdout.buffer.write(build())
