"""The spte fault: from the CPU's failed walk to a present spte (mmu.c and paging_tmpl.h, FNAME(page_fault)).

    walk the guest's tables -> memslot -> sample mmu_invalidate_seq -> get_user_pages -> mmu_lock
        -> still valid? -> build the levels of the shadow table (fetch) -> leaf spte, rmap

The order of the sample and the host page table read, and the check under mmu_lock, are the retry protocol
(invariants I10-I15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gva, Pfn, Vpn
from ...events import kvm_faultin_pfn, kvm_mmu_seq_sample, kvm_mmu_set_spte, kvm_mmu_spte_requested, spte_change
from ...mm.fault import VmFault
from ...mm.gup import get_user_page, get_user_page_fast
from ...mm.page_alloc import Page, put_page
from ...x86 import (
    CR0_WP,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_WRITE,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_PAGE_SIZE,
    PT_WRITABLE,
)
from ..apf import kvm_can_do_async_pf
from ..async_pf import kvm_try_async_pf
from ..hva_to_pfn import hva_to_pfn_remapped, page_of_nobody
from ..memslot import KVM_MEM_UNCACHED, KVM_MEMSLOT_INVALID
from ..vm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, KVM_REQ_MMU_RELOAD
from .guest_walker import NONPAGING_LEVEL, protect_clean_gpte, read_gpte32, walk_addr
from .large_spte import mmu_set_large_spte, wants_large_spte
from .leaf_walk import walk_leaf
from .mmio_fault import mark_mmio_spte
from .mmio_spte import KVM_PFN_NOSLOT
from .nx_huge_page import account_nx_huge_page
from .paging_mode import PT32
from .prefetch import pte_prefetch
from .rmap import drop_spte, rmap_add
from .role import pack_role
from .shadow import (
    CACHE_OBJECTS,
    KVM_MIN_FREE_MMU_PAGES,
    KvmMmuPage,
    kvm_mmu_get_shadow_page,
    link_shadow_page,
    make_mmu_pages_available,
    mmu_page_zap_pte,
    mmu_topup_memory_caches,
)
from .spte import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    RET_PF_CONTINUE,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    SPTE_MMU_PRESENT,
    SPTE_MMU_WRITABLE,
    RetPf,
    kvm_handle_error_pfn,
    make_spte,
)
from .sync import mmu_sync_children
from .unsync import mmu_try_to_unsync_pages

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vcpu import Vcpu
    from ..vm import Kvm

_LINK = SPTE_MMU_PRESENT | PT_PAGE_SIZE
"""The bits that tell a link to a shadow page: present, and not large."""

_LEVELS_BELOW = tuple(tuple((level, 12 + 9 * level) for level in range(root - 1, 0, -1)) for root in range(6))
"""Levels to build under a root page of each level, topmost first; how far to shift an address for the link to it."""
_NOT_OF_ACCESS = PFERR_PRESENT | PFERR_RSVD
NO_PAGE = Page(Pfn(KVM_PFN_NOSLOT))
"""What a fault finds where no slot is."""
_ROOT_REQUESTS = KVM_REQ_MMU_FREE_OBSOLETE_ROOTS | KVM_REQ_MMU_RELOAD


class KvmPageFault:
    """One fault on its way (struct kvm_page_fault); a vCPU reuses one record."""

    __slots__ = (
        "access",
        "addr",
        "error_code",
        "gfn",
        "goal_level",
        "huge_page_disallowed",
        "map_writable",
        "max_level",
        "mmu_seq",
        "page",
        "prefetch",
        "req_level",
        "slot",
    )

    addr: Gva
    error_code: int
    access: int
    """Rights the leaf is to get, as ACC_*."""
    gfn: Gfn
    slot: MemSlot
    page: Page
    map_writable: bool
    mmu_seq: int
    max_level: int
    """Of the page that the guest maps."""
    req_level: int
    """Of the page that slot and host would allow."""
    goal_level: int
    """Of the spte to set."""
    huge_page_disallowed: bool
    """The fetch that it is must not get a large spte (nx_huge_pages)."""
    prefetch: bool
    """Nobody waits for this access: it is made for one to come."""

    def __init__(self) -> None:
        self.prefetch = False


def kvm_mmu_page_fault(vcpu: Vcpu, gva: Gva, error_code: int) -> RetPf:
    """Handle the CPU's page fault at `gva` (hardware error code: P, W, U, F).

    FIXED, SPURIOUS or RETRY: run the instruction again. WRITE_PROTECTED: the store must be emulated. GUEST: inject
    #PF(vcpu.walker.error_code). EMULATE: no memory behind the gfn, or a store to read-only memory: a device is there.
    ENOMEM/EFAULT: the host failed.
    """
    stat = vcpu.stat
    stat.pf_taken += 1
    pferr = error_code & ~_NOT_OF_ACCESS
    if not walk_leaf(vcpu, gva, pferr):
        ret = walk_addr(vcpu, gva, pferr)
        if ret is not RET_PF_CONTINUE:
            return ret
    walker = vcpu.walker
    gfn = walker.gfn
    slot = vcpu.slot
    if not slot.base_gfn <= gfn < slot.end_gfn:
        found = vcpu.memslots.find(gfn)
        if found is None:
            stat.pf_emulate += 1
            return kvm_handle_noslot_fault(vcpu, gva, error_code)
        if found.flags & KVM_MEM_UNCACHED:
            if found.flags & KVM_MEMSLOT_INVALID:
                return RET_PF_RETRY
            if error_code & PFERR_WRITE:
                stat.pf_emulate += 1
                return RetPf.EMULATE
            slot = found
        else:
            slot = vcpu.slot = found
    write = error_code & PFERR_WRITE
    if write and error_code & PFERR_PRESENT and gfn in slot.gfn_write_track:
        stat.pf_emulate += 1
        return RET_PF_WRITE_PROTECTED
    fault = vcpu.fault
    fault.addr = gva
    fault.error_code = error_code
    fault.gfn = gfn
    fault.slot = slot
    access = walker.pte_access if write else protect_clean_gpte(walker)
    if not access & ACC_WRITE_MASK and not vcpu.cr0 & CR0_WP:
        access = _cr0_wp_clear_access(vcpu, access, write)
        if access < 0:
            stat.pf_emulate += 1
            return RET_PF_WRITE_PROTECTED
    fault.access = access
    fault.huge_page_disallowed = False
    ret = _map(vcpu, fault)
    if ret is RET_PF_FIXED:
        stat.pf_fixed += 1
    elif ret is RET_PF_SPURIOUS:
        stat.pf_spurious += 1
    elif ret is RET_PF_WRITE_PROTECTED:
        stat.pf_emulate += 1
    return ret


def kvm_handle_noslot_fault(vcpu: Vcpu, gva: Gva, error_code: int) -> RetPf:
    """No memory is at the frame of the walk: EMULATE, and remember it. RETRY, ENOMEM as for any fault."""
    kvm, walker, fault = vcpu.kvm, vcpu.walker, vcpu.fault
    write = error_code & PFERR_WRITE
    access = walker.pte_access if write else protect_clean_gpte(walker)
    if not access & ACC_WRITE_MASK and not vcpu.cr0 & CR0_WP:
        access = _cr0_wp_clear_access(vcpu, access, write)
    if not kvm.params.mmio_caching or access < 0:
        return RetPf.EMULATE
    fault.addr, fault.error_code, fault.gfn, fault.access = gva, error_code, walker.gfn, access
    fault.page, fault.mmu_seq = NO_PAGE, kvm.mmu_invalidate_seq
    fault.huge_page_disallowed = False
    if len(vcpu.mmu_shadow_page_cache) < CACHE_OBJECTS and not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    kvm.mmu_lock.acquire()
    if is_page_fault_stale(vcpu, fault):
        ret = RET_PF_RETRY
    else:
        ret = fetch(vcpu, fault) if make_mmu_pages_available(vcpu) else RetPf.ENOMEM
    kvm.mmu_lock.release()
    return ret


def _cr0_wp_clear_access(vcpu: Vcpu, access: int, write: int) -> int:
    """Rights for the leaf of a page that is read-only (or clean) while CR0.WP = 0 lets the supervisor store to it.

    A supervisor page that is dirty gets W, be it read or written: an instruction may do both to one large page. It
    keeps X, since its own code may be what stores there. A user page gets W for a store, and loses U and under SMEP
    X. Negative: emulate the store instead. Under SMAP or protection keys an spte without U would let through what they
    refuse, and in a large page one instruction may need U here and W there.

    Below a large page that has a shadow already the guest's entry has not been read: the rights of that shadow are
    what a whole walk came to, and a store that they do not allow made one.
    """
    walker = vcpu.walker
    if walker.level == NONPAGING_LEVEL:
        return access
    if not access & ACC_USER_MASK:
        return access | ACC_WRITE_MASK if walker.ptes[walker.level] & PT_DIRTY else access
    if not write:
        return access
    if vcpu.cr4 & (CR4_SMAP | CR4_PKE) or walker.level > 1:
        return -1
    access = (access | ACC_WRITE_MASK) & ~ACC_USER_MASK
    return access & ~ACC_EXEC_MASK if vcpu.cr4 & CR4_SMEP else access


def _map(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """Get the frame, then install the spte under mmu_lock if nothing was invalidated meanwhile."""
    kvm = vcpu.kvm
    if len(vcpu.mmu_shadow_page_cache) < CACHE_OBJECTS and not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    ret = kvm_mmu_faultin_pfn(vcpu, fault)
    if ret is not RET_PF_CONTINUE:
        return ret
    kvm.mmu_lock.acquire()
    if is_page_fault_stale(vcpu, fault):
        ret = RET_PF_RETRY
    elif kvm.n_max_mmu_pages - len(kvm.active_mmu_pages) < KVM_MIN_FREE_MMU_PAGES and not make_mmu_pages_available(
        vcpu
    ):
        ret = RetPf.ENOMEM
    else:
        ret = fetch(vcpu, fault)
    kvm.mmu_lock.release()
    put_page(kvm.mm.host, fault.page)
    return ret


def kvm_mmu_faultin_pfn(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """Sample the invalidation sequence, then get a reference on the frame behind the gfn (__kvm_faultin_pfn).

    RETRY: the page takes I/O, and a worker brings it (async_pf.py). EINTR: it takes I/O, and a signal is pending.

    A read fault on an entry that allows writing asks for a writable frame first, so that the store to come needs
    no second fault.
    """
    kvm = vcpu.kvm
    fault.mmu_seq = kvm.mmu_invalidate_seq
    if kvm_mmu_seq_sample.on:
        kvm_mmu_seq_sample(vcpu.id, fault.gfn, fault.mmu_seq)
    slot = fault.slot
    vpn = slot.vpn(fault.gfn)
    write = fault.error_code & PFERR_WRITE != 0
    page = get_user_page_fast(kvm.mm, vpn, True) if fault.access & slot.write_mask else None
    fault.map_writable = page is not None
    if page is None:
        slow = get_user_page(kvm.mm, vpn, write, nowait=kvm.params.async_pf != 0)
        if slow is VmFault.RETRY:
            if not fault.prefetch and kvm_can_do_async_pf(vcpu) and kvm_try_async_pf(vcpu, fault):
                return RET_PF_RETRY
            if kvm.paused:
                return RetPf.EINTR
            slow = get_user_page(kvm.mm, vpn, write)
        if slow is VmFault.SIGSEGV:
            return _faultin_remapped(vcpu, fault, vpn)
        if isinstance(slow, VmFault):
            return kvm_handle_error_pfn(slow)
        page = slow
        fault.map_writable = write
    fault.page = page
    if kvm_faultin_pfn.on:
        kvm_faultin_pfn(vcpu.id, fault.gfn, page.pfn, write)
    return RET_PF_CONTINUE


def _faultin_remapped(vcpu: Vcpu, fault: KvmPageFault, vpn: Vpn) -> RetPf:
    """kvm_mmu_faultin_pfn() where get_user_pages finds no page: a device, or nothing. EMULATE: a store to its ROM."""
    write = fault.error_code & PFERR_WRITE != 0
    found = hva_to_pfn_remapped(vcpu.kvm.mm, vpn, write)
    if isinstance(found, VmFault):
        return kvm_handle_error_pfn(found)
    if write and not found.writable:
        vcpu.stat.pf_emulate += 1
        return RET_PF_EMULATE
    fault.map_writable = found.writable
    fault.page = page_of_nobody(found)
    if kvm_faultin_pfn.on:
        kvm_faultin_pfn(vcpu.id, fault.gfn, found.pfn, write)
    return RET_PF_CONTINUE


def is_page_fault_stale(vcpu: Vcpu, fault: KvmPageFault) -> bool:
    """Under mmu_lock: whether the frame may have been taken away, or the root, since the fault began."""
    kvm = vcpu.kvm
    root = vcpu.root
    if root is None or vcpu.requests & _ROOT_REQUESTS:
        return True
    page = root.pages[0]
    if page is not None and page.mmu_valid_gen != kvm.mmu_valid_gen:
        return True
    return mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, fault.gfn)


def mmu_invalidate_retry_gfn(kvm: Kvm, mmu_seq: int, gfn: Gfn) -> bool:
    """An invalidation of this gfn is in progress, or one has ended since `mmu_seq` was sampled."""
    if kvm.mmu_invalidate_in_progress and kvm.mmu_invalidate_range_start <= gfn < kvm.mmu_invalidate_range_end:
        return True
    return kvm.mmu_invalidate_seq != mmu_seq


def fetch(vcpu: Vcpu, fault: KvmPageFault) -> RetPf:
    """Build the shadow levels down to the leaf's and set it (FNAME(fetch)). Under mmu_lock.

    An existing child is reused only if it shadows the very table, with the very rights, of the walk just made.
    """
    kvm = vcpu.kvm
    q, sp_by_pfn = kvm.q, kvm.sp_by_pfn
    walker = vcpu.walker
    table_gfns, access_to, leaf_level = walker.table_gfn, walker.access_to, walker.level
    gva = fault.addr
    root = vcpu.root
    assert root is not None, "is_page_fault_stale has seen a root"
    if walker.leaf_page is not None:
        return _fetch_leaf(vcpu, fault, walker.leaf_page)
    sp = root.pages[0 if root.pae_page is None else gva >> 30 & 3]
    assert sp is not None, "the walk has found the guest's page directory"
    for level, shift in _LEVELS_BELOW[sp.level]:
        sptep = sp.q + (gva >> shift & 511)
        spte = q[sptep]
        direct = level < leaf_level
        if direct:
            if level == 1 and kvm.mm.huge_pmds and wants_large_spte(vcpu, fault, spte):
                return RET_PF_RETRY if gpte_changed(vcpu, leaf_level) else mmu_set_large_spte(vcpu, fault, sp)
            table_gfn = Gfn(fault.gfn & -1 << 9 * level)
            access = fault.access
        else:
            table_gfn = table_gfns[level]
            access = access_to[level]
        # A link has no bits above the address.
        child = sp_by_pfn[spte >> PAGE_SHIFT] if spte & _LINK == SPTE_MMU_PRESENT else None
        if (
            child is None
            or child.gfn != table_gfn
            or child.access != access
            or child.direct != direct
            or (direct and child.pkey != walker.pkey)
        ):
            child = _get_child_sp(vcpu, sp, sptep, table_gfn, _child_role(vcpu, sptep, level, access, direct))
            # The entry that is linked is protected by now, but another CPU may have changed it since the walk.
            parent = leaf_level if direct else level + 1
            if gpte_changed(vcpu, parent) or (not direct and gpte_changed(vcpu, level)):
                return RET_PF_RETRY
            if child.unsync_children and not mmu_sync_children(vcpu, child):
                return RET_PF_RETRY
            link_shadow_page(kvm, sptep, child)
            if level == 1 and direct and fault.huge_page_disallowed:
                account_nx_huge_page(kvm, child, fault.req_level > 1)
        child.write_flooding_count = 0
        sp = child
    if gpte_changed(vcpu, leaf_level):
        return RET_PF_RETRY
    ret = mmu_set_spte(vcpu, fault, sp)
    if ret is RET_PF_FIXED and kvm.params.prefetch:
        pte_prefetch(vcpu, sp, gva >> PAGE_SHIFT & 511)
    return ret


def _fetch_leaf(vcpu: Vcpu, fault: KvmPageFault, sp: KvmMmuPage) -> RetPf:
    """fetch() after walk_leaf(): the links are there as long as none was cut since the exit."""
    if vcpu.kvm.link_generation != vcpu.link_generation or gpte_changed(vcpu, vcpu.walker.level):
        return RET_PF_RETRY
    sp.write_flooding_count = 0
    ret = mmu_set_spte(vcpu, fault, sp)
    if ret is RET_PF_FIXED and vcpu.kvm.params.prefetch:
        pte_prefetch(vcpu, sp, fault.addr >> PAGE_SHIFT & 511)
    return ret


def _child_role(vcpu: Vcpu, sptep: int, level: int, access: int, direct: bool) -> int:
    """kvm_mmu_child_role(): the two halves of a 32-bit guest's page table are linked from neighbouring entries."""
    quadrant = sptep & 1 if vcpu.mode is PT32 and not direct else 0
    return pack_role(vcpu.cpu_role, level, access, direct, quadrant, vcpu.walker.pkey if direct else 0)


