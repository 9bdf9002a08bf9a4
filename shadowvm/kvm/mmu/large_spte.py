"""Setting an spte of 2 MiB: the part of fetch() and mmu_set_spte() (mmu.c) that only large pages need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import Gfn, Pfn
from ...events import kvm_mmu_set_spte, kvm_mmu_spte_requested, spte_change
from ...x86 import PFERR_WRITE, PT_PAGE_SIZE
from .lpage import PG_LEVEL_2M, PG_LEVEL_4K, disallowed_hugepage_adjust, is_lpage_possible, kvm_mmu_hugepage_adjust
from .rmap import rmap_add_large
from .shadow import KvmMmuPage, mmu_page_zap_pte
from .spte import (
    ACC_EXEC_MASK,
    RET_PF_FIXED,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    SPTE_MMU_PRESENT,
    SPTE_MMU_WRITABLE,
    RetPf,
    make_spte,
    spte_pfn,
)

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .page_fault import KvmPageFault


def wants_large_spte(vcpu: Vcpu, fault: KvmPageFault, spte: int) -> bool:
    """Whether the fault gets a large spte where `spte` stands, below a guest page that covers it."""
    # Behind a closed A20 gate two MiB of addresses are one.
    fault.max_level = PG_LEVEL_4K if vcpu.kvm.a20_closed else PG_LEVEL_2M
    kvm_mmu_hugepage_adjust(vcpu, fault)
    disallowed_hugepage_adjust(vcpu.kvm, fault, spte, PG_LEVEL_2M)
    return fault.goal_level == PG_LEVEL_2M


def stays_small(vcpu: Vcpu, sp: KvmMmuPage, gfn: Gfn) -> bool:
    """Whether another fault below the direct page `sp`, of level 1, would not get a large spte in its place."""
    slot = vcpu.slot
    if sp.nx_huge_page_disallowed:
        return True
    return slot.base_gfn <= gfn < slot.end_gfn and not is_lpage_possible(vcpu.kvm, slot, gfn)


def mmu_set_large_spte(vcpu: Vcpu, fault: KvmPageFault, sp: KvmMmuPage) -> RetPf:
    """Set the leaf in `sp`, a shadow page of level 2. What was there, a table too, goes first, with a flush (I20)."""
    kvm = vcpu.kvm
    q = kvm.q
    gfn, pfn = Gfn(fault.gfn & -512), Pfn(fault.page.pfn & -512)
    index = fault.addr >> 21 & 511
    sptep = sp.q + index
    old = q[sptep]
    if kvm_mmu_spte_requested.on:
        kvm_mmu_spte_requested(gfn, pfn, PG_LEVEL_2M)
    if old & SPTE_MMU_PRESENT and (not old & PT_PAGE_SIZE or spte_pfn(old) != pfn or sp.gfn_of(index) != gfn):
        mmu_page_zap_pte(kvm, sp, index)
        kvm.flush_remote_tlbs()
        old = 0
    access = fault.access & ~ACC_EXEC_MASK if kvm.params.nx_huge_pages else fault.access
    spte = make_spte(fault.slot, access, gfn, pfn, fault.map_writable, vcpu.walker.pkey) | PT_PAGE_SIZE
    wrprot = fault.error_code & PFERR_WRITE and not spte & SPTE_MMU_WRITABLE
    if spte == old:
        return RET_PF_WRITE_PROTECTED if wrprot else RET_PF_SPURIOUS
    sp.note_gfn(index, gfn)
    if spte_change.on:
        spte_change(sptep * 8, old, spte)
    q[sptep] = spte
    if old & SPTE_MMU_WRITABLE and not spte & SPTE_MMU_WRITABLE:
        kvm.flush_remote_tlbs()
    if not old & SPTE_MMU_PRESENT:
        kvm.stat.pages_2m += 1
        if rmap_add_large(kvm, fault.slot, gfn, sptep):
            kvm.flush_remote_tlbs()
    if kvm_mmu_set_spte.on:
        kvm_mmu_set_spte(gfn, spte, sptep * 8, PG_LEVEL_2M)
    return RET_PF_WRITE_PROTECTED if wrprot else RET_PF_FIXED
