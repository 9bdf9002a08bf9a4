"""Operations on a real machine: what is skipped, what is compared, and what counts as no operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowvm.lab.oracle import layout as at
from shadowvm.lab.oracle.operations import Operation, Oracle, problem_with
from shadowvm.lab.oracle.run import Setup, replay

ROOT_PAGE, PAGE = at.ROOTS[0], 0x41
FULL = at.PRESENT | at.WRITABLE | at.USER | at.ACCESSED | at.DIRTY
CHAIN: list[Operation] = [
    ["outside", ROOT_PAGE << 9, 1 << 12 | FULL],
    ["outside", 1 << 9, 2 << 12 | FULL],
    ["outside", 2 << 9, 3 << 12 | FULL],
    ["outside", 3 << 9, PAGE << 12 | FULL],
]
"""Map virtual page 0."""


def run(*operations: Operation, mmu: str = "shadow") -> str:
    """What was seen first, "" if nothing."""
    failure = replay(Setup(mmu=mmu), [*CHAIN, *operations])
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


def test_a_page_that_the_dirty_log_misses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    harvest: Callable[[object, int], set[int]] = lambda self, slot: set()  # noqa: E731
    monkeypatch.setattr("shadowvm.lab.oracle.bed.Bed.harvest", harvest)
    assert "dirty log: page 0x41" in run(["log", 0, 1], ["access", 0, "w8", 0, 1, 0, 0], ["harvest", 0])


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (7, "no operation"),
        ([], "no operation"),
        (["fly"], "no operation"),
        (["invlpg", 0], "other arguments"),
        (["invlpg", 0, "x"], "other arguments"),
        (["invlpg", 0, True], "other arguments"),
        (["invlpg", 0, 1 << 64], "out of range"),
        (["invlpg", 1, 0], "no CPU 1"),
        (["access", 0, "r2", 0, 0, 0, 0], "no 'r2'"),
        (["access", 0, "r8", 0, 0, 1, 0], "CPL"),
        (["mode", 0, "svm", 0], "no 'svm'"),
        (["mode", 0, "pae", 0x7000], "no root"),
        (["cr3", 0, 0x7000], "no root"),
        (["pageout", 512], "no page"),
        (["pageout", -1], "no page"),
        (["outside", 3 << 25, 0], "no word"),
        (["slot", 5], "base"),
        (["harvest", 3], "no slot"),
        (["hog", 0, 5000], "too many"),
        (["during", "kvm_exit", 1, "age", 0], "no 'kvm_exit'"),
        (["during", "lock_acquire", 1, "unmap", 0], "or no 'unmap'"),
        (["during", "lock_acquire", 0, "age", 0], "0 is out of range"),
        (["during", "lock_acquire", 1, "harvest", 7], "no 7 to harvest"),
    ],
)
def test_what_is_no_operation(operation: object, problem: str) -> None:
    assert problem in problem_with(operation, 1)


def test_operations_of_these_tests_are_operations() -> None:
    assert [problem_with(each, 1) for each in CHAIN] == [""] * 4