def _get_child_sp(vcpu: Vcpu, parent: KvmMmuPage, sptep: int, table_gfn: Gfn, role: int) -> KvmMmuPage:
    """kvm_mmu_get_child_sp(): the page to link at `sptep`, which is emptied first if it links another."""
    kvm = vcpu.kvm
    if mmu_page_zap_pte(kvm, parent, sptep & 511):
        kvm.flush_remote_tlbs()
    return kvm_mmu_get_shadow_page(vcpu, table_gfn, role)[0]


def gpte_changed(vcpu: Vcpu, level: int) -> bool:
    """Whether the guest entry of `level` differs from what the walk read, or its page has gone meanwhile."""
    if level == NONPAGING_LEVEL:
        return False
    walker = vcpu.walker
    table_gfn = walker.table_gfn[level]
    slot = vcpu.slot
    if not slot.base_gfn <= table_gfn < slot.end_gfn:
        found = vcpu.memslots.find(table_gfn)
        if found is None:
            return True
        slot = found
    kvm = vcpu.kvm
    base = kvm.mm.tlb.get(table_gfn + slot.vpn_delta)
    if base is None:
        return True
    if vcpu.mode is PT32:
        return read_gpte32(vcpu, table_gfn, vcpu.fault.addr >> 2 + 10 * level & 1023) != walker.ptes[level]
    return kvm.q[base + (vcpu.fault.addr >> 3 + 9 * level & 511)] != walker.ptes[level]


