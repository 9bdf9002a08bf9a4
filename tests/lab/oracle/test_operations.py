"""Operations on a real machine: what is skipped, what is compared, and what counts as no operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowvm.lab.oracle import layout as at
from shadowvm.lab.oracle.operations import Oracle
from shadowvm.lab.oracle.run import replay
from shadowvm.lab.oracle.setup import DIRTY_LOGS, HUGE_HOST_MEMORY, Setup
from shadowvm.lab.oracle.shapes import Operation, problem_with

ROOT_PAGE, PAGE = at.ROOTS[0], 0x41
FULL = at.PRESENT | at.WRITABLE | at.USER | at.ACCESSED | at.DIRTY
CHAIN: list[Operation] = [
    ["outside", ROOT_PAGE << 9, 1 << 12 | FULL],
    ["outside", 1 << 9, 2 << 12 | FULL],
    ["outside", 2 << 9, 3 << 12 | FULL],
    ["outside", 3 << 9, PAGE << 12 | FULL],
]
"""Map virtual page 0."""


def run(*operations: Operation, mmu: str = "shadow", smp: int = 1) -> str:
    """What was seen first, "" if nothing."""
    failure = replay(Setup(smp, mmu), [*CHAIN, *operations])
    return "" if failure is None else failure.text


@pytest.mark.parametrize(
    "operations",
    [
        [["access", 0, "w8", 0x100, 77, 0, 0], ["access", 0, "r8", 0x100, 0, 3, 0], ["check"]],
        [["access", 0, "x", 0, 0, 3, 0], ["access", 0, "a8", 8, 3, 0, 0], ["access", 0, "r1", 8, 0, 0, 0]],
        [["access", 0, "r8", 0x5000, 0, 0, 0], ["access", 0, "r8", 1 << 47, 0, 0, 0]],
        [["unmap", at.HIGH << 16], ["map"], ["map"], ["writable", 5], ["harvest", 0], ["slot", -1], ["slot", -1]],
        [["log", 0, 1], ["access", 0, "w8", 0, 1, 0, 0], ["harvest", 0], ["log", 0, 0]],
        [["readonly", PAGE], ["access", 0, "w8", 0, 1, 0, 0], ["access", 0, "r8", 0, 0, 0, 0], ["writable", PAGE]],
        [["access", 0, "w8", 511 * 8, 1, 0, 0], ["outside", PAGE << 9 | 511, 1], ["check"]],
        [
            ["bit", 0, "nxe", 0],
            ["bit", 0, "smep", 1],
            ["pkru", 0, 4],
            ["invlpg", 0, 0],
            ["access", 0, "r8", 0, 0, 3, 0],
        ],
    ],
)
@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_both_do_the_same(operations: list[Operation], mmu: str) -> None:
    assert run(*operations, mmu=mmu) == ""


@pytest.mark.parametrize("point", at.POINTS)
@pytest.mark.parametrize("act", [["pageout", PAGE], ["age", PAGE], ["flap", PAGE], ["hog", 7], ["harvest", 0]])
def test_another_thread_may_come_between(point: str, act: list[int | str]) -> None:
    assert run(["log", 0, 1], ["during", point, 1, *act], ["access", 0, "w8", 0, 77, 0, 0], ["check"]) == ""


@pytest.mark.parametrize("mode", at.MODES[1:])
@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("cpl", [0, 3])
def test_every_mode_tells_a_page_fault(mode: str, mmu: str, cpl: int) -> None:
    """Under two-dimensional paging by the guest's own handler."""
    fault: Operation = ["access", 0, "w4", 0x2000, 1, cpl, 0]
    assert run(["mode", 0, mode, ROOT_PAGE << 12], fault, fault, ["check"], mmu=mmu) == ""


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("mode", at.MODES)
def test_every_mode_can_be_entered_and_stored_in(mode: str, mmu: str) -> None:
    number = at.MODES.index(mode)
    place = at.window_address(number, PAGE) | 0x100
    store: Operation = ["access", 0, "w4", place, 99, 0, 0]
    assert run(["mode", 0, mode, ROOT_PAGE << 12], store, ["access", 0, "r4", place, 0, 0, 0], ["check"], mmu=mmu) == ""


def test_a_difference_in_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Oracle.begin

    def begin_wrongly(self: Oracle) -> None:
        begin(self)
        self.model.memory.words[PAGE << 9] = 5

    monkeypatch.setattr(Oracle, "begin", begin_wrongly)
    assert run(["check"]) == f"page {PAGE:#x} word 0: 0x0, not 0x5"


