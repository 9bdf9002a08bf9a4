"""The TDP MMU: two-dimensional tables, keyed by guest-physical address (arch/x86/kvm/mmu/tdp_mmu.c).

All vCPUs share one root. Faults hold mmu_lock for read and install entries by compare-and-exchange (tdp_spte.py);
invalidations hold it for write. There is no rmap: a gfn is found by walking the tables, in every root, also in those
that are invalid and wait for their end, since a vCPU may still run on one (invariant I4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn, Pfn
from ...errors import ModelBug
from ...events import kvm_mmu_get_page, kvm_mmu_set_spte, kvm_mmu_spte_requested, mark_mmio_spte
from ...x86 import PFERR_WRITE, PT_ADDR_MASK, PT_NX, PT_PAGE_SIZE
from .lpage import PG_LEVEL_2M, PG_LEVEL_4K, disallowed_hugepage_adjust, kvm_mmu_hugepage_adjust
from .mmio_spte import MMIO_SPTE_GEN_MASK, make_mmio_spte
from .nx_huge_page import account_nx_huge_page
from .role import ROLE_SMM_SHIFT, kvm_calc_tdp_mmu_root_page_role, pack_role, role_text
from .spte import (
    ACC_ALL,
    FROZEN_SPTE,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    SPTE_MMU_PRESENT,
    SPTE_MMU_WRITABLE,
    RetPf,
    is_access_allowed,
    make_spte,
)
from .tdp_iter import TdpIter, tdp_leaf
from .tdp_spte import (
    gfn_and_level,
    tdp_mmu_alloc_sp,
    tdp_mmu_free_sp,
    tdp_mmu_link_sp,
    tdp_mmu_set_spte,
    tdp_mmu_set_spte_atomic,
    tdp_mmu_split_huge_page,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..vcpu import Vcpu
    from ..vm import Kvm
    from .page_fault import KvmPageFault
    from .shadow import KvmMmuPage

_LINK = SPTE_MMU_PRESENT | PT_PAGE_SIZE
"""The bits that tell a link to a table: present, and not large."""
TDP_ROOT_LEVEL = 4
TDP_GFNS = Gfn(1 << 9 * TDP_ROOT_LEVEL)
"""As many frames as a root covers."""
TIME_SLICE = 1024
"""Entries that a walk looks at before it gives way to a task that could run, but does not wait for mmu_lock."""


# Roots.


def kvm_tdp_mmu_alloc_root(vcpu: Vcpu) -> KvmMmuPage:
    """The valid root of the vCPU's role, with a count for the vCPU. A new one has one more, which its zap drops."""
    kvm = vcpu.kvm
    role = pack_role(kvm_calc_tdp_mmu_root_page_role(kvm.ad_disabled, vcpu.smm), TDP_ROOT_LEVEL, direct=True)
    for root in kvm.tdp_mmu_roots:
        if root.role == role and not root.invalid:
            break
    else:
        root = tdp_mmu_alloc_sp(kvm, vcpu.mmu_shadow_page_cache, Gfn(0), TDP_ROOT_LEVEL, role)
        root.root_count = 1
        kvm.tdp_mmu_roots.append(root)
        if kvm_mmu_get_page.on:
            kvm_mmu_get_page(root.mmu_valid_gen, Gfn(0), role_text(root.role), 1, False, True)
    root.root_count += 1
    return root


def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage) -> None:
    """Drop a count on a root; the last one, of a root that was zapped, frees it."""
    root.root_count -= 1
    if root.root_count:
        return
    if not root.invalid or root.scheduled_to_zap:
        raise ModelBug("the last count on a root that was not zapped")
    kvm.tdp_mmu_roots.remove(root)
    kvm.rcu.call_rcu(lambda: tdp_mmu_free_sp(kvm, root))


def kvm_tdp_mmu_invalidate_roots(kvm: Kvm) -> None:
    """No fault installs anything in a root of now any more, once its vCPUs have been asked to let go of it.

    mmu_lock is held for write. kvm_tdp_mmu_zap_invalidated_roots() then empties them.
    """
    kvm.mmu_lock.assert_held_write()
    for root in kvm.tdp_mmu_roots:
        if not root.invalid:
            root.invalid = root.scheduled_to_zap = True