def mmu_set_spte(vcpu: Vcpu, fault: KvmPageFault, sp: KvmMmuPage) -> RetPf:
    """Set the leaf in `sp`, a level 1 shadow page, and enter it in the rmap. A pfn never changes in place (I19)."""
    kvm = vcpu.kvm
    q = kvm.q
    gfn = fault.gfn
    pfn = fault.page.pfn
    index = fault.addr >> PAGE_SHIFT & 511
    if pfn < 0:
        return mark_mmio_spte(vcpu, sp, index, gfn, fault.access, vcpu.walker.pkey)
    sptep = sp.q + index
    old = q[sptep]
    if kvm_mmu_spte_requested.on:
        kvm_mmu_spte_requested(gfn, pfn, 1)
    if old & SPTE_MMU_PRESENT and ((old & PT_ADDR_MASK) >> PAGE_SHIFT != pfn or sp.gfn_of(index) != gfn):
        drop_spte(kvm, sptep)
        kvm.flush_remote_tlbs()
        old = 0
    access = fault.access
    if (
        access & ACC_WRITE_MASK
        and gfn in kvm.page_hash
        and not mmu_try_to_unsync_pages(kvm, fault.slot, gfn, prefetch=fault.prefetch)
    ):
        access &= ~ACC_WRITE_MASK
    spte = make_spte(fault.slot, access, gfn, pfn, fault.map_writable, vcpu.walker.pkey) | kvm.tdp_ad_bits
    wrprot = fault.error_code & PFERR_WRITE and not spte & SPTE_MMU_WRITABLE
    if spte == old:
        return RET_PF_WRITE_PROTECTED if wrprot else RET_PF_SPURIOUS
    if sp.gfns:
        sp.gfns[index] = gfn
    if spte & PT_WRITABLE and fault.slot.dirty_bitmap is not None:
        fault.slot.dirty_bitmap.add(gfn)
    if spte_change.on:
        spte_change(sptep * 8, old, spte)
    q[sptep] = spte
    if old & SPTE_MMU_WRITABLE and not spte & SPTE_MMU_WRITABLE:
        kvm.flush_remote_tlbs()
    if not old & SPTE_MMU_PRESENT:
        kvm.stat.pages_4k += 1
        if rmap_add(kvm, fault.slot, gfn, sptep):
            kvm.flush_remote_tlbs()
    if kvm_mmu_set_spte.on:
        kvm_mmu_set_spte(gfn, spte, sptep * 8, 1)
    return RET_PF_WRITE_PROTECTED if wrprot else RET_PF_FIXED
