"""Write tracking: guest frames that hold shadowed page tables are not writable to the guest (page_track.c).

A new shadow page of a gfn takes write access from every spte that maps it; the fault that a later store takes
is emulated, and what it changed is zapped (pte_write.py) before the guest can use it. Leaf tables are write-protected
only, and at the first store made writable again (unsync.py), unless the knob `unsync` is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn
from .lpage import kvm_mmu_gfn_allow_lpage, kvm_mmu_gfn_disallow_lpage
from .rmap import rmap_write_protect
from .role import ROLE_SMM_SHIFT

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vm import Kvm
    from .shadow import KvmMmuPage


def account_shadowed(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Write-protect the gfn of a new shadow page, and track it."""
    slot = kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].find(sp.gfn)
    if slot is None:
        return
    if sp.level > 1 or not kvm.params.unsync:
        kvm_slot_page_track_add_page(slot, sp.gfn)
    else:
        kvm_mmu_gfn_disallow_lpage(slot, sp.gfn)
    if rmap_write_protect(kvm, slot, sp.gfn):
        kvm.flush_remote_tlbs()


def unaccount_shadowed(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Stop tracking for one shadow page."""
    slot = kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].find(sp.gfn)
    if slot is None:
        return
    if sp.level > 1 or not kvm.params.unsync:
        kvm_slot_page_track_remove_page(slot, sp.gfn)
    else:
        kvm_mmu_gfn_allow_lpage(slot, sp.gfn)


def kvm_slot_page_track_add_page(slot: MemSlot, gfn: Gfn) -> None:
    """One more shadow page shadows `gfn`."""
    slot.gfn_write_track[gfn] = slot.gfn_write_track.get(gfn, 0) + 1
    kvm_mmu_gfn_disallow_lpage(slot, gfn)


def kvm_slot_page_track_remove_page(slot: MemSlot, gfn: Gfn) -> None:
    """One shadow page less shadows `gfn`."""
    count = slot.gfn_write_track[gfn] - 1
    if count:
        slot.gfn_write_track[gfn] = count
    else:
        del slot.gfn_write_track[gfn]
    kvm_mmu_gfn_allow_lpage(slot, gfn)
