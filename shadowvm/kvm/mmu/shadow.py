"""Shadow pages: their life from allocation to zap (struct kvm_mmu_page and its functions in mmu.c).

A shadow page stands for one guest page table (or, if `direct`, for a piece of a large guest page) under one role.
It lives in a frame of host RAM that the CPU's walker reads. While it lives, the guest table it shadows is
write-tracked. All of this runs under kvm.mmu_lock, but for topping up the caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import events
from ...addr import Gfn, Pfn
from ...errors import ModelBug
from ...mm.page_alloc import put_page
from ...x86 import PT_PAGE_SIZE
from .page_track import account_shadowed, unaccount_shadowed
from .rmap import drop_spte
from .role import role_level, role_text, unpack_role
from .spte import SPTE_MMIO, SPTE_MMU_PRESENT, make_nonleaf_spte, mmu_spte_clear, mmu_spte_set, spte_pfn
from .sync_spte import kvm_sync_page
from .unsync import clear_unsync_child_bit, kvm_unlink_unsync_page, mark_unsync, mmu_unsync_walk

if TYPE_CHECKING:
    from ...mm.page_alloc import Page
    from ..vcpu import Vcpu
    from ..vm import Kvm

KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MMU_PAGES_DIVISOR = 50
KVM_MIN_FREE_MMU_PAGES = 5
KVM_REFILL_PAGES = 25
CACHE_OBJECTS = 8
"""Shadow pages that one fault may need: three levels below the root for the guest's tables, and direct ones."""


class KvmMmuPage:
    """One shadow page.

    q: index of its first entry in ram.q. parent_ptes: spteps that link it. gfns: gfn per entry, of a leaf table that
    is indirect or made while A20 is closed, and of any indirect page with large sptes; others compute it. root_count:
    vCPU roots that use it.
    mmu_valid_gen: the VM's when it was made; see zap_all.py. nx_huge_page_disallowed: it stands where a large spte
    would, because the guest executes there; see nx_huge_page.py. scheduled_to_zap: a root of the TDP MMU that is
    invalid and not empty yet. unsync: see unsync.py; unsync_child_bitmap has a bit for each entry behind which there is
    an unsync page, unsync_children counts them.
    """

    __slots__ = (
        "access",
        "direct",
        "gfn",
        "gfns",
        "invalid",
        "level",
        "mmu_valid_gen",
        "nx_huge_page_disallowed",
        "page",
        "parent_ptes",
        "pfn",
        "pkey",
        "q",
        "role",
        "root_count",
        "scheduled_to_zap",
        "unsync",
        "unsync_child_bitmap",
        "unsync_children",
        "write_flooding_count",
    )

    def __init__(self, page: Page, gfn: Gfn, role: int, mmu_valid_gen: int) -> None:
        fields = unpack_role(role)
        self.page = page
        self.pfn: Pfn = page.pfn
        self.q = page.pfn << 9
        self.gfn = gfn
        self.role = role
        self.level = fields.level
        self.direct = fields.direct
        self.access = fields.access
        computed = fields.level > 1 or (fields.direct and not fields.a20_closed)
        self.gfns: list[Gfn] = [] if computed else [gfn] * 512
        self.pkey = fields.pkey
        self.parent_ptes: dict[int, None] = {}
        self.root_count = 0
        self.mmu_valid_gen = mmu_valid_gen
        self.write_flooding_count = 0
        self.nx_huge_page_disallowed = False
        self.invalid = self.scheduled_to_zap = self.unsync = False
        self.unsync_children = self.unsync_child_bitmap = 0

    def note_gfn(self, index: int, gfn: Gfn) -> None:
        """A large spte is set: an indirect page cannot compute its gfn."""
        if not self.direct:
            if not self.gfns:
                self.gfns = [gfn] * 512
            self.gfns[index] = gfn

    def gfn_of(self, index: int) -> Gfn:
        """The guest frame that entry `index` maps or begins at: kvm_mmu_page_get_gfn()."""
        if self.gfns:
            return self.gfns[index]
        return Gfn(self.gfn + (index << 9 * (self.level - 1)))


def mmu_topup_memory_caches(vcpu: Vcpu) -> bool:
    """Have pages at hand before mmu_lock is taken, since allocation may reclaim. False: out of memory."""
    cache = vcpu.mmu_shadow_page_cache
    host = vcpu.kvm.mm.host
    while len(cache) < CACHE_OBJECTS:
        page = host.alloc_page()
        if page is None:
            return False
        cache.append(page)
    return True


