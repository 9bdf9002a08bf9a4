"""The guest walk when only its last step is in doubt.

A CPU whose walk of the shadow table failed at level 1 has gone through live links down to a level 1 shadow page. While
a link is there, the guest's entries above it say just that (they are write-tracked; invariant I22): the page names the
guest's table and the rights so far. So only the guest's last entry has to be read, or, in a direct page, nothing. KVM
has no such shortcut; in Python three levels of guest walk and of fetch() are half of a fault.

`kvm.link_generation` moves whenever a link is cut. The vCPU notes it at the exit; when it has moved, the whole walk
is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gva
from ...cpu.mailbox import EXIT_LEVEL, EXIT_TABLE
from ...events import kvm_mmu_pagetable_walk, kvm_mmu_paging_element
from ...mm.gup import host_pte
from ...x86 import PFERR_WRITE, PT_ACCESSED, PT_ADDR_MASK, PT_DIRTY, PT_NX, PT_PAGE_SIZE, PT_PKEY_MASK, PT_PRESENT
from .guest_walker import ACC_W_U, NONPAGING_LEVEL
from .large_spte import stays_small
from .paging_mode import PT32, PT64
from .permission import permission_fault
from .spte import ACC_EXEC_MASK, ACC_WRITE_MASK

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .shadow import KvmMmuPage


def walk_leaf(vcpu: Vcpu, gva: Gva, pferr: int) -> bool:
    """Fill vcpu.walker from the level 1 page at which the CPU's walk ended. False: the whole walk must be made.

    True only if the guest allows the access and has nothing to mark for it: then walk_addr would say CONTINUE.
    """
    box = vcpu.engine.box
    kvm = vcpu.kvm
    if box[EXIT_LEVEL] != 1 or kvm.link_generation != vcpu.link_generation or vcpu.mode is PT32:
        return False
    sp = kvm.sp_by_pfn.get(box[EXIT_TABLE])
    if sp is None:
        return False
    if not (_direct(vcpu, sp, gva, pferr) if sp.direct else _indirect(vcpu, sp, gva, pferr)):
        return False
    vcpu.walker.leaf_page = sp
    if kvm_mmu_pagetable_walk.on:
        _trace_walk(vcpu, gva, pferr)
    return True


def _direct(vcpu: Vcpu, sp: KvmMmuPage, gva: Gva, pferr: int) -> bool:
    """Below a large guest page, or without paging. The page's rights are those of a fault that went all the way."""
    if (pferr & PFERR_WRITE and not sp.access & ACC_WRITE_MASK) or permission_fault(vcpu, sp.access, sp.pkey, pferr):
        return False
    if sp.gfns:
        return False
    if vcpu.kvm.mm.huge_pmds and not stays_small(vcpu, sp, Gfn(sp.gfn + (gva >> PAGE_SHIFT & 511))):
        return False
    walker = vcpu.walker
    walker.level = NONPAGING_LEVEL
    walker.gfn = sp.gfn + (gva >> PAGE_SHIFT & 511)  # type: ignore[assignment]
    walker.pte_access = sp.access
    walker.pkey = sp.pkey
    return True


def _indirect(vcpu: Vcpu, sp: KvmMmuPage, gva: Gva, pferr: int) -> bool:
    slot = vcpu.slot
    gfn = sp.gfn
    if not slot.base_gfn <= gfn < slot.end_gfn:
        return False
    base = vcpu.kvm.mm.tlb.get(gfn + slot.vpn_delta)
    if base is None:
        return False
    pte = vcpu.kvm.q[base + (gva >> PAGE_SHIFT & 511)]
    needed = PT_PRESENT | PT_ACCESSED | PT_DIRTY if pferr & PFERR_WRITE else PT_PRESENT | PT_ACCESSED
    if pte & (needed | vcpu.rsvd_bits) != needed:
        return False
    access = sp.access & (pte & ACC_W_U | (0 if pte & PT_NX else ACC_EXEC_MASK))
    pkey = pte & PT_PKEY_MASK
    if permission_fault(vcpu, access, pkey, pferr):
        return False
    walker = vcpu.walker
    walker.level = 1
    walker.table_gfn[1] = gfn
    walker.ptes[1] = pte
    walker.access_to[1] = sp.access
    walker.gfn = (pte & PT_ADDR_MASK) >> PAGE_SHIFT  # type: ignore[assignment]
    walker.pte_access = access
    walker.pkey = pkey
    return True


def _trace_walk(vcpu: Vcpu, gva: Gva, pferr: int) -> None:
    """Show the walk as a whole all the same; looks at the guest's tables without touching them."""
    kvm_mmu_pagetable_walk(gva, pferr)
    mm, q, slot, gfn = vcpu.kvm.mm, vcpu.kvm.q, vcpu.slot, vcpu.root_gfn
    for level in vcpu.levels if vcpu.mode >= PT64 else ():
        if not slot.base_gfn <= gfn < slot.end_gfn:
            found = vcpu.memslots.find(gfn)
            if found is None:
                return
            slot = found
        vpn = slot.vpn(gfn)
        table = mm.tlb.get(vpn)
        if table is None:
            pte = host_pte(mm, vpn)
            if not pte & PT_PRESENT:
                return
            table = (pte & PT_ADDR_MASK) >> PAGE_SHIFT << 9
        entry = q[table + (gva >> 3 + 9 * level & 511)]
        kvm_mmu_paging_element(entry, level)
        if level > 1 and entry & PT_PAGE_SIZE:
            return
        gfn = (entry & PT_ADDR_MASK) >> PAGE_SHIFT  # type: ignore[assignment]
