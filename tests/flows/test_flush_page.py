"""Port 0xe4 of kvm-unit-tests' device: the VMM takes a page from itself and gives it back under the guest's feet."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from tests.flows.recorder import MARK, flow
from tests.guest_run import config_for, run_checked
from tests.tiny import EXIT, write_tiny

FLUSH = "mov eax, 0x400123\nout 0xe4, eax\n"
OK = f"xor eax, eax\n{EXIT}"


def test_the_next_access_faults_and_finds_the_page_as_it_was(tmp_path: Path) -> None:
    source = f"mov qword [0x400000], 5\n{FLUSH}{MARK}mov rbx, [0x400000]\n{MARK}{OK}"
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 -",
        "kvm_mmu_pagetable_walk 400000 -",
        "kvm_mmu_paging_element level 4",
        "kvm_mmu_paging_element level 3",
        "kvm_mmu_paging_element level 2",
        "kvm_mmu_seq_sample 400",
        "get_user_page write 0",
        "kvm_faultin_pfn 400 write 0",
        "kvm_mmu_spte_requested 400",
        "spte_change none > r",
        "kvm_mmu_set_spte 400 r",
        "kvm_entry",
    ]


def test_the_out_instruction_itself_takes_the_page_away(tmp_path: Path) -> None:
    source = f"mov qword [0x400000], 5\n{MARK}mov eax, 0x400123\nout 0xe4, eax\n{MARK}{OK}"
    events = flow(tmp_path, source)
    assert events.count("kvm_exit IO_INSTRUCTION") == 1
    assert events.count("kvm_unmap_hva_range") == 2
    assert events.count("spte_change rw > none") == 1
    assert events.index("kvm_exit IO_INSTRUCTION") < events.index("spte_change rw > none")


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("host_memory", [16 * MIB, 2 * MIB])
def test_pages_survive_a_thousand_of_them(seed: int, host_memory: int, tmp_path: Path) -> None:
    source = f"""
mov ecx, 1000
mov edi, 0x400000
again: mov [rdi], rcx
mov eax, edi
out 0xe4, eax
add [rdi], rcx
mov rbx, [rdi]
shr rbx, 1
cmp rbx, rcx
jne wrong
add edi, 4096
loop again
mov eax, 0xfffff000
out 0xe4, eax
{OK}
wrong: mov eax, 1
{EXIT}"""
    image = write_tiny(tmp_path, source)
    result = run_checked(config_for(image, host_memory=host_memory, seed=seed))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0
