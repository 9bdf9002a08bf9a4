"""Memory slots: guest-physical ranges backed by the VM process's memory (virt/kvm/kvm_main.c).

A slot owns what KVM keeps per guest frame: the reverse map (rmap) and the counts of write tracking.
"""

from __future__ import annotations

from bisect import bisect_right

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Hva, Vpn

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEMSLOT_INVALID = 1 << 16
"""The slot is being deleted or moved: faults on it retry."""


class MemSlot:
    """`npages` guest frames from `base_gfn` at `userspace_addr`.

    rmap: gfn -> sptep, or list of spteps, of every present leaf spte that maps it.
    dirty_bitmap: the pages that are dirty, None without logging.
    gfn_write_track: gfn -> number of shadow pages that shadow it; such a gfn has no writable spte.
    """

    __slots__ = (
        "base_gfn",
        "dirty_bitmap",
        "end_gfn",
        "flags",
        "gfn_write_track",
        "id",
        "npages",
        "rmap",
        "userspace_addr",
        "vpn_delta",
    )

    def __init__(self, slot_id: int, base_gfn: Gfn, npages: int, userspace_addr: Hva, flags: int = 0) -> None:
        self.id = slot_id
        self.base_gfn = base_gfn
        self.npages = npages
        self.end_gfn = Gfn(base_gfn + npages)
        self.userspace_addr = userspace_addr
        self.flags = flags
        self.vpn_delta = (userspace_addr >> PAGE_SHIFT) - base_gfn
        self.rmap: dict[Gfn, int | list[int]] = {}
        self.gfn_write_track: dict[Gfn, int] = {}
        self.dirty_bitmap: set[Gfn] | None = None

    def share_arch(self, old: MemSlot) -> None:
        """Go on with what KVM keeps per guest frame of `old`, the same slot with other flags."""
        self.rmap, self.gfn_write_track, self.dirty_bitmap = old.rmap, old.gfn_write_track, old.dirty_bitmap

    def vpn(self, gfn: Gfn) -> Vpn:
        """Host virtual page number of a guest frame: __gfn_to_hva_memslot()."""
        return gfn + self.vpn_delta  # type: ignore[return-value]  # every fault asks; a conversion costs a call


class MemSlots:
    """The active slots, sorted by base gfn."""

    __slots__ = ("_bases", "generation", "slots")

    def __init__(self) -> None:
        self.slots: list[MemSlot] = []
        self._bases: list[Gfn] = []
        self.generation = 0

    def replace(self, old: MemSlot | None, new: MemSlot | None) -> None:
        """Take `old` out and put `new` in; either may be None."""
        kept = [each for each in self.slots if each is not old]
        self.slots = sorted([*kept, new] if new is not None else kept, key=lambda each: each.base_gfn)
        self._bases = [each.base_gfn for each in self.slots]
        self.generation += 1

    def by_id(self, slot_id: int) -> MemSlot | None:
        """id_to_memslot()."""
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
