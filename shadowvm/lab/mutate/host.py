"""What the host does in scenarios, by guest physical address: as the VMM's threads and the kernel do it."""

from __future__ import annotations

from ...addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Hva
from ...kvm.dirty import kvm_get_dirty_log
from ...kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES, MemSlot
from ...machine import Machine
from ...mm.mm_struct import madvise_dontneed, madvise_pageout, mmap, mprotect
from ...mm.uaccess import copy_to_user

EXTRA_SLOT = 5
EXTRA = Gpa(0x1000_0000)
ELSEWHERE = Gpa(0x2000_0000)
EXTRA_SIZE = 16 << 20


def slot_of(machine: Machine, gpa: int) -> MemSlot:
    """The slot that has an address."""
    slot = machine.kvm.memslots.find(Gfn(gpa >> PAGE_SHIFT))
    assert slot is not None, f"no slot at {gpa:#x}"
    return slot


def hva_of(machine: Machine, gpa: int) -> Hva:
    """Where the VMM has a guest page."""
    return Hva(slot_of(machine, gpa).vpn(Gfn(gpa >> PAGE_SHIFT)) << PAGE_SHIFT)


def page_out(machine: Machine, gpa: int) -> None:
    """MADV_PAGEOUT of one page."""
    madvise_pageout(machine.mm, hva_of(machine, gpa), PAGE_SIZE)


def drop(machine: Machine, gpa: int) -> None:
    """MADV_DONTNEED of one page."""
    madvise_dontneed(machine.mm, hva_of(machine, gpa), PAGE_SIZE)


def protect(machine: Machine, gpa: int, writable: bool = False) -> None:
    """mprotect() of one page."""
    mprotect(machine.mm, hva_of(machine, gpa), PAGE_SIZE, writable)


def write(machine: Machine, gpa: int, value: int) -> None:
    """A store of another process that shares the guest's memory, of which KVM does not hear."""
    hva = Hva(hva_of(machine, gpa) + gpa % PAGE_SIZE)
    copy_to_user(machine.mm, hva, (value & (1 << 64) - 1).to_bytes(8, "little"))


def log_dirty(machine: Machine, gpa: int, on: bool = True) -> None:
    """Turn the dirty log of a slot on or off."""
    slot = slot_of(machine, gpa)
    base, size = Gpa(slot.base_gfn << PAGE_SHIFT), slot.npages << PAGE_SHIFT
    flags = KVM_MEM_LOG_DIRTY_PAGES if on else 0
    machine.kvm.set_user_memory_region(slot.id, base, size, slot.userspace_addr, flags)


def harvest(machine: Machine, gpa: int) -> None:
    """KVM_GET_DIRTY_LOG of a slot."""
    kvm_get_dirty_log(machine.kvm, slot_of(machine, gpa).id)


def add_slot(machine: Machine, gpa: int = EXTRA) -> None:
    """Give the guest more memory."""
    hva = mmap(machine.mm, EXTRA_SIZE)
    machine.kvm.set_user_memory_region(EXTRA_SLOT, Gpa(gpa), EXTRA_SIZE, hva)


def add_alias(machine: Machine, gpa: int) -> None:
    """A second slot over the memory behind `gpa`, at EXTRA."""
    machine.kvm.set_user_memory_region(EXTRA_SLOT, EXTRA, PAGE_SIZE, hva_of(machine, gpa))


def move_slot(machine: Machine) -> None:
    """Move the memory at EXTRA elsewhere."""
    slot = slot_of(machine, EXTRA)
    machine.kvm.set_user_memory_region(EXTRA_SLOT, ELSEWHERE, EXTRA_SIZE, slot.userspace_addr)


def delete_slot(machine: Machine) -> None:
    """Take the memory at EXTRA away."""
    machine.kvm.set_user_memory_region(EXTRA_SLOT, EXTRA, 0, slot_of(machine, EXTRA).userspace_addr)
