"""What listening costs: a run with everything traced to a file, and the hooks of a run to which nobody listens.

Of the second, the other side is the same program without its hooks: a child loads shadowvm with every
`if TRACEPOINT.on` taken out of its source, and what debuggers and tracers need beside them. Native code has none and
is left alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from .table import Row

NAMES = ("trace", "no-listener")
TRACE_GOAL, HOOKS_GOAL = 2.0, 1.02
MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
CHILD = "from benchlib.trace import serve; serve({hooks}, {append!r})"


class WithoutHooks(ast.NodeTransformer):
    """Source as it was if nothing could listen to it."""

    def __init__(self) -> None:
        self.removed = 0

    def visit_If(self, node: ast.If) -> Any:
        """`if tracepoint.on: ...` goes."""
        self.generic_visit(node)
        tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        if node.orelse or not any(isinstance(test, ast.Attribute) and test.attr == "on" for test in tests):
            return node
        self.removed += 1
        return ast.copy_location(ast.Pass(), node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """`X if debugger is None else Y` is X."""
        self.generic_visit(node)
        test = node.test
        if isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "debugger":
            self.removed += 1
            return node.body
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        """`trace_clock.ticks += 1` goes."""
        if isinstance(node.target, ast.Attribute) and node.target.attr == "ticks":
            self.removed += 1
            return ast.copy_location(ast.Pass(), node)
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Never from the cache, which has the hooks."""
        tree = WithoutHooks().visit(ast.parse(Path(self.path).read_bytes()))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Modules of shadowvm but the native ones."""
        if not fullname.startswith("shadowvm.") or ".native" in fullname:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            loader: Loader = _Loader(spec.loader.name, spec.loader.path)
            spec.loader = loader
        return spec


def run_once(append: str, trace: Any = None) -> float:
    """CPU seconds of memtouch on 4 MiB, with or without a trace to a file."""
    from shadowvm.config import MachineConfig  # noqa: PLC0415 - a child decides first what it loads
    from shadowvm.guests import find_image  # noqa: PLC0415
    from shadowvm.machine import Machine  # noqa: PLC0415

    name, image = find_image("memtouch")
    machine = Machine(MachineConfig(image, name, 64 * MIB, 4 * MIB, append=append), lambda byte: None)
    began = time.process_time()
    with nullcontext() if trace is None else _watching(machine, trace):
        machine.run()
        machine.close()
    return time.process_time() - began


def _watching(machine: Any, trace: Any) -> Any:
    from shadowvm.trace.writer import TraceWriter  # noqa: PLC0415

    return TraceWriter(machine, trace).watching()


def serve(hooks: bool, append: str) -> None:
    """A child: a run for each line that comes in."""
    if not hooks:
        sys.meta_path.insert(0, _Finder)
    for _ in sys.stdin:
        print(run_once(append), flush=True)


def _child(hooks: bool, append: str) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(ROOT / "tools")]
    code = f"import sys; sys.path[:0] = {paths!r}; {CHILD.format(hooks=hooks, append=append)}"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(child: subprocess.Popen[str]) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def measure_hooks(repeat: int, append: str) -> tuple[float, float]:
    """Seconds (without hooks, with them): the fastest of each, in turns, after one that warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    rounds = 4 * repeat  # one part in a hundred is to be told from noise
    with _child(False, append) as without, _child(True, append) as with_hooks:
        for number in range(rounds + 1):
            for child, found in zip((without, with_hooks), times, strict=True):
                seconds = _ask(child)
                if number:
                    found.append(seconds)
        for child in (without, with_hooks):
            assert child.stdin is not None
            child.stdin.close()
    return min(times[0]), min(times[1])


def measure_trace(repeat: int, append: str) -> tuple[float, float, int]:
    """(seconds without, seconds with a trace, bytes of the trace)."""
    plain, traced = [], []
    with tempfile.TemporaryFile(buffering=0) as file:
        run_once(append, file)
        for _ in range(repeat):
            plain.append(run_once(append))
            file.seek(0)
            traced.append(run_once(append, file))
        size = file.tell()
    return min(plain), min(traced), size


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The rows of this group."""
    append = "size=256k" if quick else ""
    if "trace" in names:
        plain, traced, size = measure_trace(repeat, append)
        note = f"every event, {size / MIB:.1f} MiB"
        yield Row("trace", "the same untraced", "ms/run", plain * 1000, traced * 1000, TRACE_GOAL, note)
    if "no-listener" in names:
        without, with_hooks = measure_hooks(1 if quick else repeat, append)
        yield Row("no-listener", "no tracepoints", "ms/run", without * 1000, with_hooks * 1000, HOOKS_GOAL)
