"""What one access of a guest goes through, from the CPU's failed walk to the entry that succeeds, in order."""

from __future__ import annotations

from pathlib import Path

from tests.flows.recorder import MARK, flow
from tests.tiny import EXIT

OK = f"xor eax, eax\n{EXIT}"
WALK = [
    "kvm_mmu_paging_element level 4",
    "kvm_mmu_paging_element level 3",
    "kvm_mmu_paging_element level 2",
]
PAGE_FAULT_HANDLER = f"""
lidt [pointer]
mov rbx, 0x8000000000
mov rax, [rbx]
{MARK}mov rax, [rbx]
{MARK}{OK}
handler: add rsp, 8
add qword [rsp], 3
iretq
align 8
pointer: dw 0xfff
dq table
align 16
table: times 14 dq 0, 0
dw (handler - $$ + 0x100000) & 0xffff, 8, 0x8e00, 0x10
dd 0, 0
"""
"""Its #PF handler steps over the load. The first one brings the handler, the IDT and the stack into the shadow."""


def test_first_touch_by_a_write(tmp_path: Path) -> None:
    source = f"{MARK}mov [0x400000], rax\n{MARK}{OK}"
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 W",
        "kvm_mmu_pagetable_walk 400000 W",
        *WALK,
        "kvm_mmu_seq_sample 400",
        "handle_mm_fault write 1",
        "host_pte_change none > rw",
        "get_user_page write 1",
        "kvm_faultin_pfn 400 write 1",
        "kvm_mmu_get_page 400 l1 new",
        "spte_change none > rw",
        "kvm_mmu_spte_requested 400",
        "spte_change none > rw",
        "kvm_mmu_set_spte 400 rw",
        "kvm_entry",
    ]


def test_first_touch_by_a_read_maps_the_zero_page(tmp_path: Path) -> None:
    source = f"{MARK}mov rax, [0x400000]\n{MARK}{OK}"
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 -",
        "kvm_mmu_pagetable_walk 400000 -",
        *WALK,
        "kvm_mmu_seq_sample 400",
        "handle_mm_fault write 0",
        "host_pte_change none > r",
        "get_user_page write 0",
        "kvm_faultin_pfn 400 write 0",
        "kvm_mmu_get_page 400 l1 new",
        "spte_change none > rw",
        "kvm_mmu_spte_requested 400",
        "spte_change none > r",
        "kvm_mmu_set_spte 400 r",
        "kvm_entry",
    ]


def test_page_comes_back_from_swap(tmp_path: Path) -> None:
    source = f"mov qword [0x400000], 5\nmov rax, [0x401000]\n{MARK}mov rax, [0x400000]\n{MARK}sub eax, 5\n{EXIT}"
    assert flow(tmp_path, source, pageout=0x400, when=0x401000) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 -",
        "kvm_mmu_pagetable_walk 400000 -",
        *WALK,
        "kvm_mmu_seq_sample 400",
        "handle_mm_fault write 0",
        "swap_readpage",
        "host_pte_change swap > rw",
        "get_user_page write 0",
        "kvm_faultin_pfn 400 write 0",
        "kvm_mmu_spte_requested 400",
        "spte_change none > r",
        "kvm_mmu_set_spte 400 r",
        "kvm_entry",
    ]


def test_write_to_the_zero_page_copies_it(tmp_path: Path) -> None:
    source = f"mov rax, [0x400000]\n{MARK}mov qword [0x400000], 5\n{MARK}{OK}"
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 P|W",
        "kvm_mmu_pagetable_walk 400000 W",
        *WALK,
        "kvm_mmu_seq_sample 400",
        "handle_mm_fault write 1",
        "mmu_notifier_invalidate_range_start",
        "kvm_unmap_hva_range",
        "spte_change r > none",
        "kvm_flush_remote_tlbs",
        "host_pte_change r > none",
        "host_pte_change none > rw",
        "mmu_notifier_invalidate_range_end",
        "get_user_page write 1",
        "kvm_faultin_pfn 400 write 1",
        "kvm_entry",
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 400000 W",
        "kvm_mmu_pagetable_walk 400000 W",
        *WALK,
        "kvm_mmu_seq_sample 400",
        "get_user_page write 1",
        "kvm_faultin_pfn 400 write 1",
        "kvm_mmu_spte_requested 400",
        "spte_change none > rw",
        "kvm_mmu_set_spte 400 rw",
        "kvm_entry",
    ]


def test_write_to_a_page_table_is_emulated_and_zaps_what_stood_behind_it(tmp_path: Path) -> None:
    source = f"mov rax, [0x600000]\nmov rax, [0xb018]\n{MARK}mov qword [0xb018], 0x8000e3\n{MARK}{OK}"
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault b018 P|W",
        "kvm_mmu_pagetable_walk b018 W",
        *WALK,
        "get_user_page write 1",
        "spte_change rw > none",
        "kvm_flush_remote_tlbs",
        "kvm_emulate_insn",
        "kvm_entry",
    ]


def test_page_fault_of_the_guest_is_injected(tmp_path: Path) -> None:
    source = PAGE_FAULT_HANDLER
    assert flow(tmp_path, source) == [
        "kvm_exit EXCEPTION_NMI",
        "kvm_page_fault 8000000000 -",
        "kvm_mmu_pagetable_walk 8000000000 -",
        "kvm_mmu_paging_element level 4",
        "kvm_mmu_walker_error -",
        "kvm_inj_exception 14 0",
        "kvm_entry",
    ]
