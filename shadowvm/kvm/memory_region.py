"""KVM_SET_USER_MEMORY_REGION: slots are created, deleted, moved, and change their flags (virt/kvm/kvm_main.c).

A slot that goes away or moves is first made invalid: faults on it retry, nothing new is mapped through it. Then every
invalidation in progress has to end, every vCPU to stop using what it has read, and all shadow pages are zapped, before
the slot is taken out. So nothing that refers to the old slot is left when the call returns (invariant I34).

A slot is named as in the ioctl: its number, and in the bits from 16 on its address space.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Hva
from ..errors import KvmError
from ..events import kvm_set_memslot
from .dirty import kvm_alloc_dirty_bitmap, kvm_mmu_slot_apply_flags
from .memslot import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    MemSlot,
    MemSlots,
)
from .mmu.mmio_fault import kvm_mmu_invalidate_mmio_sptes
from .mmu.paging_mode import MAXPHYADDR
from .mmu.shadow import KVM_MIN_ALLOC_MMU_PAGES, KVM_MMU_PAGES_DIVISOR, kvm_mmu_change_mmu_pages
from .mmu.zap_memslot import kvm_arch_flush_shadow_memslot

if TYPE_CHECKING:
    from .vm import Kvm

KVM_USER_MEM_SLOTS = 32764
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
_ID_MASK = 0xFFFF
_VALID_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


class KvmMrChange(Enum):
    """enum kvm_mr_change."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags-only"


def kvm_set_memory_region(
    kvm: Kvm, slot: int, flags: int, guest_phys_addr: Gpa, memory_size: int, userspace_addr: Hva
) -> None:
    """Make slot `slot` what these say; a size of 0 deletes it. May sleep.

    Raises:
        KvmError: EINVAL or EEXIST, with the reason.
    """
    _check(slot, flags, guest_phys_addr, memory_size, userspace_addr)
    as_id, slot_id = slot >> 16, slot & _ID_MASK
    slots = kvm.address_spaces[as_id]
    kvm.slots_lock.acquire()
    try:
        old = slots.by_id(slot_id)
        base, npages = Gfn(guest_phys_addr >> PAGE_SHIFT), memory_size >> PAGE_SHIFT
        new = MemSlot(slot_id, base, npages, userspace_addr, flags, as_id)
        change = _classify(old, new)
        if change in (KvmMrChange.CREATE, KvmMrChange.MOVE):
            _check_overlap(slots, new)
        if change is not None:
            if kvm_set_memslot.on:
                kvm_set_memslot(slot, change.value, flags, guest_phys_addr, memory_size, userspace_addr)
            _kvm_set_memslot(kvm, slots, old, new, change)
    finally:
        kvm.slots_lock.release()


