"""Roots: the tables that the CPU's walker starts from, and the few that it can switch to by itself.

A guest of 4 or 5 levels has one shadow page as its root. Any other guest has a page of four PAE entries, each naming
a shadow page of level 2 (mmu_alloc_shadow_roots). The engine keeps the current root and KVM_MMU_NUM_PREV_ROOTS
former ones of the first kind, matched by CR3 (cached_root_find_*). Each holds a count on its shadow pages, so that a
zapped one stays allocated until every vCPU has let go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Hpa
from ...cpu.mailbox import KEY_CR3, ROOT
from ...mm.page_alloc import Page, put_page
from ...x86 import PT_ADDR_MASK, PT_PRESENT
from ..memslot import KVM_MEMSLOT_INVALID
from .paging_mode import TRAITS, PagingMode
from .role import A20_GFN_MASK, kvm_calc_tdp_mmu_root_page_role, pack_role, unpack_role
from .shadow import (
    KvmMmuPage,
    is_obsolete_sp,
    kvm_mmu_free_shadow_page,
    kvm_mmu_get_shadow_page,
    make_mmu_pages_available,
    mmu_topup_memory_caches,
)
from .spte import RetPf, make_nonleaf_spte
from .sync import kvm_mmu_sync_roots
from .tdp_mmu import TDP_ROOT_LEVEL, kvm_tdp_mmu_alloc_root, kvm_tdp_mmu_put_root

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from ..vm import Kvm

PAE_ROOT_LEVEL = 3
A20_GPA_MASK = ~(~A20_GFN_MASK << PAGE_SHIFT)


class Root:
    """What box[ROOT] names. pages: the one shadow page, or four of level 2, None where the guest has no table.

    pae_page: the frame with the four entries, None for a root that is a shadow page itself.
    """

    __slots__ = ("hpa", "level", "pae_page", "pages")

    def __init__(self, level: int, pages: tuple[KvmMmuPage | None, ...], pae_page: Page | None) -> None:
        self.level = level
        self.pages = pages
        self.pae_page = pae_page
        top = pages[0] if pae_page is None else pae_page
        assert top is not None, "a root that is a shadow page has that page"
        self.hpa = Hpa(top.pfn << PAGE_SHIFT)

    @property
    def invalid(self) -> bool:
        """One of its pages was zapped, so it has nothing to walk any more."""
        return any(page is not None and page.invalid for page in self.pages)


def kvm_mmu_load(vcpu: Vcpu) -> RetPf:
    """Give the CPU a root for the current CR3 and roles; CONTINUE or ENOMEM.

    Where a table lies outside of memory a dummy stands for it (kvm_mmu_get_dummy_root), so that every walk faults.
    """
    kvm = vcpu.kvm
    if not mmu_topup_memory_caches(vcpu):
        return RetPf.ENOMEM
    if kvm.tdp_mmu_enabled:
        return _load_tdp_root(vcpu)
    kvm.mmu_lock.acquire()
    if not make_mmu_pages_available(vcpu):
        kvm.mmu_lock.release()
        return RetPf.ENOMEM
    if kvm.tdp_enabled:
        _load_nested_root(vcpu, _direct_root(vcpu))
    else:
        root = _alloc_root(vcpu) if vcpu.mode >= PagingMode.PT64 else _alloc_pae_root(vcpu)
        vcpu.root = root
        vcpu.roots.append(root)
        vcpu.engine.load_root(root.hpa, vcpu.cr3, vcpu.cr0, vcpu.cr4, vcpu.efer, root.level)
        _drop_unreferenced(vcpu)
    kvm.mmu_lock.release()
    kvm_mmu_sync_roots(vcpu, vcpu.root)
    return RetPf.CONTINUE


def _load_tdp_root(vcpu: Vcpu) -> RetPf:
    lock = vcpu.kvm.mmu_lock
    lock.acquire_read()
    _load_nested_root(vcpu, kvm_tdp_mmu_alloc_root(vcpu))
    lock.release_read()
    return RetPf.CONTINUE


def _direct_root(vcpu: Vcpu) -> KvmMmuPage:
    """mmu_alloc_direct_roots(): a shadow page that stands for all guest-physical memory (tdp_mmu=0)."""
    kvm = vcpu.kvm
    role = kvm_calc_tdp_mmu_root_page_role(kvm.ad_disabled, vcpu.smm)
    page, _ = kvm_mmu_get_shadow_page(vcpu, Gfn(0), pack_role(role, TDP_ROOT_LEVEL, direct=True))
    page.root_count += 1
    return page


def _load_nested_root(vcpu: Vcpu, page: KvmMmuPage) -> None:
    """Two-dimensional paging: the vCPU has one root, whatever its registers say. What the TLB has is of another one."""
    engine, kvm = vcpu.engine, vcpu.kvm
    root = Root(TDP_ROOT_LEVEL, (page,), None)
    vcpu.root = root
    vcpu.roots.append(root)
    engine.nested.has_ad, engine.nested.gpa_mask = not kvm.ad_disabled, A20_GPA_MASK if kvm.a20_closed else -1
    engine.load_nested_root(root.hpa, root.level)
    engine.flush_tlb()


def _alloc_root(vcpu: Vcpu) -> Root:
    level = TRAITS[vcpu.mode].root_level
    page = _table_page(vcpu, vcpu.root_gfn, pack_role(vcpu.cpu_role, level))
    page.root_count += 1
    return Root(level, (page,), None)


def _table_page(vcpu: Vcpu, gfn: Gfn, role: int) -> KvmMmuPage:
    """The shadow page of a guest table, or a dummy: a page that shadows nothing and that no fault fills.

    It has no rights at all.
    """
    slot = vcpu.memslots.find(gfn)
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        role = pack_role(vcpu.cpu_role, unpack_role(role).level, 0, direct=True)
    return kvm_mmu_get_shadow_page(vcpu, gfn, role)[0]


def _is_dummy(page: KvmMmuPage | None) -> bool:
    return page is not None and page.direct and not page.access


def _alloc_pae_root(vcpu: Vcpu) -> Root:
    """Four level 2 pages: of the guest's four page directories, the quadrants of its one, or 1 GiB each, direct."""
    kvm = vcpu.kvm
    frame = vcpu.mmu_shadow_page_cache.pop()
    kvm.mm.host.ram.zero_page(frame.pfn)
    kvm.mm.host.vmstat.nr_sec_page_table_pages += 1
    pages: list[KvmMmuPage | None] = []
    for quadrant in range(4):
        page = _pae_root_entry(vcpu, quadrant)
        pages.append(page)
        if page is not None:
            page.root_count += 1
            kvm.q[(frame.pfn << 9) + quadrant] = make_nonleaf_spte(page.pfn)
    return Root(PAE_ROOT_LEVEL, tuple(pages), frame)