def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm) -> None:
    """Empty the roots that were made invalid and drop the count that kept them. Takes mmu_lock for read; may yield."""
    kvm.mmu_lock.acquire_read()
    for root in list(kvm.tdp_mmu_roots):
        if root.scheduled_to_zap:
            root.scheduled_to_zap = False
            _zap_root(kvm, root, shared=True)
            kvm_tdp_mmu_put_root(kvm, root)
    kvm.mmu_lock.release_read()


def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Empty every root, be it in use: the mm is going away. mmu_lock is held for write, and stays so."""
    for root in kvm.tdp_mmu_roots:
        _zap_root(kvm, root, shared=False)


def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """The VM's end: no vCPU has a root any more."""
    kvm.mmu_lock.acquire()
    kvm_tdp_mmu_invalidate_roots(kvm)
    kvm.mmu_lock.release()
    kvm_tdp_mmu_zap_invalidated_roots(kvm)
    if kvm.tdp_mmu_roots or kvm.tdp_mmu_pages:
        raise ModelBug(f"{len(kvm.tdp_mmu_roots)} roots and {kvm.tdp_mmu_pages} tables are left of the TDP MMU")


def _zap_root(kvm: Kvm, root: KvmMmuPage, *, shared: bool) -> None:
    """tdp_mmu_zap_root(): small pieces first, so that no step takes long; flushes. With `shared` it may yield."""
    kvm.rcu.read_lock()
    flush = False
    for zap_level in (2, root.level):
        walk = TdpIter(kvm, root, Gfn(0), TDP_GFNS, min_level=zap_level)
        while walk.next():
            if shared and tdp_mmu_iter_cond_resched(kvm, walk, flush, shared=True):
                flush = False
                continue
            if walk.level > zap_level or not walk.old_spte & SPTE_MMU_PRESENT:
                continue
            _zap_entry(kvm, walk, shared=shared)
            flush = True
    if flush:
        kvm.flush_remote_tlbs()
    kvm.rcu.read_unlock()


def _zap_entry(kvm: Kvm, walk: TdpIter, *, shared: bool) -> None:
    if not shared:
        tdp_mmu_set_spte(kvm, walk.sptep, walk.gfn, walk.level, 0)
        return
    while walk.old_spte & SPTE_MMU_PRESENT:
        if tdp_mmu_set_spte_atomic(kvm, walk.sptep, walk.gfn, walk.level, walk.old_spte, 0):
            return
        walk.old_spte = kvm.q[walk.sptep]


def tdp_mmu_iter_cond_resched(kvm: Kvm, walk: TdpIter, flush: bool, *, shared: bool) -> bool:
    """Let others have mmu_lock, if they wait for it, or the CPU, after TIME_SLICE, if the walk has come on since then.

    What was zapped so far is flushed before (invariant I16). True: it has yielded, and the walk starts anew.
    """
    lock, sched = kvm.mmu_lock, kvm.mm.host.sched
    if walk.next_last_level_gfn == walk.yielded_gfn:
        return False
    if not lock.waiters and not (sched.need_resched and walk.steps >= TIME_SLICE):
        return False
    if flush:
        kvm.flush_remote_tlbs()
    kvm.rcu.read_unlock()
    if shared:
        lock.release_read()
        sched.preempt()
        lock.acquire_read()
    else:
        lock.release()
        sched.preempt()
        lock.acquire()
    kvm.rcu.read_lock()
    walk.yielded = True
    return True


# Faults.