EDGE = 0xFFF
OTHER = 0x42
"""Mapped behind PAGE by test_an_access_crosses."""


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("other", [OTHER << 12 | FULL, 3 << 12 | FULL, 0x500 << 12 | FULL, 0])
def test_an_access_crosses_to_memory_a_table_a_device_or_nothing(other: int, mmu: str) -> None:
    kinds: list[Operation] = [["cross", 0, kind, EDGE + n, 0x1122334455667788, 0, 0] for n, kind in enumerate(WIDE)]
    assert run(["outside", 3 << 9 | 1, other], *kinds, ["check"], mmu=mmu) == ""


WIDE = ("w8", "r8", "a8", "w4", "r4", "a4")


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_rom_is_read_and_executed_and_a_device_gets_what_is_stored(mmu: str) -> None:
    base = at.MOVING_BASES[0]
    maps: Operation = ["outside", 3 << 9 | 1, base << 12 | FULL]
    uses: list[Operation] = [["access", 0, kind, 0x1008, 5, 0, 0] for kind in ("r8", "w8", "a8", "x")]
    assert run(maps, ["rom", base], *uses, ["slot", base], *uses, ["rom", base], *uses, ["check"], mmu=mmu) == ""


def test_system_management_mode_and_back() -> None:
    maps: Operation = ["outside", 3 << 9 | 1, at.MOVING_BASES[0] << 12 | FULL]
    uses: list[Operation] = [["access", 0, kind, 0x1008, 5, 0, 0] for kind in ("r8", "w8", "r8")]
    assert run(maps, *uses, ["smm", 0, 1], *uses, ["smm", 0, 0], *uses, ["check"], mmu="tdp") == ""


@pytest.mark.parametrize("point", at.POINTS_WITHOUT_LOCKS)
def test_another_cpu_changes_the_entry_of_an_access_that_waits(point: str) -> None:
    place = at.window_address(at.PT64, 3)
    between: Operation = ["amid", point, 1, 1, "w8", place, OTHER << 12 | FULL, 0, 0]
    access: Operation = ["access", 0, "w8", 0x100, 77, 0, 0]
    assert run(["readonly", PAGE], ["writable", PAGE], between, access, ["invlpg", 0, 0], access, smp=2) == ""


def test_the_access_that_waits_must_not_become_one_of_what_is_no_code() -> None:
    place = at.window_address(at.PT64, 3)
    between: Operation = ["amid", "kvm_page_fault", 1, 1, "w8", place, 6 << 12 | FULL, 0, 0]
    assert run(between, ["access", 0, "x", 0, 0, 0, 0], smp=2) == ""


@pytest.mark.parametrize("thp", [False, True])
@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("dirty_log", DIRTY_LOGS)
def test_every_dirty_log_has_what_was_written(dirty_log: str, mmu: str, thp: bool) -> None:
    store: Operation = ["access", 0, "w8", 0x100, 77, 0, 0]
    again: Operation = ["access", 0, "w8", 0x100, 78, 0, 0]
    clear: Operation = ["clear", at.LOW, 0, 512]
    harvest: Operation = ["harvest", at.LOW]
    setup = Setup(mmu=mmu, host_memory=HUGE_HOST_MEMORY, thp=thp, dirty_log=dirty_log)
    operations = [store, ["log", 0, 1], store, harvest, clear, again, harvest, clear, harvest, ["collapse", 0], store]
    assert replay(setup, [*CHAIN, *operations, harvest, ["check"]]) is None


def test_a_page_that_the_dirty_log_misses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    harvest: Callable[[object, int], dict[int, set[int]]] = lambda self, slot: {}  # noqa: E731
    monkeypatch.setattr("shadowvm.lab.oracle.dirty_logs.DirtyLogs.harvest", harvest)
    assert "page 0x41 was written" in run(["log", 0, 1], ["access", 0, "w8", 0, 1, 0, 0], ["harvest", 0])


def test_operations_of_these_tests_are_operations() -> None:
    assert [problem_with(each, 1) for each in CHAIN] == [""] * 4


def test_an_operation_that_has_no_end_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at, "code_page", lambda: b"\xeb\xfe" * 2048)
    assert run(["access", 0, "r8", 0, 0, 0, 0]).startswith("no progress")
