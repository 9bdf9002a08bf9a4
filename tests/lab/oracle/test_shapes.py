"""What counts as an operation, and one line for what does not."""

from __future__ import annotations

import pytest

from shadowvm.lab.oracle.shapes import problem_with


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
        (["clear", 3, 0, 64], "no slot"),
        (["collapse", 7], "no slot"),
        (["rom", 5], "base"),
        (["cross", 0, "x", 0, 0, 0, 0], "no 'x'"),
        (["amid", "lock_acquire", 1, 0, "w8", 0, 0, 0, 0], "no 'lock_acquire'"),
        (["amid", "kvm_page_fault", 1, 0, "r8", 0, 0, 0, 0], "no store"),
        (["amid", "kvm_page_fault", 1, 1, "w8", 0, 0, 0, 0], "no CPU 1"),
        (["during", "kvm_exit", 1, "age", 0], "no 'kvm_exit'"),
        (["during", "lock_acquire", 1, "unmap", 0], "or no 'unmap'"),
        (["during", "lock_acquire", 0, "age", 0], "0 is out of range"),
        (["during", "lock_acquire", 1, "harvest", 7], "no 7 to harvest"),
    ],
)
def test_what_is_no_operation(operation: object, problem: str) -> None:
    assert problem in problem_with(operation, 1)