def kvm_mmu_get_shadow_page(vcpu: Vcpu, gfn: Gfn, role: int) -> tuple[KvmMmuPage, bool]:
    """The shadow page of (gfn, role), and whether it was made just now."""
    sp = _find_shadow_page(vcpu, gfn, role)
    created = sp is None
    if sp is None:
        sp = _alloc_shadow_page(vcpu.kvm, vcpu.mmu_shadow_page_cache, gfn, role)
    if events.kvm_mmu_get_page.on:
        events.kvm_mmu_get_page(sp.mmu_valid_gen, gfn, role_text(role), sp.root_count, sp.unsync, created)
    return sp, created


def _find_shadow_page(vcpu: Vcpu, gfn: Gfn, role: int) -> KvmMmuPage | None:
    """kvm_mmu_find_shadow_page(): what is found is up to date, though it may stay unsync.

    Where an upper level is asked for the guest has probably done with its leaf table; an unsync page of it goes, since
    the guest may not write the table any more.
    """
    kvm = vcpu.kvm
    found = None
    for sp in kvm.page_hash.get(gfn, ()):
        if sp.role == role and not is_obsolete_sp(kvm, sp):
            found = sp
    if not kvm.stat.mmu_unsync:
        return found
    invalid_list: list[KvmMmuPage] = []
    if role_level(role) > 1:
        for sp in [each for each in kvm.page_hash.get(gfn, ()) if each.unsync]:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    elif found is not None and found.unsync:
        flush = kvm_sync_page(vcpu, found)
        if flush < 0:
            kvm_mmu_prepare_zap_page(kvm, found, invalid_list)
            found = None
        elif flush:
            kvm.flush_remote_tlbs()
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return found


def get_direct_shadow_page(kvm: Kvm, cache: list[Page], gfn: Gfn, role: int) -> KvmMmuPage:
    """The direct shadow page of (gfn, role), for no vCPU in particular; a new one takes its frame from `cache`."""
    for sp in kvm.page_hash.get(gfn, ()):
        if sp.role == role and not is_obsolete_sp(kvm, sp):
            return sp
    sp = _alloc_shadow_page(kvm, cache, gfn, role)
    if events.kvm_mmu_get_page.on:
        events.kvm_mmu_get_page(sp.mmu_valid_gen, gfn, role_text(role), 0, False, True)
    return sp


def is_obsolete_sp(kvm: Kvm, sp: KvmMmuPage) -> bool:
    """Whether a page was zapped, or is going to be by kvm_mmu_zap_all_fast(): it is not to be used any more."""
    return sp.invalid or sp.mmu_valid_gen != kvm.mmu_valid_gen


def _alloc_shadow_page(kvm: Kvm, cache: list[Page], gfn: Gfn, role: int) -> KvmMmuPage:
    kvm.stat.mmu_cache_miss += 1
    page = cache.pop()
    kvm.mm.host.ram.zero_page(page.pfn)
    sp = KvmMmuPage(page, gfn, role, kvm.mmu_valid_gen)
    page.private = sp
    kvm.mm.host.vmstat.nr_sec_page_table_pages += 1
    kvm.sp_by_pfn[sp.pfn] = sp
    kvm.active_mmu_pages[sp.pfn] = sp
    bucket = kvm.page_hash.setdefault(gfn, [])
    bucket.append(sp)
    kvm.stat.max_mmu_page_hash_collisions = max(kvm.stat.max_mmu_page_hash_collisions, len(bucket) - 1)
    if not sp.direct:
        account_shadowed(kvm, sp)
    return sp


def link_shadow_page(kvm: Kvm, sptep: int, sp: KvmMmuPage) -> None:
    """Point an empty entry at a lower shadow page."""
    sp.parent_ptes[sptep] = None
    if sp.unsync or sp.unsync_children:
        mark_unsync(kvm, sptep)
    mmu_spte_set(kvm, sptep, make_nonleaf_spte(sp.pfn))


def mmu_page_zap_pte(kvm: Kvm, sp: KvmMmuPage, index: int) -> bool:
    """Clear one entry of a shadow page, leaf or link. True if it was present: the caller flushes."""
    sptep = sp.q + index
    spte = kvm.q[sptep]
    if not spte & SPTE_MMU_PRESENT:
        if spte & SPTE_MMIO:
            mmu_spte_clear(kvm, sptep)
        return False
    if sp.level == 1 or spte & PT_PAGE_SIZE:
        drop_spte(kvm, sptep)
    else:
        child = kvm.sp_by_pfn[spte_pfn(spte)]
        del child.parent_ptes[sptep]
        kvm.link_generation += 1
        clear_unsync_child_bit(sp, index)
        mmu_spte_clear(kvm, sptep)
    return True


