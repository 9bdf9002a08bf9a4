"""A guest never notices that the MMU remembers where no memory is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.addr import Gpa
from shadowvm.kvm.mmu.mmio_spte import (
    MMIO_SPTE_GEN_MASK,
)
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import mmap
from shadowvm.params import KvmParams
from tests.kvm.test_memory_region import EXTRA, MIB, SLOT, WAIT, add, machine_for, run_with, tell, until
from tests.kvm.test_readonly import add_rom
from tests.tiny import EXIT, gate

DEVICE = 0xFF000000
"""RAM in the test device, 64 KiB."""


def page(entry: int) -> str:
    """Code that maps 4 MiB by a table of one entry."""
    table = "mov qword [0xb010], 0x300023\nmov rax, cr3\nmov cr3, rax\n"
    return f"mov eax, {entry:#x}\nmov [0x300000], rax\n{table}"


def count(machine: Machine, act: Callable[[], None] = lambda: None) -> tuple[int | None, Counter[str]]:
    """Run under the sanitizer and count events."""
    seen: Counter[str] = Counter()
    names = (events.mark_mmio_spte, events.handle_mmio_page_fault, events.kvm_mmu_pagetable_walk, events.kvm_mmio)
    with events.attached(lambda tracepoint, args: seen.update((tracepoint.name,)), names):
        return run_with(machine, act), seen


LOOP = f"mov edi, {DEVICE:#x}\nmov ecx, 200\nagain: mov [rdi], ecx\nmov eax, [rdi]\nloop again\ndec eax\n{EXIT}"


@pytest.mark.parametrize("caching", [1, 0])
def test_accesses_after_the_first_need_no_walk(caching: int, tmp_path: Path) -> None:
    machine = machine_for(tmp_path, LOOP, kvm_params=KvmParams(mmio_caching=caching))
    status, seen = count(machine)
    assert status == 0
    assert seen["kvm_mmio"] == 400
    stat = machine.vcpu.stat
    assert stat.mmio_exits == stat.insn_emulation == 400
    assert stat.pf_mmio_spte_created == seen["mark_mmio_spte"] == caching
    assert seen["kvm_mmu_pagetable_walk"] < 20 if caching else seen["kvm_mmu_pagetable_walk"] > 400


def test_memory_that_appears_is_seen_and_so_is_its_end(tmp_path: Path) -> None:
    """A new generation ends what is remembered, without a walk through the tables."""
    use = f"mov edi, {EXTRA:#x}\nmov dword [rdi], 7\nmov eax, [rdi]\nmov [0x7908], eax\n"
    rounds = "".join(f"{use}mov dword [0x7904], {n}\n{WAIT.format(n).replace('wait1', f'w{n}')}" for n in (1, 2, 3))
    machine = machine_for(tmp_path, f"{rounds}{use}xor eax, eax\n{EXIT}")
    seen = []

    def vmm() -> None:
        for number in (1, 2, 3):
            while machine.read_guest(Gpa(0x7904), 1)[0] != number:
                machine.sched.preempt()
            seen.append(machine.read_guest(Gpa(0x7908), 4))
            if number == 1:
                hva = add(machine)
            elif number == 2:
                machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
            tell(machine, number)

    assert run_with(machine, vmm) == 0
    assert seen == [b"\xff\xff\xff\xff", b"\7\0\0\0", b"\xff\xff\xff\xff"]


def test_the_end_of_the_generations_zaps_all(tmp_path: Path) -> None:
    use = f"mov edi, {DEVICE:#x}\nmov dword [rdi], 7\nmov dword [0x7904], 1\n{WAIT.format(1)}"
    machine = machine_for(tmp_path, f"{use}mov eax, [rdi]\nsub eax, 7\n{EXIT}")
    zapped = []

    def vmm() -> None:
        until(machine, 0x7904)
        kvm = machine.kvm
        kvm.memslots.generation = MMIO_SPTE_GEN_MASK - 1
        with events.attached(lambda tracepoint, args: zapped.append(args), (events.kvm_mmu_zap_all_fast,)):
            add(machine)
        assert kvm.memslots.generation == MMIO_SPTE_GEN_MASK + 1
        tell(machine, 1)

    assert run_with(machine, vmm) == 0
    assert len(zapped) == 1


@pytest.mark.parametrize(("as_id", "left", "zaps"), [(0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)])
def test_generations_end_in_each_address_space(tmp_path: Path, as_id: int, left: int, zaps: int) -> None:
    """They go up by 2, even ones in the first and odd ones in the second."""
    machine = machine_for(tmp_path, EXIT)
    kvm = machine.kvm
    slots = kvm.address_spaces[as_id]
    slots.generation = MMIO_SPTE_GEN_MASK - 1 + as_id - 2 * left
    zapped = []
    with events.attached(lambda tracepoint, args: zapped.append(args), (events.kvm_mmu_zap_all_fast,)):
        kvm.set_user_memory_region(as_id << 16 | SLOT, EXTRA, MIB, mmap(machine.mm, MIB))
    assert len(zapped) == zaps
    assert slots.generation == MMIO_SPTE_GEN_MASK + 1 + as_id - 2 * left
    machine.close()


def test_a_table_changed_from_outside_over_a_mapped_page(tmp_path: Path) -> None:
    """I33: 4 MiB is mapped by a clean entry, read, and redirected to a device by the VMM; then it is written."""
    first = f"{page(0x400023)}mov eax, [0x400000]\nmov dword [0x7904], 1\n{WAIT.format(1)}"
    machine = machine_for(
        tmp_path, f"{first}mov dword [0x400000], 7\nmov edi, {DEVICE:#x}\nmov eax, [rdi]\nsub eax, 7\n{EXIT}"
    )

    def vmm() -> None:
        until(machine, 0x7904)
        machine.write_guest(Gpa(0x300000), (DEVICE | 0x63).to_bytes(8, "little"))
        tell(machine, 1)

    sanitizer = Sanitizer(machine, frozenset(("I33", "I32", "I16", "I4", "I35")))
    with sanitizer.watching():
        machine.sched.spawn("vmm", vmm)
        assert machine.run().status == 0
        machine.close()


def test_rights_of_the_guest_hold_where_no_memory_is(tmp_path: Path) -> None:
    """The page of the device is read-only for the guest, and is read before it is written."""
    table = page(DEVICE | 0x21)
    use = "mov eax, [0x400000]\nmov eax, [0x400000]\nmov dword [0x400000], 7\nmov eax, 9\n"
    handler = f"handler: pop rax\nsub eax, 3\n{EXIT}"
    machine = machine_for(tmp_path, f"{gate(14)}{table}{use}{EXIT}{handler}")
    status, seen = count(machine)
    assert status == 0
    assert seen["handle_mmio_page_fault"] == 1
    assert seen["kvm_mmio"] == 2


def test_a_clean_entry_of_a_device_gets_its_dirty_bit(tmp_path: Path) -> None:
    table = page(DEVICE | 3)
    use = "mov eax, [0x400000]\nmov ebx, [0x300000]\nmov dword [0x400000], 7\nmov ecx, [0x300000]\n"
    check = f"sub ebx, {DEVICE | 0x23:#x}\nsub ecx, {DEVICE | 0x63:#x}\nor ebx, ecx\nmov eax, ebx\n"
    machine = machine_for(tmp_path, f"{table}{use}{check}{EXIT}")
    assert run_with(machine, lambda: None) == 0


def test_an_entry_that_changes_forgets_the_device(tmp_path: Path) -> None:
    """The guest redirects its page from the device to memory and back."""
    table = page(DEVICE | 0x63)
    to = "mov eax, {0:#x}\nmov [0x300000], rax\ninvlpg [0x400000]\n"
    use = f"mov dword [0x400000], 7\n{to.format(0x700063)}mov dword [0x400000], 8\n{to.format(DEVICE | 0x1063)}"
    use += "mov dword [0x400000], 9\nmov eax, [0x700000]\nsub eax, 8\n"
    check = f"mov edi, {DEVICE:#x}\nmov ebx, [rdi]\nsub ebx, 7\nmov ecx, [rdi + 0x1000]\nsub ecx, 9\n"
    check += "or eax, ebx\nor eax, ecx\n"
    machine = machine_for(tmp_path, f"{table}{use}{check}{EXIT}")
    assert run_with(machine, lambda: None) == 0


def test_rom_is_no_device_whose_place_is_remembered(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, f"mov edi, {EXTRA:#x}\nmov [rdi], edi\nmov [rdi], edi\nmov eax, [rdi]\n{EXIT}")
    add_rom(machine)
    assert run_with(machine, lambda: None) == 0
    assert machine.vcpu.stat.pf_mmio_spte_created == 0
    assert machine.vcpu.stat.mmio_exits == 2
