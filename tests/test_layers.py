"""The shape of the source: imports go down the layers, files and functions stay small, every module has its test."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shadowvm"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(path for name in ("shadowvm", "tools", "tests") for path in (ROOT / name).rglob("*.py"))
TOOLS = [path for path in sorted((ROOT / "tools").glob("*")) if path.is_file() and path.suffix in ("", ".py")]

LAYERS: list[set[str]] = [
    {"addr", "x86", "phys", "errors", "sync", "rcu", "events", "workqueue", "params", "config", "guests", "__init__"},
    {"mm", "cpu", "boot"},
    {"kvm", "secondary", "devices"},
    {"api"},
    {"machine"},
    {"trace"},
    {"debug", "lab", "report"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. Siblings in a layer do not import each other; the modules of the lowest one may."""

MAX_LINES, MAX_FUNCTION = 500, 60

WITHOUT_TEST = {
    "addr.py": "types without behaviour",
    "x86.py": "constants; the walkers' tests use them",
    "errors.py": "classes without behaviour",
    "mm/compound.py": "mm/test_huge.py",
    "mm/khugepaged.py": "mm/test_huge.py",
    "mm/pmd.py": "mm/test_huge.py",
    "kvm/mmu/large_spte.py": "kvm/mmu/test_large.py",
    "kvm/mmu/nx_huge_page.py": "kvm/mmu/test_large.py",
    "kvm/mmu/split.py": "kvm/mmu/test_large.py",
    "kvm/exit.py": "constants and a record",
    "debug/breaks.py": "debug/test_monitor.py",
    "debug/breakpoints.py": "debug/test_monitor.py",
    "debug/disassemble.py": "debug/test_monitor.py",
    "debug/explain.py": "debug/test_monitor.py",
    "debug/guest_tables.py": "debug/test_monitor.py",
    "debug/launch.py": "debug/test_snapshot.py",
    "debug/lists.py": "debug/test_monitor.py",
    "debug/load.py": "debug/test_snapshot.py",
    "debug/registers_text.py": "debug/test_monitor.py",
    "debug/peek.py": "debug/test_monitor.py",
    "debug/views.py": "debug/test_monitor.py",
    "debug/walks.py": "debug/test_panes.py",
    "debug/tui/help.py": "debug/tui/test_app.py",
    "debug/tui/start.py": "debug/tui/test_app.py",
    "debug/tui/widgets.py": "debug/tui/test_app.py",
    "debug/gdb_registers.py": "debug/test_gdbstub.py",
    "debug/gdb_memory.py": "debug/test_gdbstub.py",
    "debug/gdb_query.py": "debug/test_gdbstub.py",
    "debug/gdb_resume.py": "debug/test_gdbstub.py",
    "debug/threads.py": "debug/test_gdbstub.py",
    "debug/position.py": "debug/test_timeline.py",
    "debug/target.py": "debug/test_timeline.py",
    "debug/worker.py": "debug/test_timeline.py",
    "trace/chunk.py": "trace/test_reader.py",
    "kvm/userspace_io.py": "api/test_vcpu.py",
    "kvm/mmu/leaf_walk.py": "flows/, lab/test_mutations.py and the guests",
    "kvm/inject.py": "kvm/test_intercept.py and flows/",
    "kvm/msr.py": "kvm/test_intercept.py",
    "devices/irqchip.py": "kvm/test_irq.py",
    "kvm/mmu/root.py": "flows/ and lab/test_mutations.py: roots need a CPU that uses them",
    "kvm/mmu/guest_walker.py": "flows/ and the guest ptchurn",
    "kvm/mmu/direct_page_fault.py": "kvm/mmu/test_tdp_mmu.py and kvm/mmu/test_fast_page_fault.py",
    "kvm/mmu/tdp_spte.py": "kvm/mmu/test_tdp_mmu.py",
    "kvm/mmu/page_track.py": "lab/test_mutations.py",
    "kvm/emulate.py": "flows/ and lab/test_mutations.py",
    "kvm/notifier.py": "flows/ and lab/test_mutations.py",
    "kvm/handle_exit.py": "flows/ and cli/test_run.py",
    "kvm/vcpu.py": "flows/ and cli/test_run.py",
    "kvm/vm.py": "flows/ and lab/test_mutations.py",
    "devices/apic_bits.py": "constants; the tests of the local APIC use them",
    "devices/state.py": "the tests of the devices that are saved and restored",
    "machine.py": "flows/ and cli/test_run.py",
    "guests.py": "cli/test_run.py",
    "cli/main.py": "cli/test_run.py",
    "cli/guests.py": "cli/test_run.py",
    "cli/prompt.py": "cli/test_debug.py",
    "cli/output.py": "cli/test_run.py",
    "cli/mutate.py": "lab/mutate/test_gallery.py",
    "trace/recorder.py": "test_determinism.py",
    "report/analysis.py": "report/test_residency.py and report/test_page.py",
    "report/html.py": "report/test_page.py",
    "report/sections_memory.py": "report/test_page.py",
    "report/sections_mmu.py": "report/test_page.py",
    "report/sections_overview.py": "report/test_page.py",
    "report/theme.py": "report/test_heat.py",
    "lab/oracle/bed.py": "lab/oracle/test_operations.py",
    "lab/oracle/settle.py": "lab/oracle/test_model.py",
    "lab/oracle/traps.py": "lab/oracle/test_layout.py",
}
"""Modules whose test is elsewhere or nowhere, and why. Some folders are tested as a whole."""
FOLDERS_TESTED_ELSEWHERE = ("lab/invariants/", "lab/mutate/", "cpu/", "debug/commands/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


TRACKED = frozenset(
    subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
)


def is_tracked(path: Path) -> bool:
    """Under version control, or no repository is there to ask: work that is not finished needs no test yet."""
    return not TRACKED or relative(path) in TRACKED


def top_of(module: str) -> str:
    """The layer's name of a module path such as shadowvm/mm/swap.py."""
    first = Path(module).relative_to("shadowvm").parts[0]
    return first.removesuffix(".py")


def layer_of(top: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if top in names]
    assert found, f"{top} is in no layer"
    return found[0]


def imported(path: Path) -> Iterator[str]:
    """Top names of the package's own modules that a file imports, also inside functions; not for type checking."""
    package = ["shadowvm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in running_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = [*base, *(node.module or "").split(".")] if node.module else base
            if target[0] == "shadowvm":
                yield from [target[1]] if len(target) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shadowvm."))


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: not those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from running_nodes(child)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_down(path: Path) -> None:
    mine = top_of(relative(path))
    for other in imported(path):
        allowed = layer_of(other) < layer_of(mine) or other == mine or layer_of(mine) == 0
        assert allowed, f"{relative(path)} imports {other}"


def test_mm_knows_nothing_of_virtual_machines() -> None:
    for path in (PACKAGE / "mm").rglob("*.py"):
        assert "kvm" not in path.read_text().lower().replace("/kvm", ""), relative(path)


def test_only_one_module_imports_the_emulator() -> None:
    users = [relative(path) for path in MODULES if "import unicorn" in path.read_text()]
    assert len(users) <= 1


@pytest.mark.parametrize("path", SOURCES + TOOLS, ids=relative)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    if path.suffix != ".py" and "python" not in text.partition("\n")[0]:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", [path for path in MODULES if is_tracked(path)], ids=relative)
def test_module_has_a_test(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if path.name in ("__init__.py", "__main__.py") or name.startswith(FOLDERS_TESTED_ELSEWHERE):
        return
    test = ROOT / "tests" / Path(name).parent / f"test_{path.name}"
    assert test.exists() != (name in WITHOUT_TEST), f"{name}: either {relative(test)}, or a reason why not"


def test_exceptions_exist() -> None:
    assert all((PACKAGE / name).exists() for name in WITHOUT_TEST)


def test_modules_open_with_their_contract() -> None:
    for path in MODULES:
        doc = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
        if path.read_text():
            assert doc, f"{relative(path)} has no docstring"
            assert doc.count("\n") <= 15, f"{relative(path)} opens with a long docstring"


def test_nothing_names_the_place_it_was_made() -> None:
    places = [b"/" + b"work/", b"/tmp/" + b"venv"]
    for name in TRACKED or map(relative, SOURCES):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            assert not any(place in data for place in places), name