def _pae_root_entry(vcpu: Vcpu, quadrant: int) -> KvmMmuPage | None:
    if vcpu.mode is PagingMode.NONPAGING:
        return kvm_mmu_get_shadow_page(vcpu, Gfn(quadrant << 18), pack_role(vcpu.cpu_role, 2, direct=True))[0]
    if vcpu.mode is PagingMode.PT32:
        return _table_page(vcpu, vcpu.root_gfn, pack_role(vcpu.cpu_role, 2, quadrant=quadrant))
    pdptr = vcpu.pdptrs[quadrant]
    if not pdptr & PT_PRESENT:
        return None
    gfn = Gfn((pdptr & PT_ADDR_MASK) >> PAGE_SHIFT)
    return _table_page(vcpu, gfn, pack_role(vcpu.cpu_role, 2))


def _drop_unreferenced(vcpu: Vcpu) -> None:
    """Let go of the roots that the engine no longer holds."""
    engine = vcpu.engine
    held = {engine.box[ROOT], *(hpa for _, hpa in engine.kept_roots())}
    gone = [root for root in vcpu.roots if root.hpa not in held]
    vcpu.roots = [root for root in vcpu.roots if root.hpa in held]
    for root in gone:
        _put_root(vcpu, root)


def _put_root(vcpu: Vcpu, root: Root) -> None:
    """mmu_free_root_page(): the last count on a zapped page frees it. Under mmu_lock."""
    kvm = vcpu.kvm
    host = kvm.mm.host
    if root.pae_page is not None:
        kvm.flush_remote_tlbs()
        host.vmstat.nr_sec_page_table_pages -= 1
        put_page(host, root.pae_page)
    for page in root.pages:
        if page is None:
            continue
        if kvm.tdp_mmu_enabled:
            kvm_tdp_mmu_put_root(kvm, page)
            continue
        page.root_count -= 1
        if page.invalid and not page.root_count:
            kvm.flush_remote_tlbs()
            kvm_mmu_free_shadow_page(kvm, page)


def kvm_mmu_free_roots(vcpu: Vcpu) -> None:
    """Drop the current and every former root; the next access exits and loads one."""
    vcpu.engine.drop_all_roots()
    vcpu.root = None
    roots, vcpu.roots = vcpu.roots, []
    if roots:
        vcpu.kvm.mmu_lock.acquire()
        for root in roots:
            _put_root(vcpu, root)
        vcpu.kvm.mmu_lock.release()


def is_obsolete_root(kvm: Kvm, root: Root) -> bool:
    """One of its pages was zapped or is going to be: the vCPU must load again."""
    return any(page is not None and is_obsolete_sp(kvm, page) for page in root.pages)


def free_obsolete_roots(vcpu: Vcpu) -> None:
    """kvm_mmu_free_obsolete_roots(): drop all if one is obsolete; the others are found again in the hash.

    A dummy is obsolete whenever somebody asks: there may be memory now.
    """
    if any(is_obsolete_root(vcpu.kvm, root) or any(map(_is_dummy, root.pages)) for root in vcpu.roots):
        kvm_mmu_free_roots(vcpu)


def root_of_cr3(vcpu: Vcpu, cr3: int) -> Root | None:
    """The root that the engine has for this CR3, with all else as it is; None if the next access exits for one."""
    engine = vcpu.engine
    if engine.box[KEY_CR3] == cr3:
        return vcpu.root
    for kept_cr3, hpa in engine.kept_roots():
        if kept_cr3 == cr3:
            return find_root(vcpu, hpa)
    return None


def find_root(vcpu: Vcpu, hpa: int) -> Root:
    """The root that the engine has switched to by itself."""
    return next(root for root in vcpu.roots if root.hpa == hpa)