def kvm_tdp_mmu_map(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """Build the tables down to the fault's level and set the leaf. mmu_lock is held for read."""
    kvm = vcpu.kvm
    q, rcu = kvm.q, kvm.rcu
    gfn = fault.gfn
    assert vcpu.root is not None, "is_page_fault_stale has seen a root"
    root = vcpu.root.pages[0]
    assert root is not None, "a nested root is a table"
    table, level, shift = root.q, TDP_ROOT_LEVEL, 9 * TDP_ROOT_LEVEL - 9
    fault.goal_level = PG_LEVEL_4K
    if kvm.mm.huge_pmds:
        fault.max_level = PG_LEVEL_2M
        kvm_mmu_hugepage_adjust(vcpu, fault)
    rcu.read_lock()
    while True:
        sptep = table + (gfn >> shift & 511)
        spte = q[sptep]
        if spte == FROZEN_SPTE:
            ret = RET_PF_RETRY
            break
        if level == PG_LEVEL_2M == fault.goal_level:
            disallowed_hugepage_adjust(kvm, fault, spte, level)
        if level == fault.goal_level:
            ret = _map_target_level(vcpu, fault, sptep, spte, level)
            break
        if not spte & SPTE_MMU_PRESENT or spte & PT_PAGE_SIZE:
            if not _add_table(vcpu, fault, root, sptep, level, spte):
                ret = RET_PF_RETRY
                break
            spte = q[sptep]
        table = (spte & PT_ADDR_MASK) >> 3
        level -= 1
        shift -= 9
    rcu.read_unlock()
    return ret


def _add_table(vcpu: Vcpu, fault: KvmPageFault, root: KvmMmuPage, sptep: int, level: int, spte: int) -> bool:
    """A table below an entry of `level` that was `spte`, perhaps a large leaf; False if somebody was there first."""
    kvm = vcpu.kvm
    first = Gfn(fault.gfn >> 9 * (level - 1) << 9 * (level - 1))
    sp = tdp_mmu_alloc_sp(kvm, vcpu.mmu_shadow_page_cache, first, level - 1, root.role)
    split = spte & SPTE_MMU_PRESENT
    if not (tdp_mmu_split_huge_page if split else tdp_mmu_link_sp)(kvm, sptep, first, spte, sp):
        tdp_mmu_free_sp(kvm, sp)
        return False
    if level == PG_LEVEL_2M and kvm.mm.huge_pmds and fault.huge_page_disallowed:
        account_nx_huge_page(kvm, sp, fault.req_level >= level)
    return True


def _map_target_level(vcpu: Vcpu, fault: KvmPageFault, sptep: int, old: int, level: int) -> RetPf:
    """tdp_mmu_map_handle_target_level(): set the leaf, unless another fault did, or somebody changed the entry."""
    kvm = vcpu.kvm
    gfn = fault.gfn
    pfn = fault.page.pfn
    if pfn < 0:
        return _set_mmio_spte(vcpu, sptep, gfn, old)
    if level == PG_LEVEL_2M:
        if old & _LINK == SPTE_MMU_PRESENT:
            return _zap_table_for_leaf(kvm, sptep, Gfn(gfn & -512), old)
        gfn, pfn = Gfn(gfn & -512), Pfn(pfn & -512)
    if kvm_mmu_spte_requested.on:
        kvm_mmu_spte_requested(gfn, pfn, level)
    if old & SPTE_MMU_PRESENT and (fault.prefetch or is_access_allowed(old, fault.error_code)):
        return RET_PF_SPURIOUS
    spte = make_spte(fault.slot, fault.access, gfn, pfn, fault.map_writable) | kvm.tdp_ad_bits
    if level == PG_LEVEL_2M:
        spte |= PT_PAGE_SIZE | PT_NX if kvm.params.nx_huge_pages else PT_PAGE_SIZE
    if spte == old:
        ret = RET_PF_SPURIOUS
    elif not tdp_mmu_set_spte_atomic(kvm, sptep, gfn, level, old, spte):
        return RET_PF_RETRY
    else:
        ret = RET_PF_FIXED
        if spte & SPTE_MMU_WRITABLE and fault.slot.dirty_bitmap is not None:
            fault.slot.dirty_bitmap.add(gfn)
        elif old & SPTE_MMU_WRITABLE and not spte & SPTE_MMU_WRITABLE:
            kvm.flush_remote_tlbs()
        if kvm_mmu_set_spte.on:
            kvm_mmu_set_spte(gfn, spte, sptep * 8, level)
    if fault.error_code & PFERR_WRITE and not spte & SPTE_MMU_WRITABLE:
        return RET_PF_WRITE_PROTECTED
    return ret


def _zap_table_for_leaf(kvm: Kvm, sptep: int, gfn: Gfn, old: int) -> RetPf:
    """A large leaf is to be where a table is, which goes first, with a flush (I20); the fault is then made again.

    The entry stays frozen until the flush is asked for: no small leaf may come back in between.
    """
    if tdp_mmu_set_spte_atomic(kvm, sptep, gfn, PG_LEVEL_2M, old, FROZEN_SPTE):
        kvm.flush_remote_tlbs()
        tdp_mmu_set_spte(kvm, sptep, gfn, PG_LEVEL_2M, 0)
    return RET_PF_RETRY


def _set_mmio_spte(vcpu: Vcpu, sptep: int, gfn: Gfn, old: int) -> RetPf:
    """Enter that no memory is there. What is mapped all the same goes first, with a flush (I33)."""
    kvm = vcpu.kvm
    if old & SPTE_MMU_PRESENT:
        if tdp_mmu_set_spte_atomic(kvm, sptep, gfn, 1, old, 0):
            kvm.flush_remote_tlbs()
        return RET_PF_RETRY
    generation = vcpu.memslots.generation & MMIO_SPTE_GEN_MASK
    if mark_mmio_spte.on:
        mark_mmio_spte(sptep * 8, gfn, ACC_ALL, generation)
    if not tdp_mmu_set_spte_atomic(kvm, sptep, gfn, 1, old, make_mmio_spte(gfn, ACC_ALL, generation)):
        return RET_PF_RETRY
    vcpu.stat.pf_mmio_spte_created += 1
    return RET_PF_EMULATE


# Invalidation.


def tdp_mmu_roots(kvm: Kvm, as_id: int) -> list[KvmMmuPage]:
    """The roots of an address space, valid or not."""
    return [root for root in kvm.tdp_mmu_roots if root.role >> ROLE_SMM_SHIFT == as_id]


def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, as_id: int, first: Gfn, last: Gfn, *, may_yield: bool) -> bool:
    """Zap the leaves of a range in every root, valid or not. mmu_lock is held for write. True: the caller flushes."""
    flush = False
    for root in tdp_mmu_roots(kvm, as_id):
        root.root_count += 1
        flush = tdp_mmu_zap_leafs(kvm, root, first, last, may_yield=may_yield, flush=flush)
        kvm_tdp_mmu_put_root(kvm, root)
    return flush