def _check(slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
    """What is wrong whatever slots there are."""
    what = f"memory slot {slot}"
    if slot < 0 or slot & _ID_MASK >= KVM_USER_MEM_SLOTS:
        raise KvmError(errno.EINVAL, f"{what}: slots are numbered from 0 to {KVM_USER_MEM_SLOTS - 1}")
    if slot >> 16 >= KVM_ADDRESS_SPACE_NUM:
        raise KvmError(errno.EINVAL, f"{what}: there are {KVM_ADDRESS_SPACE_NUM} address spaces, not {slot >> 16}")
    if flags & ~_VALID_FLAGS:
        raise KvmError(errno.EINVAL, f"{what}: unknown flags {flags & ~_VALID_FLAGS:#x}")
    if (gpa | size | hva) % PAGE_SIZE:
        raise KvmError(errno.EINVAL, f"{what}: gpa {gpa:#x}, size {size:#x} or hva {hva:#x} is not page-aligned")
    if size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
        raise KvmError(errno.EINVAL, f"{what}: size {size:#x} is more than {KVM_MEM_MAX_NR_PAGES:#x} pages")
    if min(gpa, size, hva) < 0 or gpa + size > 1 << MAXPHYADDR:
        raise KvmError(errno.EINVAL, f"{what}: gpa {gpa:#x} and size {size:#x} exceed {MAXPHYADDR} bits")
    if hva + size > 1 << 47:
        raise KvmError(errno.EINVAL, f"{what}: hva {hva:#x} is no address of user space")


def _classify(old: MemSlot | None, new: MemSlot) -> KvmMrChange | None:
    """What kind of change leads from `old` to `new`; None for no change at all."""
    if not new.npages:
        if old is None:
            raise KvmError(errno.EINVAL, f"memory slot {new.id}: there is none to delete")
        return KvmMrChange.DELETE
    if old is None:
        return KvmMrChange.CREATE
    if old.userspace_addr != new.userspace_addr or old.npages != new.npages:
        raise KvmError(errno.EINVAL, f"memory slot {new.id}: size and hva of a slot cannot change")
    if (old.flags ^ new.flags) & KVM_MEM_READONLY:
        raise KvmError(errno.EINVAL, f"memory slot {new.id}: a slot cannot become read-only, nor stop to be")
    if old.base_gfn != new.base_gfn:
        return KvmMrChange.MOVE
    return KvmMrChange.FLAGS_ONLY if old.flags != new.flags else None


def _check_overlap(slots: MemSlots, new: MemSlot) -> None:
    for other in slots.slots:
        if other.id != new.id and new.base_gfn < other.end_gfn and other.base_gfn < new.end_gfn:
            raise KvmError(errno.EEXIST, f"memory slot {new.id} overlaps slot {other.id}")


def _kvm_set_memslot(kvm: Kvm, slots: MemSlots, old: MemSlot | None, new: MemSlot, change: KvmMrChange) -> None:
    if old is not None and change in (KvmMrChange.DELETE, KvmMrChange.MOVE):
        old = _invalidate_memslot(kvm, slots, old)
    if change is KvmMrChange.FLAGS_ONLY:
        assert old is not None
        new.share_arch(old)
    if not new.flags & KVM_MEM_LOG_DIRTY_PAGES:
        new.dirty_bitmap = None
    elif new.dirty_bitmap is None:
        kvm_alloc_dirty_bitmap(kvm, new)
    _swap_active_memslots(kvm, slots, old, None if change is KvmMrChange.DELETE else new)
    if change is KvmMrChange.FLAGS_ONLY and old is not None and (old.flags ^ new.flags) & KVM_MEM_LOG_DIRTY_PAGES:
        kvm_mmu_slot_apply_flags(kvm, new)
    _limit_mmu_pages(kvm)


def _invalidate_memslot(kvm: Kvm, slots: MemSlots, old: MemSlot) -> MemSlot:
    """kvm_invalidate_memslot(): no fault installs anything for the slot from here on, and all that was is gone."""
    flags = old.flags | KVM_MEMSLOT_INVALID
    invalid = MemSlot(old.id, old.base_gfn, old.npages, old.userspace_addr, flags, old.as_id)
    invalid.share_arch(old)
    _swap_active_memslots(kvm, slots, old, invalid)
    kvm_arch_flush_shadow_memslot(kvm, invalid)
    return invalid


def _swap_active_memslots(kvm: Kvm, slots: MemSlots, old: MemSlot | None, new: MemSlot | None) -> None:
    """Publish: after invalidations that saw the old slots have ended, and until no vCPU uses them any more."""
    while kvm.mn_active_invalidate_count:
        kvm.mn_memslots_update_waiters.append(kvm.mm.host.sched.current)
        kvm.mm.host.sched.wait(slots)
    slots.replace(old, new)
    # Before anybody runs: a root that was loaded when its table had no memory must not be used now that it has.
    kvm.request_free_obsolete_roots()
    for vcpu in kvm.vcpus:
        vcpu.forget_slot()
    kvm.synchronize_srcu()
    generation = slots.next_generation()
    kvm_mmu_invalidate_mmio_sptes(kvm, generation)
    slots.generation = generation


def _limit_mmu_pages(kvm: Kvm) -> None:
    """kvm_arch_commit_memory_region(): what was asked for, or slot pages / 50, at most an eighth of the host's frames.

    KVM has no such bound; a host of 2 MiB under a guest of 64 MiB needs one.
    """
    pages = sum(each.npages for slots in kvm.address_spaces for each in slots.slots) // KVM_MMU_PAGES_DIVISOR
    ceiling = kvm.mm.host.ram.nr_frames // 8
    wanted = kvm.n_requested_mmu_pages or min(pages, ceiling)
    kvm_mmu_change_mmu_pages(kvm, max(KVM_MIN_ALLOC_MMU_PAGES, wanted))


def kvm_set_nr_mmu_pages(kvm: Kvm, number: int) -> None:
    """KVM_SET_NR_MMU_PAGES: the limit of shadow pages, whatever the slots come to. May sleep.

    Raises:
        KvmError: EINVAL, fewer than KVM_MIN_ALLOC_MMU_PAGES.
    """
    if number < KVM_MIN_ALLOC_MMU_PAGES:
        raise KvmError(errno.EINVAL, f"{number} shadow pages are fewer than {KVM_MIN_ALLOC_MMU_PAGES}")
    kvm.slots_lock.acquire()
    kvm.n_requested_mmu_pages = number
    kvm_mmu_change_mmu_pages(kvm, number)
    kvm.slots_lock.release()
