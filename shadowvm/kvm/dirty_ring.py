"""The dirty ring: each vCPU notes the pages that it writes in a ring, which user space empties (virt/kvm/dirty_ring.c).

    vCPU: push -> DIRTY | user space: dirty_ring_entries() -> RESET | reset_dirty_rings() -> write-protected, invalid

It takes the place of the bitmaps. A slot's log is then the set of pages that are in a ring: adding one pushes it.
A vCPU whose ring is full but for a reserve does not enter the guest: run() returns DIRTY_RING_FULL until its ring has
been reset. What is harvested and reset is in dirty_ring_reset.py.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..addr import PAGE_SIZE, Gfn
from ..errors import KvmError, ModelBug
from ..events import kvm_dirty_ring_exit, kvm_dirty_ring_push

if TYPE_CHECKING:
    from .memslot import MemSlot
    from .vcpu import Vcpu
    from .vm import Kvm

SIZEOF_DIRTY_GFN = 16
KVM_DIRTY_RING_RSVD_ENTRIES = 64
"""What one exit may push after the ring was found to be full."""
KVM_DIRTY_RING_MAX_ENTRIES = 65536
KVM_REQ_DIRTY_RING_SOFT_FULL = 1 << 9
KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET = 1, 2


class DirtyGfn:
    """struct kvm_dirty_gfn. slot: number and address space, as in the ioctls; offset: of the page in the slot."""

    __slots__ = ("flags", "offset", "slot")

    def __init__(self) -> None:
        self.flags = self.slot = self.offset = 0


class KvmDirtyRing:
    """dirty_index: entries ever pushed; reset_index: entries ever reset. soft_limit: so many of `size` fill it."""

    __slots__ = ("dirty_gfns", "dirty_index", "index", "reset_index", "size", "soft_limit")

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.soft_limit = size - KVM_DIRTY_RING_RSVD_ENTRIES
        self.dirty_index = self.reset_index = 0
        self.dirty_gfns = [DirtyGfn() for _ in range(size)]

    @property
    def used(self) -> int:
        """Entries that were pushed and not reset."""
        return self.dirty_index - self.reset_index

    def entries(self) -> list[DirtyGfn]:
        """Those that were pushed and not reset, oldest first."""
        return [self.dirty_gfns[n & self.size - 1] for n in range(self.reset_index, self.dirty_index)]

    @property
    def soft_full(self) -> bool:
        """Only the reserve is left."""
        return self.used >= self.soft_limit


class DirtyRingLog(set[Gfn]):
    """A slot's log: its pages that are in a ring. Each store is pushed, also of a page that is there already."""

    def __init__(self, kvm: Kvm, slot: MemSlot) -> None:
        super().__init__()
        self._kvm = kvm
        self._slot_id = slot.as_id << 16 | slot.id
        self._base_gfn = slot.base_gfn

    def add(self, gfn: Gfn) -> None:
        """mark_page_dirty_in_slot()."""
        set.add(self, gfn)
        self._push(gfn)

    def _push(self, gfn: Gfn) -> None:
        push_dirty_gfn(kvm_get_running_vcpu(self._kvm), self._slot_id, gfn - self._base_gfn)


def kvm_get_running_vcpu(kvm: Kvm) -> Vcpu:
    """Whose task this is; what other tasks note goes into the first vCPU's ring."""
    current = kvm.mm.host.sched.current
    return next((vcpu for vcpu in kvm.vcpus if vcpu.task is current), kvm.vcpus[0])


def push_dirty_gfn(vcpu: Vcpu, slot_id: int, offset: int) -> None:
    """kvm_dirty_ring_push(). ModelBug: not even the reserve was enough."""
    ring = vcpu.dirty_ring
    assert ring is not None, "the log of a slot is a bitmap without rings"
    if ring.used == ring.size:
        raise ModelBug(f"the dirty ring of vcpu {vcpu.id} overflows")
    entry = ring.dirty_gfns[ring.dirty_index & ring.size - 1]
    entry.slot, entry.offset, entry.flags = slot_id, offset, KVM_DIRTY_GFN_F_DIRTY
    ring.dirty_index += 1
    if kvm_dirty_ring_push.on:
        kvm_dirty_ring_push(ring.index, ring.dirty_index, ring.reset_index, slot_id, offset)
    if ring.soft_full:
        vcpu.requests |= KVM_REQ_DIRTY_RING_SOFT_FULL


def kvm_dirty_ring_check_request(vcpu: Vcpu) -> bool:
    """Whether the vCPU must not run because its ring is full; the request goes when it is not any more."""
    ring = vcpu.dirty_ring
    vcpu.requests &= ~KVM_REQ_DIRTY_RING_SOFT_FULL
    if ring is None or not ring.soft_full:
        return False
    vcpu.requests |= KVM_REQ_DIRTY_RING_SOFT_FULL
    if kvm_dirty_ring_exit.on:
        kvm_dirty_ring_exit(vcpu.id)
    return True


def kvm_enable_dirty_log_ring(kvm: Kvm, size: int) -> None:
    """KVM_CAP_DIRTY_LOG_RING: rings of `size` bytes for all vCPUs. Once, and before any slot is logged.

    KVM wants it before the first vCPU; a machine here has all of them when it is made.

    Raises:
        KvmError: EINVAL or E2BIG, with the reason.
    """
    least = max(KVM_DIRTY_RING_RSVD_ENTRIES * SIZEOF_DIRTY_GFN, PAGE_SIZE)
    if size < least or size & size - 1:
        raise KvmError(errno.EINVAL, f"dirty ring: {size} bytes are not a power of two from {least} on")
    if size > KVM_DIRTY_RING_MAX_ENTRIES * SIZEOF_DIRTY_GFN:
        raise KvmError(errno.E2BIG, f"dirty ring: {size} bytes are more than {KVM_DIRTY_RING_MAX_ENTRIES} entries")
    if kvm.pml:
        raise KvmError(errno.EINVAL, "dirty ring: with pml=1 stores are noted in D bits, and pushed by nobody")
    logged = any(slot.dirty_bitmap is not None for slots in kvm.address_spaces for slot in slots.slots)
    if kvm.dirty_ring_size or logged:
        raise KvmError(errno.EINVAL, "dirty ring: there is one already, or a slot has a dirty bitmap")
    kvm.dirty_ring_size = size
    for vcpu in kvm.vcpus:
        vcpu.dirty_ring = kvm_dirty_ring_alloc(kvm, vcpu.id)


def kvm_dirty_ring_alloc(kvm: Kvm, index: int) -> KvmDirtyRing | None:
    """The ring of a vCPU; None where bitmaps are used."""
    return KvmDirtyRing(index, kvm.dirty_ring_size // SIZEOF_DIRTY_GFN) if kvm.dirty_ring_size else None
