"""Reverse map: from a guest frame to the leaf sptes that map it (__rmap_add and pte_list_* of mmu.c).

Each present leaf spte stands in exactly one list, that of its level and of the gfn its shadow page gives for it. A list
of one is a bare int; most are. Those of 4 KiB are in slot.rmap, those of 2 MiB, by their first gfn, in slot.rmap_large.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...addr import Gfn, Pfn
from ...errors import ModelBug
from ...x86 import PT_ACCESSED, PT_WRITABLE
from .access_track import mark_spte_old
from .role import ROLE_SMM_SHIFT
from .spte import SPTE_MMU_WRITABLE, mmu_spte_clear, mmu_spte_set

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vm import Kvm

RMAP_RECYCLE_THRESHOLD = 1000


def rmap_add(kvm: Kvm, slot: MemSlot, gfn: Gfn, sptep: int) -> bool:
    """Enter a new leaf spte. True if the list had grown too long and was zapped: the caller must flush."""
    rmap = slot.rmap
    head = rmap.get(gfn)
    if head is None:
        rmap[gfn] = sptep
        return False
    if type(head) is int:
        rmap[gfn] = [head, sptep]
        return False
    assert type(head) is list
    head.append(sptep)
    kvm.stat.max_mmu_rmap_size = max(kvm.stat.max_mmu_rmap_size, len(head))
    if len(head) > RMAP_RECYCLE_THRESHOLD:
        return kvm_zap_rmap(kvm, slot, gfn)
    return False


def rmap_add_large(kvm: Kvm, slot: MemSlot, gfn: Gfn, sptep: int) -> bool:
    """As rmap_add(), for an spte of 2 MiB from `gfn` on."""
    head = slot.rmap_large.get(gfn)
    spteps = [] if head is None else head if isinstance(head, list) else [head]
    slot.rmap_large[gfn] = [*spteps, sptep] if spteps else sptep
    if spteps:
        kvm.stat.max_mmu_rmap_size = max(kvm.stat.max_mmu_rmap_size, len(spteps) + 1)
    if len(spteps) >= RMAP_RECYCLE_THRESHOLD:
        return kvm_zap_rmap_large(kvm, slot, gfn)
    return False


def rmap_remove(slot: MemSlot, gfn: Gfn, sptep: int) -> None:
    """Take a leaf spte of 4 KiB out of its list; ModelBug if it is not there."""
    _pte_list_remove(slot.rmap, gfn, sptep)


def _pte_list_remove(rmap: dict[Gfn, int | list[int]], gfn: Gfn, sptep: int) -> None:
    head = rmap.get(gfn)
    if head == sptep:
        del rmap[gfn]
    elif type(head) is list and sptep in head:
        head.remove(sptep)
        if not head:
            del rmap[gfn]
    else:
        raise ModelBug(f"rmap_remove: spte at {sptep * 8:#x} is not in the list of gfn {gfn:#x}")


def rmap_sptes(slot: MemSlot, gfn: Gfn) -> Iterator[int]:
    """The sptes that map a gfn, large ones too; the list may change while the caller iterates."""
    head = slot.rmap.get(gfn)
    found = () if head is None else (head,) if type(head) is int else tuple(head)  # type: ignore[arg-type]
    if slot.rmap_large:
        large = slot.rmap_large.get(Gfn(gfn & -512))
        if large is not None:
            found = (*found, large) if isinstance(large, int) else (*found, *large)
    return iter(found)


def large_gfns(slot: MemSlot, first: Gfn, last: Gfn) -> list[Gfn]:
    """First gfns of the large sptes that map any of [first, last), in order."""
    rmap = slot.rmap_large
    if last - first >> 9 < len(rmap):
        return [Gfn(gfn) for gfn in range(first & -512, last, 512) if gfn in rmap]
    return sorted(gfn for gfn in rmap if first & -512 <= gfn < last)


def drop_spte(kvm: Kvm, sptep: int) -> int:
    """Clear a present leaf and leave its rmap list; returns the old entry. The caller flushes."""
    sp = kvm.sp_by_pfn[Pfn(sptep >> 9)]
    gfn = sp.gfn_of(sptep & 511)
    old = mmu_spte_clear(kvm, sptep)
    slot = kvm.address_spaces[sp.role >> ROLE_SMM_SHIFT].find(gfn)
    if slot is None:
        raise ModelBug(f"drop_spte: gfn {gfn:#x} has no memslot")
    if sp.level > 1:
        _pte_list_remove(slot.rmap_large, gfn, sptep)
        kvm.stat.pages_2m -= 1
        return old
    rmap_remove(slot, gfn, sptep)
    kvm.stat.pages_4k -= 1
    return old


def kvm_zap_rmap(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> bool:
    """Zap every spte of 4 KiB of a gfn. True if there was one: the caller flushes before it drops mmu_lock."""
    head = slot.rmap.pop(gfn, None)
    if head is None:
        return False
    if type(head) is int:
        mmu_spte_clear(kvm, head)
        kvm.stat.pages_4k -= 1
        return True
    assert type(head) is list
    for sptep in head:
        mmu_spte_clear(kvm, sptep)
    kvm.stat.pages_4k -= len(head)
    return True


def kvm_zap_rmap_large(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> bool:
    """As kvm_zap_rmap(), for the sptes of 2 MiB from `gfn` on."""
    head = slot.rmap_large.pop(gfn, None)
    if head is None:
        return False
    spteps = [head] if isinstance(head, int) else head
    for sptep in spteps:
        mmu_spte_clear(kvm, sptep)
    kvm.stat.pages_2m -= len(spteps)
    return True


def rmap_write_protect(kvm: Kvm, slot: MemSlot, gfn: Gfn) -> bool:
    """Take W and MMU_WRITABLE from every spte of a gfn. True if one had it: the caller flushes."""
    flush = False
    for sptep in rmap_sptes(slot, gfn):
        spte = kvm.q[sptep]
        if spte & (PT_WRITABLE | SPTE_MMU_WRITABLE):
            mmu_spte_set(kvm, sptep, spte & ~(PT_WRITABLE | SPTE_MMU_WRITABLE))
            flush = True
    return flush


def kvm_rmap_age(kvm: Kvm, head: int | list[int], *, clear: bool) -> bool:
    """Whether any spte of an rmap list was used since it was last aged; `clear` makes it old."""
    young = False
    for sptep in (head,) if isinstance(head, int) else head:
        spte = kvm.q[sptep]
        if spte & PT_ACCESSED:
            young = True
            if clear:
                mmu_spte_set(kvm, sptep, mark_spte_old(spte))
    return young
