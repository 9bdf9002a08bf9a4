"""Read-only slots: loads read memory, stores go to a device, and KVM itself writes nothing there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from shadowvm.addr import Gpa, Hva
from shadowvm.errors import KvmError
from shadowvm.events import Tracepoint, attached, kvm_mmio, kvm_mmu_set_spte
from shadowvm.kvm.exit import ExitReason, KvmMmio
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from shadowvm.kvm.mmu.spte import SPTE_HOST_WRITABLE
from shadowvm.kvm.userspace_io import UserspaceIo
from shadowvm.machine import Machine, Reason
from shadowvm.mm.mm_struct import mmap
from shadowvm.mm.uaccess import copy_to_user
from shadowvm.x86 import PT_WRITABLE
from tests.kvm.test_memory_region import EXTRA, MIB, SLOT, machine_for, run_with
from tests.tiny import EXIT, gate


def add_rom(machine: Machine, contents: bytes = b"", size: int = MIB) -> Hva:
    """A read-only slot at EXTRA."""
    hva = mmap(machine.mm, size)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, size, hva, KVM_MEM_READONLY)
    assert copy_to_user(machine.mm, hva, contents) is None
    return hva


STATUS = {
    "a load reads memory": f"mov eax, [{EXTRA:#x}]\nsub eax, 0x11223344",
    "a store changes nothing": f"mov edi, {EXTRA:#x}\nmov dword [rdi], 7\nmov eax, [rdi]\nsub eax, 0x11223344",
    "a store before any load changes nothing": f"mov edi, {EXTRA + 0x3000:#x}\nmov [rdi], rdi\nmov eax, [rdi]",
    "load and store in one instruction": (
        f"mov edi, {EXTRA:#x}\nmov eax, 5\nxchg [rdi], eax\nsub eax, 0x11223344\nmov ecx, [rdi]\n"
        "sub ecx, 0x11223344\nor eax, ecx"
    ),
    "eight bytes at once": (
        f"mov edi, {EXTRA:#x}\nmov rcx, 0x5566778811223344\nmov rax, [rdi]\nor qword [rdi], 1\nsub rax, rcx\n"
        "setnz al\nmovzx eax, al"
    ),
    "a string from rom to memory": (
        f"mov esi, {EXTRA:#x}\nmov edi, 0x300000\nmov ecx, 2\nrep movsd\nmov eax, [0x300000]\nsub eax, 0x11223344"
    ),
    "a string from rom to rom": (
        f"mov esi, {EXTRA:#x}\nmov edi, {EXTRA + 0x1000:#x}\nmovsd\nmov eax, [{EXTRA + 0x1000:#x}]"
    ),
}


@pytest.mark.parametrize("source", STATUS.values(), ids=STATUS)
def test_access(source: str, tmp_path: Path) -> None:
    machine = machine_for(tmp_path, f"{source}\n{EXIT}")
    add_rom(machine, bytes.fromhex("4433221188776655"))
    assert run_with(machine, lambda: None) == 0


def test_code_runs_from_rom(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, f"mov eax, {EXTRA:#x}\njmp rax")
    add_rom(machine, bytes.fromhex("31c0e6f4f4"))  # xor eax, eax; out 0xf4, al; hlt
    assert run_with(machine, lambda: None) == 0


def test_no_spte_of_a_rom_lets_a_store_pass_and_a_store_is_seen_on_the_bus(tmp_path: Path) -> None:
    touch = f"mov edi, {EXTRA:#x}\nmov eax, [rdi]\nmov dword [rdi], 7\nmov eax, [rdi]\nmov word [rdi + 4], 9\n"
    machine = machine_for(tmp_path, f"{touch}xor eax, eax\n{EXIT}")
    add_rom(machine, b"\1")
    sptes, stores = [], []

    def sink(tracepoint: Tracepoint, args: tuple[int, ...]) -> None:
        if tracepoint is kvm_mmu_set_spte and args[0] == EXTRA >> 12:
            sptes.append(args[1])
        elif tracepoint is kvm_mmio:
            stores.append(args)

    with attached(sink, (kvm_mmu_set_spte, kvm_mmio)):
        assert run_with(machine, lambda: None) == 0
    assert len(sptes) == 1
    assert not sptes[0] & (PT_WRITABLE | SPTE_HOST_WRITABLE)
    assert stores == [(2, 4, EXTRA, 7), (2, 2, EXTRA + 4, 9)]
    assert machine.vcpu.stat.pf_emulate == 2


def test_a_rom_beside_memory_in_one_large_page(tmp_path: Path) -> None:
    """A shadow page of the large page serves both: the guest may write, the slot may not be."""
    both = f"mov edi, {EXTRA:#x}\nmov ecx, 100\nagain: mov eax, [rdi]\nmov [rdi + 0x1000], ecx\n"
    machine = machine_for(tmp_path, f"{both}loop again\nxor eax, eax\n{EXIT}")
    add_rom(machine, b"\1", size=0x1000)
    hva = mmap(machine.mm, 0x1000)
    machine.kvm.set_user_memory_region(SLOT + 1, Gpa(EXTRA + 0x1000), 0x1000, hva)
    assert run_with(machine, lambda: None) == 0
    assert machine.vcpu.stat.pf_taken < 40


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_page_tables_in_rom_are_read_and_get_no_accessed_bit(tmp_path: Path, mmu: str) -> None:
    """The page directory entry of 6 MiB names a page table in ROM, whose first entry has neither A nor D."""
    table = f"mov qword [0xb018], {EXTRA | 0x23:#x}\nmov rax, cr3\nmov cr3, rax\n"
    use = f"mov eax, [0x600000]\nmov dword [0x600000], 7\nmov eax, [0x400000]\nsub eax, 7\nmov ebx, [{EXTRA:#x}]\n"
    machine = machine_for(tmp_path, f"{table}{use}sub ebx, 0x400003\nor eax, ebx\n{EXIT}", mmu=mmu)
    add_rom(machine, (0x400003).to_bytes(8, "little"))
    outcome = machine.run()
    machine.close()
    assert (outcome.status, outcome.text) == (0, "")


IN_ROM = {
    "a string": "mov esi, 0x600000\nmov edi, 0x600800\nmov ecx, 3\nrep movsq\nmov eax, [0x400810]\nsub eax, 3",
    "code": "mov dword [0x400000], 0xc3c03148\nmov eax, 0x600000\ncall rax",
    "a stack": "mov eax, esp\nmov esp, 0x600ff8\npush 5\npop rbx\nmov esp, eax\nlea eax, [rbx - 5]",
    "a refused store": f"{gate(14)}mov dword [0x601000], 7\nhandler: mov rax, cr2\nsub eax, 0x601000",
    "an event": f"{gate(6)}mov esp, 0x600800\nud2\nhandler: xor eax, eax",
    "a read-modify-write": "lock inc qword [0x600010]\nmov eax, [0x400010]\nsub eax, 4",
    "a device": "mov eax, [0x602000]\ninc eax",
}


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("source", IN_ROM.values(), ids=IN_ROM)
def test_whatever_is_done_by_page_tables_in_rom(tmp_path: Path, source: str, mmu: str) -> None:
    """6 MiB is 4 MiB; the next page is read-only, and the one after it is where no memory is."""
    words = "".join(f"mov qword [{0x400000 + 8 * n:#x}], {n + 1}\n" for n in range(4))
    start = (
        f"mov qword [0xb018], {EXTRA | 0x23:#x}\nmov rax, cr3\nmov cr3, rax\nmov rax, cr0\nbts eax, 16\nmov cr0, rax\n"
    )
    machine = machine_for(tmp_path, f"{words}{start}{source}\n{EXIT}", mmu=mmu)
    entries = (0x400003, 0x401001, 0x6000_0003)
    add_rom(machine, b"".join(entry.to_bytes(8, "little") for entry in entries))
    assert run_with(machine, lambda: None) == 0


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_an_event_is_not_delivered_to_a_stack_in_rom(tmp_path: Path, mmu: str) -> None:
    source = f"{gate(6)}mov esp, {EXTRA + 0x800:#x}\nud2\nhandler: xor eax, eax\n{EXIT}"
    machine = machine_for(tmp_path, source, mmu=mmu)
    add_rom(machine)
    outcome = machine.run()
    machine.close()
    assert outcome.reason is Reason.INTERNAL_ERROR
    assert outcome.text.endswith("is ROM")


def test_a_slot_is_read_only_for_ever(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, EXIT)
    hva = add_rom(machine)
    for flags in (0, KVM_MEM_LOG_DIRTY_PAGES):
        with pytest.raises(KvmError, match="read-only") as refused:
            machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva, flags)
        assert refused.value.errno == errno.EINVAL
    machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva, KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva)
    machine.close()


def test_a_vcpu_without_a_bus_exits_for_each_store_and_each_load(tmp_path: Path) -> None:
    source = f"mov edi, {EXTRA:#x}\nmov dword [rdi + 8], 0x01020304\nmov ebx, 0xd0000000\nmov ax, [rbx + 2]\nhlt\n"
    machine = machine_for(tmp_path, source)
    add_rom(machine, b"\1")
    vcpu = machine.vcpu
    vcpu.irq = None
    UserspaceIo(vcpu)
    runs = []

    def thread() -> None:
        runs.append(vcpu.run())
        runs.append(vcpu.run())
        runs[1].mmio.data = 0xABCD
        runs.append(vcpu.run())

    machine.sched.spawn("vcpu", thread)
    machine.sched.run()
    assert [run.exit_reason for run in runs] == [ExitReason.MMIO, ExitReason.MMIO, ExitReason.HLT]
    assert runs[0].mmio == KvmMmio(Gpa(EXTRA + 8), 4, is_write=True, data=0x01020304)
    assert runs[1].mmio == KvmMmio(Gpa(0xD0000002), 2, is_write=False, data=0xABCD)
    assert vcpu.engine.get_reg(0) & 0xFFFF == 0xABCD
    machine.close()
