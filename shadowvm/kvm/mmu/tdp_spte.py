"""Changes of entries in two-dimensional tables, and the bookkeeping of each (handle_changed_spte of tdp_mmu.c).

With mmu_lock held for read, or none, an entry changes by compare-and-exchange: another task may have been there first.
With mmu_lock held for write it is stored. Either way handle_changed_spte() counts leaves and tears down tables that
have lost their link. Everybody here is an RCU reader: a table goes back to the host when those who may still look at it
have passed, and whoever unlinked it flushes the TLBs before it ends its own read-side section (invariant I18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import events
from ...addr import PAGE_SHIFT, Gfn
from ...errors import ModelBug
from ...mm.page_alloc import put_page
from ...x86 import PT_ADDR_MASK, PT_DIRTY, PT_NX, PT_PAGE_SIZE
from .role import ROLE_LEVEL, ROLE_SMM_SHIFT
from .shadow import KvmMmuPage, unaccount_nx_huge_page
from .spte import (
    FROZEN_SPTE,
    SPTE_MMU_PRESENT,
    check_spte_writable_invariants,
    make_nonleaf_spte,
    spte_pfn,
)

if TYPE_CHECKING:
    from ...mm.page_alloc import Page
    from ..vm import Kvm


def tdp_mmu_alloc_sp(kvm: Kvm, cache: list[Page], gfn: Gfn, level: int, role: int) -> KvmMmuPage:
    """A table of `level` that begins at `gfn`, empty and not linked; `role` is that of its root.

    Its frame is from `cache`. It is known from here on: as soon as it is linked another task may unlink it, and must
    find it.
    """
    page = cache.pop()
    kvm.mm.host.ram.zero_page(page.pfn)
    sp = KvmMmuPage(page, gfn, role & ~ROLE_LEVEL | level, kvm.mmu_valid_gen)
    page.private = sp
    kvm.mm.host.vmstat.nr_sec_page_table_pages += 1
    kvm.sp_by_pfn[sp.pfn] = sp
    return sp


def tdp_mmu_free_sp(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Give a table's frame back to the host."""
    host = kvm.mm.host
    del kvm.sp_by_pfn[sp.pfn]
    host.vmstat.nr_sec_page_table_pages -= 1
    sp.page.private = None
    put_page(host, sp.page)


def tdp_mmu_set_spte_atomic(kvm: Kvm, sptep: int, gfn: Gfn, level: int, old: int, new: int) -> bool:
    """Exchange an entry if it is still `old`; False if somebody was there first. `old` must not be FROZEN_SPTE."""
    if events.spte_cmpxchg.on:
        events.spte_cmpxchg(sptep * 8, old, new)
    if kvm.q[sptep] != old:
        return False
    if events.spte_change.on:
        events.spte_change(sptep * 8, old, new)
    kvm.q[sptep] = new
    handle_changed_spte(kvm, sptep, gfn, level, old, new, shared=True)
    return True


def tdp_mmu_set_spte(kvm: Kvm, sptep: int, gfn: Gfn, level: int, new: int) -> int:
    """Store an entry: mmu_lock is held for write, or the entry is the caller's. Returns what stood there."""
    old = kvm.q[sptep]
    if events.spte_change.on:
        events.spte_change(sptep * 8, old, new)
    kvm.q[sptep] = new
    handle_changed_spte(kvm, sptep, gfn, level, old, new, shared=False)
    return old


def tdp_mmu_link_sp(kvm: Kvm, sptep: int, gfn: Gfn, old: int, sp: KvmMmuPage) -> bool:
    """Link a table at an entry that is still `old`; False if somebody was there first."""
    kvm.tdp_mmu_pages += 1
    if tdp_mmu_set_spte_atomic(kvm, sptep, gfn, sp.level + 1, old, make_nonleaf_spte(sp.pfn)):
        return True
    kvm.tdp_mmu_pages -= 1
    return False