def kvm_mmu_prepare_zap_page(kvm: Kvm, sp: KvmMmuPage, invalid_list: list[KvmMmuPage]) -> bool:
    """Unlink a shadow page; it is freed by kvm_mmu_commit_zap_page(), after a flush.

    A root in use stays allocated, marked invalid, until every vCPU has dropped it. Returns whether it was listed.
    """
    kvm.mmu_lock.assert_held_write()
    if events.kvm_mmu_prepare_zap_page.on:
        events.kvm_mmu_prepare_zap_page(sp.mmu_valid_gen, sp.gfn, role_text(sp.role), sp.root_count, sp.unsync)
    if sp.invalid:
        return False
    kvm.stat.mmu_shadow_zapped += 1
    if sp.unsync_children:
        for child in mmu_unsync_walk(kvm, sp):
            kvm_mmu_prepare_zap_page(kvm, child, invalid_list)
    if sp.nx_huge_page_disallowed:
        unaccount_nx_huge_page(kvm, sp)
    # Not numpy, which would cost every start 10 MiB and half of its time.
    for index in [i for i, entry in enumerate(kvm.q[sp.q : sp.q + 512].tolist()) if entry]:
        mmu_page_zap_pte(kvm, sp, index)
    kvm.link_generation += 1
    for sptep in sp.parent_ptes:
        clear_unsync_child_bit(kvm.sp_by_pfn[sptep >> 9], sptep & 511)
        mmu_spte_clear(kvm, sptep)
    sp.parent_ptes.clear()
    if sp.unsync:
        kvm_unlink_unsync_page(kvm, sp)
    if not sp.direct:
        unaccount_shadowed(kvm, sp)
    del kvm.active_mmu_pages[sp.pfn]
    _unhash(kvm, sp)
    sp.invalid = True
    if sp.root_count:
        # It is on no list whose commit would flush; what hung below it is gone all the same (I16). The request comes
        # first: at the flush another vCPU may run, and must not enter with this root.
        kvm.request_free_obsolete_roots()
        kvm.flush_remote_tlbs()
        return False
    invalid_list.append(sp)
    return True


def unaccount_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """The page goes, or is none of those any more that nx_huge_page.py may zap for a large spte to come back."""
    sp.nx_huge_page_disallowed = False
    if kvm.possible_nx_huge_pages.pop(sp.pfn, None) is not None:
        kvm.stat.nx_lpage_splits -= 1


def _unhash(kvm: Kvm, sp: KvmMmuPage) -> None:
    bucket = kvm.page_hash[sp.gfn]
    bucket.remove(sp)
    if not bucket:
        del kvm.page_hash[sp.gfn]


def kvm_mmu_commit_zap_page(kvm: Kvm, invalid_list: list[KvmMmuPage]) -> None:
    """Flush every TLB, then free the shadow pages of a list (invariant I18)."""
    if not invalid_list:
        return
    kvm.flush_remote_tlbs()
    for sp in invalid_list:
        kvm_mmu_free_shadow_page(kvm, sp)
    invalid_list.clear()


def kvm_mmu_free_shadow_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Give a zapped shadow page's frame back to the host."""
    if not sp.invalid or sp.root_count or sp.parent_ptes:
        raise ModelBug(f"shadow page of gfn {sp.gfn:#x} freed while in use")
    host = kvm.mm.host
    del kvm.sp_by_pfn[sp.pfn]
    host.vmstat.nr_sec_page_table_pages -= 1
    sp.page.private = None
    put_page(host, sp.page)


def make_mmu_pages_available(vcpu: Vcpu) -> bool:
    """Recycle the oldest shadow pages when the limit is near. False: all are roots in use."""
    kvm = vcpu.kvm
    available = kvm.n_max_mmu_pages - len(kvm.active_mmu_pages)
    if available >= KVM_MIN_FREE_MMU_PAGES:
        return True
    kvm_mmu_zap_oldest_mmu_pages(kvm, KVM_REFILL_PAGES - available)
    return kvm.n_max_mmu_pages > len(kvm.active_mmu_pages)


def kvm_mmu_change_mmu_pages(kvm: Kvm, goal: int) -> None:
    """Set the limit, and zap the oldest shadow pages until it is kept, roots in use aside."""
    kvm.mmu_lock.acquire()
    excess = len(kvm.active_mmu_pages) - goal
    if excess > 0:
        kvm_mmu_zap_oldest_mmu_pages(kvm, excess)
    kvm.n_max_mmu_pages = goal
    kvm.mmu_lock.release()


def kvm_mmu_zap_oldest_mmu_pages(kvm: Kvm, nr_to_zap: int) -> int:
    """Zap from the front of the FIFO, sparing roots in use; returns how many went."""
    victims = []
    for sp in kvm.active_mmu_pages.values():
        if not sp.root_count:
            victims.append(sp)
            if len(victims) == nr_to_zap:
                break
    invalid_list: list[KvmMmuPage] = []
    for sp in victims:
        kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    kvm.stat.mmu_recycled += len(invalid_list)
    kvm_mmu_commit_zap_page(kvm, invalid_list)
    return len(victims)
