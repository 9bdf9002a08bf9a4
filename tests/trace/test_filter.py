from __future__ import annotations

from types import SimpleNamespace

import pytest

from shadowvm.errors import ConfigError
from shadowvm.trace.filter import compile_filter, find_tracepoint

FAULT = (1, 0x401000, 0x7000, 6)
"""vcpu_id, guest_rip, fault_address, error_code of kvm_page_fault."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("vcpu_id == 1", True),
        ("vcpu_id==0", False),
        ("vcpu_id", True),
        ("!vcpu_id", False),
        ("error_code & 2", True),
        ("error_code&1", False),
        ("fault_address >= 0x7000 && fault_address < 0x8000", True),
        ("fault_address > 0x7000 || error_code != 6", False),
        ("!(vcpu_id == 0 || error_code & 16) && guest_rip <= 0x401000", True),
        ("vcpu_id == 0 && error_code == 6 || vcpu_id == 1", True),
        ("vcpu_id == 0 && (error_code == 6 || vcpu_id == 1)", False),
    ],
)
def test_a_filter_says_what_it_says(text: str, expected: bool) -> None:
    assert compile_filter("kvm_page_fault", text)(FAULT) is expected


def test_strings_and_members() -> None:
    assert compile_filter("kvm_exit", 'exit_reason == "HLT"')((0, "HLT", 0, 0, 0))
    assert compile_filter("kvm:kvm_exit", "exit_reason == HLT")((0, "HLT", 0, 0, 0))
    assert compile_filter("kvm_exit", "exit_reason ~ CR_*")((0, "CR_ACCESS", 0, 0, 0))
    assert not compile_filter("kvm_exit", "exit_reason != HLT")((0, "HLT", 0, 0, 0))
    assert compile_filter("mmu_notifier_invalidate_range_start", "range.start == 4096")((SimpleNamespace(start=4096),))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gfn == 1", "'gfn' is no field of kvm_page_fault .vcpu_id, guest_rip"),
        ("vcpu_id ==", "a value is missing after =="),
        ("(vcpu_id == 1", "a . is missing"),
        ("vcpu_id == 1 1", "'1' is too much"),
        ("vcpu_id == 1 #", "'#' cannot be read"),
        ("vcpu_id < five", "'five' is no number"),
        ("&& vcpu_id", "'&&' is no field"),
        ("vcpu_id &&", "'' is no field"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        compile_filter("kvm_page_fault", text)


def test_tracepoints_are_found_by_name_and_system() -> None:
    assert find_tracepoint("kvmmmu:kvm_mmu_set_spte").name == "kvm_mmu_set_spte"
    for name in ("kvm_mmu_set_sptes", "mm:kvm_mmu_set_spte", ""):
        with pytest.raises(ConfigError, match="no tracepoint"):
            find_tracepoint(name)
    with pytest.raises(ConfigError, match="there are kvm_mmu_set_spte"):
        find_tracepoint("set_spte")
