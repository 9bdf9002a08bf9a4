"""Saved cases: written and read back, and one line for each that is malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shadowvm.errors import ConfigError
from shadowvm.lab.oracle.case import case_text, read_case
from shadowvm.lab.oracle.run import Failure
from shadowvm.lab.oracle.setup import Setup
from shadowvm.params import KvmParams

SETUP = Setup(2, "shadow", 4 << 20, KvmParams(unsync=0, nr_mmu_pages=80), True, True, "ring")
FAILURE = Failure("it broke", [["invlpg", 1, 4096], ["check"]], "difference")


def test_a_case_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(case_text(SETUP, FAILURE))
    assert read_case(str(path)) == (SETUP, FAILURE.operations)


def changed(**changes: Any) -> str:
    case = json.loads(case_text(SETUP, FAILURE))
    for key, value in changes.items():
        (case["machine"] if key in case["machine"] else case)[key] = value
    return json.dumps(case)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "not a case"),
        (changed(format="x"), "not a case"),
        (changed(version=2), "version 2"),
        (changed(machine=3), "no machine"),
        (changed(smp=0), "smp"),
        (changed(smp=True), "smp"),
        (changed(mmu="soft"), "mmu"),
        (changed(host_memory="4M"), "host_memory"),
        (changed(kvm_params=[]), "kvm_params"),
        (changed(kvm_params={"warp": 9}), "warp"),
        (changed(check=1), "check"),
        (changed(thp=1), "thp"),
        (changed(dirty_log="x"), "dirty_log"),
        (changed(operations={}), "no operations"),
        (changed(operations=[["check"], ["chek"]]), "operation 1: no operation"),
    ],
)
def test_what_is_no_case_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        read_case(str(path))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_case(str(tmp_path / "none"))
