"""Two address spaces: what a vCPU sees in SMM is other memory at the same place, by other roots and sptes."""

from __future__ import annotations

from pathlib import Path

from shadowvm.addr import PAGE_SIZE, Gpa, Hva
from shadowvm.kvm.dirty import kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from shadowvm.kvm.mmu.role import unpack_role
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import madvise_pageout, mmap
from shadowvm.mm.uaccess import copy_from_user, copy_to_user
from tests.kvm.test_memory_region import EXTRA, MIB, SLOT, machine_for, run_with
from tests.tiny import EXIT

SMM = 1 << 16
ROUNDS = 8
LOOK = f"""
xor r8d, r8d
round: inc r8d
wait1: pause
cmp [0x7900], r8d
jb wait1
mov eax, [{EXTRA:#x}]
mov [{EXTRA + 8:#x}], r8d
mov [0x7908], eax
mov [0x7904], r8d
cmp r8d, {ROUNDS}
jb round
xor eax, eax
{EXIT}
"""
"""In each round that the VMM allows: load from EXTRA, store the round there, and tell what was loaded."""


def machine_with_two_views(directory: Path) -> tuple[Machine, list[Hva]]:
    """Both address spaces have all memory; at EXTRA each has a page of its own, which begins with 0xa and 0xb."""
    machine = machine_for(directory, LOOK)
    low = machine.kvm.memslots.slots[0]
    machine.kvm.set_user_memory_region(SMM, Gpa(0), low.npages << 12, low.userspace_addr)
    pages = []
    for as_id in range(2):
        hva = mmap(machine.mm, MIB)
        machine.kvm.set_user_memory_region(as_id << 16 | SLOT, EXTRA, MIB, hva)
        assert copy_to_user(machine.mm, hva, bytes([0xA + as_id])) is None
        pages.append(hva)
    return machine, pages


def word(machine: Machine, hva: int) -> int:
    data = copy_from_user(machine.mm, Hva(hva), 4)
    assert isinstance(data, bytes)
    return int.from_bytes(data, "little")


def test_a_vcpu_sees_the_address_space_of_its_mode(tmp_path: Path) -> None:
    machine, pages = machine_with_two_views(tmp_path)
    seen, stored = [], []

    def vmm() -> None:
        for number in range(1, ROUNDS + 1):
            machine.vcpu.set_smm(number % 2 == 0)
            madvise_pageout(machine.mm, pages[0], PAGE_SIZE)
            madvise_pageout(machine.mm, pages[1], PAGE_SIZE)
            machine.write_guest(Gpa(0x7900), number.to_bytes(4, "little"))
            while int.from_bytes(machine.read_guest(Gpa(0x7904), 4), "little") != number:
                machine.sched.preempt()
            seen.append(machine.read_guest(Gpa(0x7908), 1)[0])
            stored.append([word(machine, hva + 8) for hva in pages])

    assert run_with(machine, vmm) == 0
    assert seen == [0xA, 0xB] * (ROUNDS // 2)
    assert stored == [[number - (number + 1) % 2, number - number % 2] for number in range(1, ROUNDS + 1)]


def test_roots_and_shadow_pages_of_one_address_space_serve_no_other(tmp_path: Path) -> None:
    machine, _ = machine_with_two_views(tmp_path)
    spaces = []

    def vmm() -> None:
        for number in range(1, ROUNDS + 1):
            machine.vcpu.set_smm(number % 2 == 0)
            machine.write_guest(Gpa(0x7900), number.to_bytes(4, "little"))
            while int.from_bytes(machine.read_guest(Gpa(0x7904), 4), "little") != number:
                machine.sched.preempt()
            roots = machine.vcpu.roots
            spaces.append({unpack_role(page.role).smm for root in roots for page in root.pages if page is not None})

    assert run_with(machine, vmm) == 0
    assert spaces == [{number % 2 == 0} for number in range(1, ROUNDS + 1)]


def test_each_address_space_has_slots_limits_and_logs_of_its_own(tmp_path: Path) -> None:
    machine, pages = machine_with_two_views(tmp_path)
    kvm = machine.kvm
    kvm.set_user_memory_region(SMM | SLOT, EXTRA, MIB, pages[1], KVM_MEM_LOG_DIRTY_PAGES)
    assert kvm_get_dirty_log(kvm, SMM | SLOT) == bytes(32)
    assert kvm.memslots.by_id(SLOT).flags == 0  # type: ignore[union-attr]
    generation = kvm.memslots.generation
    kvm.set_user_memory_region(SMM | SLOT, EXTRA, 0, pages[1])
    assert kvm.memslots.generation == generation
    assert kvm.id_to_memslot(SMM | SLOT) is None
    assert kvm.id_to_memslot(SLOT) is not None
    machine.close()
