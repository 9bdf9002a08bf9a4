"""A page that comes back from swap while its vCPU does something else, from the fault to the entry that succeeds."""

from __future__ import annotations

from pathlib import Path

from tests.flows.recorder import MARK, flow
from tests.kvm.apf import AREA, BAD, NOT_PRESENT, READY, VECTOR, enable, gates
from tests.tiny import EXIT

OPTIONS = {"pageout": 0x400, "when": 0x401000, "swap_latency": 5000}
WALK = [
    "kvm_mmu_pagetable_walk 400000 -",
    "kvm_mmu_paging_element level 4",
    "kvm_mmu_paging_element level 3",
    "kvm_mmu_paging_element level 2",
]
FAULT = [
    "kvm_exit EXCEPTION_NMI",
    "kvm_page_fault 400000 -",
    *WALK,
    "kvm_mmu_seq_sample 400",
    "handle_mm_fault write 0",
    "swap_readpage",
    "kvm_try_async_get_page 400",
    "kvm_async_pf_not_present 1000 400000",
]
WORKER = ["handle_mm_fault write 1", "host_pte_change swap > rw", "get_user_page write 1"]
WORKER += ["kvm_async_pf_completed 400000"]
READY_FLOW = [
    *WALK,
    "kvm_mmu_seq_sample 400",
    "get_user_page write 1",
    "kvm_faultin_pfn 400 write 0",
    "kvm_mmu_spte_requested 400",
    "spte_change none > rw",
    "kvm_mmu_set_spte 400 rw",
]
SETUP = f"sti\nmov qword [0x400000], 5\nmov rax, [0x401000]\n{MARK}mov rax, [0x400000]\n{MARK}sub eax, 5\n"


def test_the_vcpu_halts_until_the_page_is_there(tmp_path: Path) -> None:
    events = flow(tmp_path, f"{SETUP}{EXIT}", **OPTIONS)
    assert events == [*FAULT, *WORKER, *READY_FLOW, "kvm_async_pf_ready 1000 400000", "kvm_entry"]


def test_the_guest_waits_in_its_page_fault_handler(tmp_path: Path) -> None:
    """A first #PF, of an address that is not mapped, brings the handler and its data into the shadow."""
    source = (
        f"{gates(not_present=14, ready=VECTOR)}xor r9, r9\nxor r12, r12\nxor r13, r13\n{enable()}sti\nnop\n"
        f"mov dword [{AREA:#x}], 1\nmov r11d, 3\nmov rbx, 0x8000000000\nmov rax, [rbx]\nxor r11, r11\n"
        f"{SETUP}{EXIT}{NOT_PRESENT}add [rsp], r11\ncmp r11, 0\njne out\nsti\nagain: hlt\ncmp r9, 2\njb again\n"
        f"out: iretq\n{READY}{BAD}"
    )
    events = flow(tmp_path, source, **OPTIONS)
    assert events[: len(FAULT)] == FAULT
    taken = events.index("kvm_inj_virq")
    assert events[len(FAULT) : taken] == [
        "kvm_inj_exception 14 0",
        WORKER[0],
        "kvm_entry",
        "kvm_exit HLT",
        *WORKER[1:],
        *READY_FLOW,
        "kvm_async_pf_ready 1000 400000",
        "kvm_apic_accept_irq",
        "kvm_entry",
    ]
    assert events[taken + 1 : taken + 4] == ["kvm_exit MSR_WRITE", "kvm_msr", "kvm_entry"]