def handle_changed_spte(kvm: Kvm, sptep: int, gfn: Gfn, level: int, old: int, new: int, *, shared: bool) -> None:
    """After a store: trace, checks, statistics, and the end of a table that is linked no more.

    `shared`: others may change entries at the same time.

    Raises:
        ModelBug: a present leaf changed its frame: TLBs would hold both (invariant I19).
    """
    was_present, is_present = old & SPTE_MMU_PRESENT, new & SPTE_MMU_PRESENT
    was_leaf = was_present and (level == 1 or old & PT_PAGE_SIZE)
    is_leaf = is_present and (level == 1 or new & PT_PAGE_SIZE)
    if was_leaf and is_leaf and (old ^ new) & PT_ADDR_MASK:
        raise ModelBug(f"present leaf of gfn {gfn:#x} at level {level}: {old:#x} becomes {new:#x}")
    if events.kvm_tdp_mmu_spte_changed.on:
        events.kvm_tdp_mmu_spte_changed(_as_id(kvm, sptep), gfn, level, old, new)
    if is_leaf:
        check_spte_writable_invariants(new)
        if not was_leaf:
            _count_leaves(kvm, level, 1)
    elif was_leaf:
        _count_leaves(kvm, level, -1)
        if kvm.pml and old & PT_DIRTY:
            _log_dirty(kvm, sptep, gfn)
    if was_present and not was_leaf and (is_leaf or not is_present):
        _handle_removed_pt(kvm, kvm.sp_by_pfn[spte_pfn(old)], shared)


def _count_leaves(kvm: Kvm, level: int, change: int) -> None:
    """kvm_update_page_stats()."""
    if level == 1:
        kvm.stat.pages_4k += change
    else:
        kvm.stat.pages_2m += change


def tdp_mmu_split_huge_page(kvm: Kvm, sptep: int, gfn: Gfn, spte: int, sp: KvmMmuPage) -> bool:
    """Put the table `sp` in the place of a large leaf: 512 small ones that map the same.

    False if the leaf has changed; then `sp` is empty again. NX huge pages: what a large leaf may not, small ones may.
    """
    small = spte & ~(PT_PAGE_SIZE | PT_NX) if kvm.params.nx_huge_pages else spte & ~PT_PAGE_SIZE
    for index in range(512):
        _fill(kvm, sp.q + index, small + (index << PAGE_SHIFT))
    # The books of leaves have them from here on, as if they were linked.
    kvm.stat.pages_4k += 512
    if tdp_mmu_link_sp(kvm, sptep, gfn, spte, sp):
        return True
    kvm.stat.pages_4k -= 512
    for index in range(512):
        _fill(kvm, sp.q + index, 0)
    return False


def _fill(kvm: Kvm, sptep: int, new: int) -> None:
    """Store an entry of a table that nobody else knows of."""
    if events.spte_change.on:
        events.spte_change(sptep * 8, kvm.q[sptep], new)
    kvm.q[sptep] = new


def _as_id(kvm: Kvm, sptep: int) -> int:
    """kvm_mmu_page_as_id() of the table that an entry stands in."""
    return kvm.sp_by_pfn[sptep >> 9].role >> ROLE_SMM_SHIFT


def _log_dirty(kvm: Kvm, sptep: int, gfn: Gfn) -> None:
    """A leaf goes with its D bit: what it says belongs into the log."""
    slot = kvm.address_spaces[_as_id(kvm, sptep)].find(gfn)
    if slot is not None and slot.dirty_bitmap is not None:
        slot.dirty_bitmap.add(gfn)


def _handle_removed_pt(kvm: Kvm, sp: KvmMmuPage, shared: bool) -> None:
    """handle_removed_pt(): no entry of an unlinked table may become present again, whoever still stands in it."""
    kvm.tdp_mmu_pages -= 1
    sp.invalid = True
    if sp.nx_huge_page_disallowed:
        unaccount_nx_huge_page(kvm, sp)
    level, q = sp.level, kvm.q
    for index in range(512):
        sptep = sp.q + index
        old = q[sptep]
        if not shared and not old & SPTE_MMU_PRESENT:
            continue
        while old == FROZEN_SPTE:
            # Somebody is between freezing this entry and what he puts there instead.
            kvm.mm.host.sched.preempt()
            old = q[sptep]
        if events.spte_change.on:
            events.spte_change(sptep * 8, old, FROZEN_SPTE)
        q[sptep] = FROZEN_SPTE
        handle_changed_spte(kvm, sptep, sp.gfn_of(index), level, old, FROZEN_SPTE, shared=shared)
    kvm.rcu.call_rcu(lambda: tdp_mmu_free_sp(kvm, sp))


def gfn_and_level(kvm: Kvm, sptep: int) -> tuple[Gfn, int]:
    """What an entry of a live table covers: its first gfn, and its level."""
    sp = kvm.sp_by_pfn[sptep >> 9]
    return sp.gfn_of(sptep & 511), sp.level
