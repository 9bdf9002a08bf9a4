"""Large leaves of a whole slot: split when its log is turned on, let come back when it is turned off (tdp_mmu.c).

What a single fault does with large leaves is in tdp_mmu.py: it may set one, split one, or zap the table in its place.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...addr import Gfn
from ...events import kvm_mmu_split_huge_page
from ...mm.page_alloc import put_page
from ...x86 import PT_PAGE_SIZE
from .lpage import PG_LEVEL_2M, is_lpage_possible
from .spte import SPTE_MMU_PRESENT
from .tdp_iter import TdpIter
from .tdp_mmu import kvm_tdp_mmu_put_root, tdp_mmu_roots
from .tdp_spte import tdp_mmu_alloc_sp, tdp_mmu_free_sp, tdp_mmu_set_spte, tdp_mmu_split_huge_page

if TYPE_CHECKING:
    from ...mm.page_alloc import Page
    from ..memslot import MemSlot
    from ..vm import Kvm
    from .shadow import KvmMmuPage

_LARGE = SPTE_MMU_PRESENT | PT_PAGE_SIZE


def kvm_tdp_mmu_try_split_huge_pages(kvm: Kvm, slot: MemSlot, first: Gfn, last: Gfn) -> None:
    """Put tables in the place of large leaves over any of [first, last). May sleep. One that cannot be split stays."""
    cache: list[Page] = []
    kvm.mmu_lock.acquire_read()
    for root in tdp_mmu_roots(kvm, slot.as_id):
        root.root_count += 1
        _split_huge_pages_root(kvm, root, first, last, cache)
        kvm_tdp_mmu_put_root(kvm, root)
    kvm.mmu_lock.release_read()
    for page in cache:
        put_page(kvm.mm.host, page)


def _split_huge_pages_root(kvm: Kvm, root: KvmMmuPage, first: Gfn, last: Gfn, cache: list[Page]) -> None:
    kvm.rcu.read_lock()
    walk = TdpIter(kvm, root, first, last, min_level=PG_LEVEL_2M)
    while walk.next():
        if walk.level > PG_LEVEL_2M or walk.old_spte & _LARGE != _LARGE:
            continue
        if not cache:
            kvm.rcu.read_unlock()
            kvm.mmu_lock.release_read()
            page = kvm.mm.host.alloc_page()
            kvm.mmu_lock.acquire_read()
            kvm.rcu.read_lock()
            if page is None:
                break
            cache.append(page)
            walk.yielded = True
            continue
        sp = tdp_mmu_alloc_sp(kvm, cache, walk.gfn, 1, root.role)
        done = tdp_mmu_split_huge_page(kvm, walk.sptep, walk.gfn, walk.old_spte, sp)
        if kvm_mmu_split_huge_page.on:
            kvm_mmu_split_huge_page(walk.gfn, walk.old_spte, PG_LEVEL_2M, 0 if done else -errno.EBUSY)
        if not done:
            tdp_mmu_free_sp(kvm, sp)
            walk.yielded = True
    kvm.rcu.read_unlock()


def kvm_tdp_mmu_recover_huge_pages(kvm: Kvm, slot: MemSlot) -> None:
    """Zap the tables of a slot where faults could set large leaves."""
    kvm.mmu_lock.acquire()
    kvm.rcu.read_lock()
    flush = False
    for root in tdp_mmu_roots(kvm, slot.as_id):
        walk = TdpIter(kvm, root, slot.base_gfn, slot.end_gfn, min_level=PG_LEVEL_2M)
        while walk.next():
            is_table = walk.level == PG_LEVEL_2M and walk.old_spte & _LARGE == SPTE_MMU_PRESENT
            if is_table and slot.base_gfn <= walk.gfn and is_lpage_possible(kvm, slot, walk.gfn):
                tdp_mmu_set_spte(kvm, walk.sptep, walk.gfn, PG_LEVEL_2M, 0)
                flush = True
    if flush:
        kvm.flush_remote_tlbs()
    kvm.rcu.read_unlock()
    kvm.mmu_lock.release()
