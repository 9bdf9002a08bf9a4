"""Stores to shadowed pages that look like data: the page is given up, once, and the guest sees no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.kvm.mmu.pte_write import WRITE_FLOODING_LIMIT
from shadowvm.kvm.unprotect import x86_page_table_writing_insn
from shadowvm.params import KvmParams
from tests.guest_run import Result, config_for, run_checked
from tests.tiny import EXIT, write_tiny

DIRECTORY = """
mov qword [0x308000], 0xe3
mov qword [0xa040], 0x308063
mov rax, cr3
mov cr3, rax
mov rdi, 0x200000000
mov rbx, [rdi + 0x100000]
"""
"""A page directory at 0x308000, which maps the first 2 MiB at 8 GiB, and is used."""

ZEROED = f"""{DIRECTORY}
mov qword [0xa040], 0
mov edi, 0x308000
mov ecx, 512
xor eax, eax
rep stosq
mov eax, [0x308000]
{EXIT}"""
"""The directory is taken out and cleared, to be something else."""

MAPS_ITSELF = f"""{DIRECTORY}
mov qword [0x308008], 0x2000e3
mov rdi, 0x200308010
add qword [rdi], 5
mov rax, [0x308010]
sub eax, 5
{EXIT}"""
"""A store to the directory, at an address that it translates."""

MAPS_THE_CODE = f"""{DIRECTORY}
mov edi, 0xb800
mov rbx, 0x200000000
add rdi, rbx
add qword [rdi], 0
inc dword [0x7900]
mov eax, [0x7900]
dec eax
{EXIT}"""
"""A store by another mapping to the directory that maps the code."""


def run(directory: Path, source: str, **knobs: int) -> Result:
    config = config_for(write_tiny(directory, source), kvm_params=KvmParams(**knobs), timeout_instructions=1_000_000)
    result = run_checked(config)
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
    return result


def emulated(result: Result) -> int:
    return result.machine.vcpu.stat.insn_emulation


def test_a_table_that_is_cleared_is_given_up_at_the_first_store(tmp_path: Path) -> None:
    assert emulated(run(tmp_path, ZEROED, unprotect_retry=0)) - emulated(run(tmp_path, ZEROED)) == WRITE_FLOODING_LIMIT


def test_stores_that_change_nothing_are_stores(tmp_path: Path) -> None:
    """That half of the table is zero already: the page is given up as early."""
    half = f"{DIRECTORY}mov edi, 0x308800\nmov ecx, 256\nxor eax, eax\nrep stosq\n{EXIT}"
    result = run(tmp_path, half, unprotect_retry=0)
    assert emulated(result) - emulated(run(tmp_path, half)) == WRITE_FLOODING_LIMIT
    assert result.machine.kvm.stat.mmu_flooded == 1


@pytest.mark.parametrize(("use", "flooded"), [("mov rbx, [rdi + 0x200000]", 0), ("", 1)], ids=["used", "unused"])
def test_a_table_that_is_used_between_stores_is_kept(tmp_path: Path, use: str, flooded: int) -> None:
    again = f"mov qword [0x308008], 0x2000e3\n{use}\nmov qword [0x308008], 0x4000e3\n{use}\n"
    result = run(tmp_path, f"{DIRECTORY}{again}{again}{again}xor eax, eax\n{EXIT}")
    assert result.machine.kvm.stat.mmu_flooded == flooded


@pytest.mark.parametrize("source", [MAPS_ITSELF, MAPS_THE_CODE], ids=["itself", "the code"])
def test_a_table_that_the_instruction_needs_is_written_by_emulation_once(tmp_path: Path, source: str) -> None:
    assert emulated(run(tmp_path, source, unprotect_retry=0)) == emulated(run(tmp_path, source))


def test_the_root_of_a_vcpu_is_kept(tmp_path: Path) -> None:
    """It is not the current one, but the one before."""
    other = "mov esi, 0x9000\nmov edi, 0x309000\nmov ecx, 512\nrep movsq\nmov eax, 0x309000\nmov cr3, rax\n"
    store = f"mov eax, 0x9000\nmov cr3, rax\nadd qword [0x309ff0], 0x800\nxor eax, eax\n{EXIT}"
    result = run(tmp_path, other + store)
    assert emulated(run(tmp_path, other + store, unprotect_retry=0)) == emulated(result) == 1


@pytest.mark.parametrize(
    ("code", "writes"),
    [
        ("488907", True),  # mov [rdi], rax
        ("48c70700000000", True),
        ("a3", True),  # cut off
        ("a30000000000000000", True),
        ("488707", True),  # xchg
        ("f0480fb107", True),  # lock cmpxchg
        ("f0480fc70f", True),  # lock cmpxchg16b
        ("480fc737", False),  # rdrand's group
        ("f0480fab07", True),  # lock bts
        ("480fba2f05", True),
        ("480fba3705", False),  # btr
        ("4883270f", True),  # and
        ("4883070f", False),  # add
        ("480907", True),  # or
        ("480107", False),  # add
        ("f348ab", True),  # rep stosq at the end of a page
        ("f348abc3", False),
        ("0f2907", False),  # movaps
        ("4889", True),
        ("", True),
    ],
)
def test_what_page_tables_are_written_with(code: str, writes: bool) -> None:
    assert x86_page_table_writing_insn(bytes.fromhex(code), True) == writes


def test_rex_is_an_instruction_outside_of_64_bit_mode() -> None:
    assert not x86_page_table_writing_insn(bytes.fromhex("488907"), False)
    assert x86_page_table_writing_insn(bytes.fromhex("668907"), False)
