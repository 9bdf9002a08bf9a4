"""Large sptes and the dirty log: split when it is turned on, let come back when it is turned off (mmu.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Pfn
from ...events import kvm_mmu_split_huge_page
from ...mm.page_alloc import Page, put_page
from ...x86 import PT_NX, PT_PAGE_SIZE, PT_PKEY_MASK, PT_WRITABLE
from .lpage import PG_LEVEL_2M, is_lpage_possible
from .rmap import drop_spte, large_gfns, rmap_add
from .role import split_role
from .shadow import KVM_MIN_FREE_MMU_PAGES, get_direct_shadow_page, link_shadow_page
from .spte import ACC_EXEC_MASK, ACC_USER_MASK, SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, mmu_spte_set

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vm import Kvm


def kvm_mmu_try_split_huge_pages(kvm: Kvm, slot: MemSlot, first: Gfn, last: Gfn) -> None:
    """Replace every large spte over any of [first, last) by 512 small ones with the same rights. May sleep.

    So no store has to wait for a split when the log write-protects. One that cannot be split stays.
    """
    cache: list[Page] = []
    kvm.mmu_lock.acquire()
    while left := large_gfns(slot, first, last):
        if not cache:
            kvm.mmu_lock.release()
            page = kvm.mm.host.alloc_page()
            kvm.mmu_lock.acquire()
            if page is None:
                break
            cache.append(page)
            continue
        head = slot.rmap_large[left[0]]
        sptep = head if isinstance(head, int) else head[0]
        spte = kvm.q[sptep]
        error = _shadow_mmu_split_huge_page(kvm, slot, sptep, cache)
        if kvm_mmu_split_huge_page.on:
            kvm_mmu_split_huge_page(left[0], spte, PG_LEVEL_2M, error)
        if error:
            first = Gfn(left[0] + 512)
    kvm.mmu_lock.release()
    for page in cache:
        put_page(kvm.mm.host, page)


def _shadow_mmu_split_huge_page(kvm: Kvm, slot: MemSlot, sptep: int, cache: list[Page]) -> int:
    """0 or a negative errno. The small sptes are there before the large one goes, which takes a flush (I20)."""
    if kvm.n_max_mmu_pages - len(kvm.active_mmu_pages) < KVM_MIN_FREE_MMU_PAGES:
        return -errno.ENOSPC
    large_sp = kvm.sp_by_pfn[Pfn(sptep >> 9)]
    spte = kvm.q[sptep]
    gfn = large_sp.gfn_of(sptep & 511)
    access = spte & ACC_USER_MASK | (PT_WRITABLE if spte & SPTE_MMU_WRITABLE else 0)
    access |= 0 if spte & PT_NX else ACC_EXEC_MASK
    if kvm.tdp_enabled:
        access = large_sp.access  # whatever nx_huge_pages has taken: direct_map() goes on with the page as it is
    sp = get_direct_shadow_page(kvm, cache, gfn, split_role(large_sp.role, access, spte & PT_PKEY_MASK))
    for i in range(512):
        # Another large spte of the same rights may have been split before: what is there maps the same.
        if not kvm.q[sp.q + i] & SPTE_MMU_PRESENT:
            mmu_spte_set(kvm, sp.q + i, (spte & ~PT_PAGE_SIZE) + (i << PAGE_SHIFT))
            kvm.stat.pages_4k += 1
            rmap_add(kvm, slot, Gfn(gfn + i), sp.q + i)
    drop_spte(kvm, sptep)
    kvm.flush_remote_tlbs()
    link_shadow_page(kvm, sptep, sp)
    return 0


def kvm_mmu_recover_huge_pages(kvm: Kvm, slot: MemSlot) -> None:
    """Zap the small sptes of a slot where faults could set large ones (kvm_rmap_zap_collapsible_sptes).

    A direct page may begin below the slot, whose lpage_info then has nothing for its gfn.
    """
    kvm.mmu_lock.acquire()
    flush = False
    for gfn in sorted(slot.rmap):
        head = slot.rmap[gfn]
        for sptep in (head,) if isinstance(head, int) else tuple(head):
            sp = kvm.sp_by_pfn[Pfn(sptep >> 9)]
            if sp.direct and slot.base_gfn <= sp.gfn < slot.end_gfn and is_lpage_possible(kvm, slot, sp.gfn):
                drop_spte(kvm, sptep)
                flush = True
    if flush:
        kvm.flush_remote_tlbs()
    kvm.mmu_lock.release()
