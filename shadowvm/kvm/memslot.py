"""Memory slots: guest-physical ranges backed by the VM process's memory (virt/kvm/kvm_main.c).

A slot owns what KVM keeps per guest frame: the reverse map (rmap) and the counts of write tracking.
"""

from __future__ import annotations

from bisect import bisect_right

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Hva, Vpn
from ..x86 import PT_WRITABLE

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
"""ROM: the guest reads memory, and what it stores goes to a device."""
KVM_MEMSLOT_INVALID = 1 << 16
"""The slot is being deleted or moved: faults on it retry."""
KVM_MEM_UNCACHED = KVM_MEMSLOT_INVALID | KVM_MEM_READONLY
"""Flags of slots that a vCPU does not remember as the one used last: each fault looks them up, and sees the flags."""

KVM_ADDRESS_SPACE_NUM = 2
"""What a vCPU sees outside (0) and inside (1) of system management mode."""
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63


class MemSlot:
    """`npages` guest frames from `base_gfn` at `userspace_addr`.

    rmap: gfn -> sptep, or list of spteps, of every present leaf spte that maps it.
    dirty_bitmap: the pages that are dirty, None without logging.
    write_mask: the guest's right to write (ACC_WRITE_MASK), if memory may ever be written through the slot, else 0.
    gfn_write_track: gfn -> number of shadow pages that shadow it; such a gfn has no writable spte.
    rmap_large: as rmap, for sptes of 2 MiB, by their first gfn. disallow_lpage: gfn >> 9 -> reasons against such an
    spte (lpage.py). is_congruent: gfns and hvas are alike modulo 2 MiB.
    """

    __slots__ = (
        "as_id",
        "base_gfn",
        "dirty_bitmap",
        "disallow_lpage",
        "end_gfn",
        "flags",
        "gfn_write_track",
        "id",
        "is_congruent",
        "npages",
        "rmap",
        "rmap_large",
        "userspace_addr",
        "vpn_delta",
        "write_mask",
    )

    def __init__(
        self, slot_id: int, base_gfn: Gfn, npages: int, userspace_addr: Hva, flags: int = 0, as_id: int = 0
    ) -> None:
        self.id = slot_id
        self.as_id = as_id
        self.base_gfn = base_gfn
        self.npages = npages
        self.end_gfn = Gfn(base_gfn + npages)
        self.userspace_addr = userspace_addr
        self.flags = flags
        self.vpn_delta = (userspace_addr >> PAGE_SHIFT) - base_gfn
        self.write_mask = 0 if flags & KVM_MEM_READONLY else PT_WRITABLE
        self.rmap: dict[Gfn, int | list[int]] = {}
        self.rmap_large: dict[Gfn, int | list[int]] = {}
        self.gfn_write_track: dict[Gfn, int] = {}
        self.is_congruent = self.vpn_delta % 512 == 0
        # A block that the slot covers in part only.
        self.disallow_lpage = {gfn >> 9: 1 for gfn in (base_gfn, base_gfn + npages) if gfn % 512}
        self.dirty_bitmap: set[Gfn] | None = None

    def share_arch(self, old: MemSlot) -> None:
        """Go on with what KVM keeps per guest frame of `old`, the same slot with other flags."""
        self.rmap, self.gfn_write_track, self.dirty_bitmap = old.rmap, old.gfn_write_track, old.dirty_bitmap
        self.rmap_large, self.disallow_lpage = old.rmap_large, old.disallow_lpage

    def vpn(self, gfn: Gfn) -> Vpn:
        """Host virtual page number of a guest frame: __gfn_to_hva_memslot()."""
        return gfn + self.vpn_delta  # type: ignore[return-value]  # every fault asks; a conversion costs a call


class MemSlots:
    """The active slots of one address space, sorted by base gfn.

    generation: moves with every change, by the number of address spaces, so that no two of these ever have the same.
    Bit 63 is set from the publication of a change until every vCPU sees it.
    """

    __slots__ = ("_bases", "as_id", "generation", "slots")

    def __init__(self, as_id: int = 0) -> None:
        self.as_id = as_id
        self.slots: list[MemSlot] = []
        self._bases: list[Gfn] = []
        self.generation = as_id

    def replace(self, old: MemSlot | None, new: MemSlot | None) -> None:
        """Take `old` out and put `new` in; either may be None. An update is in progress from here on."""
        kept = [each for each in self.slots if each is not old]
        self.slots = sorted([*kept, new] if new is not None else kept, key=lambda each: each.base_gfn)
        self._bases = [each.base_gfn for each in self.slots]
        self.generation |= KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS

    def next_generation(self) -> int:
        """What the generation becomes when the update is complete."""
        return (self.generation & ~KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) + KVM_ADDRESS_SPACE_NUM

    def by_id(self, slot_id: int) -> MemSlot | None:
        """id_to_memslot(); the number is without that of the address space."""
        return next((slot for slot in self.slots if slot.id == slot_id), None)

    def find(self, gfn: Gfn) -> MemSlot | None:
        """gfn_to_memslot()."""
        at = bisect_right(self._bases, gfn) - 1
        if at < 0:
            return None
        slot = self.slots[at]
        return slot if gfn < slot.end_gfn else None

    def gfn_ranges(self, start: Hva, end: Hva) -> list[tuple[MemSlot, Gfn, Gfn]]:
        """Guest frames [first, last) of each slot that a host-virtual range covers."""
        ranges: list[tuple[MemSlot, Gfn, Gfn]] = []
        first_vpn, last_vpn = start >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT
        for slot in self.slots:
            # Reclaim asks for each page, three times on its way out: no calls here.
            first, last = first_vpn - slot.vpn_delta, last_vpn - slot.vpn_delta
            first = first if first > slot.base_gfn else slot.base_gfn
            last = last if last < slot.end_gfn else slot.end_gfn
            if first < last:
                ranges.append((slot, first, last))  # type: ignore[arg-type]
        return ranges