def tdp_mmu_zap_leafs(kvm: Kvm, root: KvmMmuPage, first: Gfn, last: Gfn, *, may_yield: bool, flush: bool) -> bool:
    """Zap what maps [first, last) in one root; whether a flush is owed, `flush` being what the caller owes already."""
    if last - first == 1:
        sptep = tdp_leaf(kvm, root, first)
        if sptep < 0:
            return flush
        tdp_mmu_set_spte(kvm, sptep, *gfn_and_level(kvm, sptep), 0)
        return True
    kvm.rcu.read_lock()
    walk = TdpIter(kvm, root, first, last)
    while walk.next():
        if may_yield and tdp_mmu_iter_cond_resched(kvm, walk, flush, shared=False):
            flush = False
        elif walk.old_spte & SPTE_MMU_PRESENT and (walk.level == 1 or walk.old_spte & PT_PAGE_SIZE):
            tdp_mmu_set_spte(kvm, walk.sptep, walk.gfn, walk.level, 0)
            flush = True
    kvm.rcu.read_unlock()
    return flush


def tdp_leaves(kvm: Kvm, as_id: int, gfn: Gfn) -> Iterator[int]:
    """Every leaf spte, in whatever root, that maps a gfn."""
    for root in tdp_mmu_roots(kvm, as_id):
        sptep = tdp_leaf(kvm, root, gfn)
        if sptep >= 0:
            yield sptep
