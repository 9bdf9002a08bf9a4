"""Which stores to a shadowed page table show that it is none any more: those that are not of whole entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.params import KvmParams
from tests.guest_run import config_for, run_checked
from tests.kvm.test_unprotect import DIRECTORY
from tests.tiny import EXIT, write_tiny


@pytest.mark.parametrize(
    ("store", "flooded"),
    [
        ("mov qword [0x308010], 0", 0),
        ("mov dword [0x308010], 0", 0),
        ("mov dword [0x308014], 0", 0),
        ("mov byte [0x308010], 0", 0),
        ("mov byte [0x308011], 0", 1),
        ("mov word [0x308010], 0", 1),
        ("mov dword [0x308016], 0", 1),
        ("mov qword [0x308014], 0", 1),
    ],
    ids="entry half other-half status-bits byte word across two-halves".split(),
)
def test_one_misaligned_store_is_enough(tmp_path: Path, store: str, flooded: int) -> None:
    source = f"{DIRECTORY}{store}\nmov rbx, [rdi + 0x100000]\nxor eax, eax\n{EXIT}"
    params = KvmParams(unprotect_retry=0)
    result = run_checked(config_for(write_tiny(tmp_path, source), kvm_params=params, timeout_instructions=1_000_000))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
    assert result.machine.kvm.stat.mmu_flooded == flooded
