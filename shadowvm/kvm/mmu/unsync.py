"""Unsync pages: leaf shadow pages whose guest table the guest may write without an exit (mmu_try_to_unsync_pages).

Above level 1 guest tables stay write-tracked. A level 1 table that is stored to becomes unsync instead: its sptes may
be stale until the guest flushes its TLB, as a real TLB may be, and are brought up to date then (sync.py). Each page
above an unsync one has a bit for the entry that leads there, and counts its bits, so that a flush finds them.

While there is one, no flush of a guest may pass unseen: MOV to CR3 and INVLPG exit on every vCPU. All under mmu_lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import events
from ...addr import PAGE_SHIFT, Gfn
from ...x86 import PT_ADDR_MASK, PT_PAGE_SIZE
from .role import role_text
from .spte import SPTE_MMU_PRESENT

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vcpu import Vcpu
    from ..vm import Kvm
    from .shadow import KvmMmuPage


def mmu_try_to_unsync_pages(
    kvm: Kvm, slot: MemSlot, gfn: Gfn, *, synchronizing: bool = False, prefetch: bool = False
) -> bool:
    """Make every shadow page of `gfn` unsync, so that the guest may get a writable spte for it; False: it may not.

    Not where an upper level is shadowed. While pages are being synced, what has been write-protected for that stays so,
    and no guess makes a page unsync.
    """
    if gfn in slot.gfn_write_track:
        return False
    # A list: where a page becomes unsync other tasks may run.
    for sp in list(kvm.page_hash.get(gfn, ())):
        if sp.direct or sp.mmu_valid_gen != kvm.mmu_valid_gen:
            continue
        if synchronizing:
            return False
        if sp.unsync:
            continue
        if prefetch:
            return False
        _kvm_unsync_page(kvm, sp)
    return True


def _kvm_unsync_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """kvm_unsync_page(). From the return on, a flush by any vCPU finds the page; then only may the guest write."""
    sp.unsync = True
    kvm.stat.mmu_unsync += 1
    if kvm.stat.mmu_unsync == 1:
        update_flush_exits(kvm)
    kvm_mmu_mark_parents_unsync(kvm, sp)
    if events.kvm_mmu_unsync_page.on:
        events.kvm_mmu_unsync_page(sp.mmu_valid_gen, sp.gfn, role_text(sp.role), sp.root_count, True)


def kvm_unlink_unsync_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """The page is in sync, or about to be, or gone."""
    if events.kvm_mmu_sync_page.on:
        events.kvm_mmu_sync_page(sp.mmu_valid_gen, sp.gfn, role_text(sp.role), sp.root_count, True)
    sp.unsync = False
    kvm.stat.mmu_unsync -= 1
    if kvm.stat.mmu_unsync == 0:
        update_flush_exits(kvm)


def update_flush_exits(kvm: Kvm) -> None:
    """Have the flushes of every vCPU exit, or let them go by."""
    for vcpu in kvm.vcpus:
        vcpu_update_flush_exits(vcpu)


def vcpu_update_flush_exits(vcpu: Vcpu) -> None:
    """As update_flush_exits(), for one. In PAE mode MOV to CR3 loads the pointers, and exits anyway."""
    kvm = vcpu.kvm
    unsync = kvm.stat.mmu_unsync != 0
    controls = vcpu.engine.controls
    controls.invlpg = unsync
    controls.cr3 = unsync or vcpu.pdptrs_cr3 >= 0 or (kvm.params.flush_on_reuse != 0 and not kvm.tdp_enabled)


def kvm_mmu_mark_parents_unsync(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Tell every page from which `sp` can be reached."""
    for sptep in sp.parent_ptes:
        mark_unsync(kvm, sptep)


def mark_unsync(kvm: Kvm, sptep: int) -> None:
    """An unsync page is at or below the link at `sptep`."""
    parent = kvm.sp_by_pfn[sptep >> 9]
    bit = 1 << (sptep & 511)
    if parent.unsync_child_bitmap & bit:
        return
    parent.unsync_child_bitmap |= bit
    parent.unsync_children += 1
    if parent.unsync_children == 1:
        kvm_mmu_mark_parents_unsync(kvm, parent)


def clear_unsync_child_bit(sp: KvmMmuPage, index: int) -> None:
    """Nothing unsync is behind entry `index` any more; the pages above find out by themselves."""
    if sp.unsync_child_bitmap >> index & 1:
        sp.unsync_child_bitmap ^= 1 << index
        sp.unsync_children -= 1


def mmu_unsync_walk(kvm: Kvm, sp: KvmMmuPage) -> list[KvmMmuPage]:
    """The unsync pages below `sp`, each once. Bits that lead to none are cleared on the way."""
    found: dict[int, KvmMmuPage] = {}
    _unsync_walk(kvm, sp, found)
    return list(found.values())


def _unsync_walk(kvm: Kvm, sp: KvmMmuPage, found: dict[int, KvmMmuPage]) -> bool:
    bits, any_found = sp.unsync_child_bitmap, False
    while bits:
        index = (bits & -bits).bit_length() - 1
        bits &= bits - 1
        spte = kvm.q[sp.q + index]
        child = None
        if spte & SPTE_MMU_PRESENT and not spte & PT_PAGE_SIZE:
            child = kvm.sp_by_pfn[(spte & PT_ADDR_MASK) >> PAGE_SHIFT]
        if child is not None and child.unsync:
            found[child.pfn] = child
            any_found = True
        elif child is not None and child.unsync_children and _unsync_walk(kvm, child, found):
            any_found = True
        else:
            clear_unsync_child_bit(sp, index)
    return any_found
