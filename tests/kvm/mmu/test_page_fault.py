"""Faults whose way through page_fault.py a whole guest takes seldom."""

from __future__ import annotations

from pathlib import Path

from shadowvm.config import MIB
from tests.guest_run import config_for, run_checked
from tests.tiny import EXIT, write_tiny

CLEAN_PAGE_WITHOUT_WP = f"""
mov rax, cr0
btr rax, 16
mov cr0, rax
mov qword [0xb010], 0x4000a1
mov rax, cr3
mov cr3, rax
mov rax, [0x400000]
mov rax, [0x401000]
mov qword [0x402000], 7
mov eax, [0x402000]
sub eax, 7
{EXIT}
"""
"""Without CR0.WP, read two small pieces of a large page that is clean and read-only, then store to a third."""


def test_pieces_of_a_clean_large_page_are_read_without_wp(tmp_path: Path) -> None:
    result = run_checked(config_for(write_tiny(tmp_path, CLEAN_PAGE_WITHOUT_WP), host_memory=2 * MIB))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
