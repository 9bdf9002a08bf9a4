"""Walk of the guest's own page tables: gva -> gpa with rights (arch/x86/kvm/mmu/paging_tmpl.h).

Entries are read through the VM process's host mapping, as KVM reads them through the hva, so a walk can fault
table pages in from swap. A walk that succeeds sets the guest's Accessed bits, and Dirty for a write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gpa, Gva, Hva, Vpn
from ...events import (
    kvm_mmu_pagetable_walk,
    kvm_mmu_paging_element,
    kvm_mmu_set_accessed_bit,
    kvm_mmu_set_dirty_bit,
    kvm_mmu_walker_error,
)
from ...mm.fault import VmFault
from ...mm.mm_struct import cmpxchg_user_u64, read_user_u64
from ...x86 import (
    CR4_PSE,
    CR4_SMEP,
    EFER_NX,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_RSVD,
    PFERR_USER,
    PFERR_WRITE,
    PT_ACCESSED,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PKEY_MASK,
    PT_PRESENT,
    PT_WRITABLE,
)
from ..memslot import KVM_MEM_READONLY, KVM_MEM_UNCACHED, KVM_MEMSLOT_INVALID
from .paging_mode import NONPAGING, PAE, PT32, PT64
from .permission import permission_fault
from .pte_write import track_marks32
from .role import A20_GFN_MASK, ROLE_A20_CLOSED
from .spte import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    RET_PF_CONTINUE,
    RET_PF_GUEST,
    RET_PF_RETRY,
    RetPf,
    kvm_handle_error_pfn,
)

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vcpu import Vcpu
    from .shadow import KvmMmuPage

ACC_W_U = ACC_WRITE_MASK | ACC_USER_MASK
"""The rights that an entry's own bits give."""

NONPAGING_LEVEL = 6
"""walker.level without paging: above every table, so that all shadow pages are direct."""


class GuestWalker:
    """Result of a walk; one per vCPU, overwritten by the next.

    ptes[l], table_gfn[l]: the entry used at level l and the table it stands in. access_to[l]: rights that the
    entries above level l leave, which is the access of level l's shadow page. level, gfn, pte_access, pkey: of the
    leaf; gfn is that of the 4 KiB page the address falls in, pkey the bits of PT_PKEY_MASK. error_code: of the #PF when
    walk_addr returns GUEST. leaf_page: the level 1 shadow page that leaf_walk.py went out from, None after a whole
    walk.
    """

    __slots__ = ("access_to", "error_code", "gfn", "leaf_page", "level", "pkey", "pte_access", "ptes", "table_gfn")

    def __init__(self) -> None:
        self.level = 0
        self.leaf_page: KvmMmuPage | None = None
        self.gfn = Gfn(0)
        self.pte_access = self.pkey = 0
        self.error_code = 0
        self.table_gfn = [Gfn(0)] * 6
        self.ptes = [0] * 6
        self.access_to = [0] * 6


def walk_addr(vcpu: Vcpu, gva: Gva, pferr: int) -> RetPf:
    """FNAME(walk_addr): walk for an access (`pferr`: W, U, F bits). Fills vcpu.walker.

    Returns CONTINUE, GUEST (the guest's tables refuse; walker.error_code), RETRY (an entry changed meanwhile), or
    EFAULT/ENOMEM when the host cannot give a table page.
    """
    vcpu.walker.leaf_page = None
    if kvm_mmu_pagetable_walk.on:
        kvm_mmu_pagetable_walk(gva, pferr)
    if vcpu.mode >= PT64:
        return _walk_addr64(vcpu, gva, pferr, vcpu.root_gfn)
    if vcpu.mode is NONPAGING:
        return _nonpaging(vcpu, gva)
    if vcpu.mode is PT32:
        return _walk_addr32(vcpu, gva, pferr)
    pdptr = vcpu.pdptrs[gva >> 30 & 3]
    if not pdptr & PT_PRESENT:
        return _walk_error(vcpu, pferr, 0)
    return _walk_addr64(vcpu, gva, pferr, Gfn((pdptr & PT_ADDR_MASK) >> PAGE_SHIFT))


def _walk_addr64(vcpu: Vcpu, gva: Gva, pferr: int, table_gfn: Gfn) -> RetPf:
    """Tables of 64-bit entries, from `table_gfn` at the topmost of vcpu.levels."""
    walker = vcpu.walker
    table_gfns, ptes, access_to = walker.table_gfn, walker.ptes, walker.access_to
    tlb, q = vcpu.kvm.mm.tlb, vcpu.kvm.q
    slot, checked = vcpu.slot, vcpu.rsvd_bits | PT_PRESENT
    access = ACC_ALL
    accessed = PT_ACCESSED
    for level in vcpu.levels:
        if not slot.base_gfn <= table_gfn < slot.end_gfn:
            found = vcpu.memslots.find(table_gfn)
            if found is None:
                return _walk_error(vcpu, pferr, 0)
            if found.flags & KVM_MEM_UNCACHED:
                if found.flags & KVM_MEMSLOT_INVALID:
                    return RET_PF_RETRY
                slot = found
            else:
                slot = vcpu.slot = found
        base = tlb.get(table_gfn + slot.vpn_delta)
        if base is None:
            base = _fault_in_table(vcpu, slot.vpn(table_gfn))
            if base < 0:
                return RetPf(base)
        pte = q[base + (gva >> 3 + 9 * level & 511)]
        table_gfns[level], ptes[level], access_to[level] = table_gfn, pte, access
        if kvm_mmu_paging_element.on:
            kvm_mmu_paging_element(pte, level)
        if pte & checked != PT_PRESENT:
            return _walk_error(vcpu, pferr, PFERR_PRESENT | PFERR_RSVD if pte & PT_PRESENT else 0)
        access &= pte & ACC_W_U if pte & PT_NX else pte & ACC_W_U | ACC_EXEC_MASK
        accessed &= pte
        table_gfn = (pte & PT_ADDR_MASK) >> PAGE_SHIFT  # type: ignore[assignment]  # a conversion costs a call
        if level > 1 and pte & PT_PAGE_SIZE:
            if pte & vcpu.rsvd_large[level]:
                return _walk_error(vcpu, pferr, PFERR_PRESENT | PFERR_RSVD)
            offset_mask = (1 << 9 * (level - 1)) - 1
            table_gfn = Gfn(table_gfn & ~offset_mask | gva >> PAGE_SHIFT & offset_mask)
            break
    else:
        level = 1
    walker.level = level
    walker.gfn = table_gfn
    walker.pte_access = access
    walker.pkey = pte & PT_PKEY_MASK
    return _finish_walk(vcpu, gva, pferr, accessed)


def _walk_addr32(vcpu: Vcpu, gva: Gva, pferr: int) -> RetPf:
    """Two levels of 32-bit entries; with CR4.PSE a large page is 4 MiB, at up to 40 bits (PSE-36)."""
    walker = vcpu.walker
    table_gfn = vcpu.root_gfn
    access = ACC_ALL
    accessed = PT_ACCESSED
    for level in (2, 1):
        pte = read_gpte32(vcpu, table_gfn, gva >> (2 + 10 * level) & 1023)
        if pte is None:
            return _walk_error(vcpu, pferr, 0)
        if pte < 0:
            return RET_PF_RETRY if pte == RetPf.EAGAIN else RetPf(pte)
        walker.table_gfn[level] = table_gfn
        walker.ptes[level] = pte
        walker.access_to[level] = access
        if kvm_mmu_paging_element.on:
            kvm_mmu_paging_element(pte, level)
        if not pte & PT_PRESENT:
            return _walk_error(vcpu, pferr, 0)
        access &= pte & (ACC_WRITE_MASK | ACC_USER_MASK) | ACC_EXEC_MASK
        accessed &= pte
        table_gfn = Gfn(pte >> PAGE_SHIFT)
        if level == 2 and pte & PT_PAGE_SIZE and vcpu.cr4 & CR4_PSE:
            if pte & vcpu.rsvd_large[2]:
                return _walk_error(vcpu, pferr, PFERR_PRESENT | PFERR_RSVD)
            table_gfn = Gfn((pte >> 13 & 0xFF) << 20 | pte >> 22 << 10 | gva >> PAGE_SHIFT & 1023)
            break
    else:
        level = 1
    walker.level = level
    walker.gfn = table_gfn
    walker.pte_access = access
    walker.pkey = 0
    return _finish_walk(vcpu, gva, pferr, accessed)


def read_gpte32(vcpu: Vcpu, table_gfn: Gfn, index: int) -> int | None:
    """A 32-bit guest entry; None outside of memory, a negative RetPf when the host cannot give the page."""
    slot = vcpu.memslots.find(table_gfn)
    if slot is None:
        return None
    if slot.flags & KVM_MEMSLOT_INVALID:
        return RetPf.EAGAIN
    base = vcpu.kvm.mm.tlb.get(slot.vpn(table_gfn))
    if base is None:
        base = _fault_in_table(vcpu, slot.vpn(table_gfn))
        if base < 0:
            return base
    return vcpu.kvm.q[base + (index >> 1)] >> 32 * (index & 1) & 0xFFFFFFFF


def _nonpaging(vcpu: Vcpu, gva: Gva) -> RetPf:
    """Linear addresses are physical ones, and everything is allowed."""
    walker = vcpu.walker
    walker.level = NONPAGING_LEVEL
    walker.gfn = Gfn(gva >> PAGE_SHIFT & A20_GFN_MASK if vcpu.cpu_role & ROLE_A20_CLOSED else gva >> PAGE_SHIFT)
    walker.pte_access = ACC_ALL
    walker.pkey = 0
    return RET_PF_CONTINUE


def _finish_walk(vcpu: Vcpu, gva: Gva, pferr: int, accessed: int) -> RetPf:
    """With every entry read: rights, then A and D."""
    walker = vcpu.walker
    cause = permission_fault(vcpu, walker.pte_access, walker.pkey, pferr)
    if cause:
        return _walk_error(vcpu, pferr, cause)
    if not accessed or (pferr & PFERR_WRITE and not walker.ptes[walker.level] & PT_DIRTY):
        return _update_accessed_dirty_bits(vcpu, gva, pferr)
    return RET_PF_CONTINUE


def _walk_error(vcpu: Vcpu, pferr: int, cause: int) -> RetPf:
    error_code = cause | pferr & (PFERR_WRITE | PFERR_USER)
    nx = vcpu.efer & EFER_NX and vcpu.mode >= PAE
    if pferr & PFERR_FETCH and (nx or vcpu.cr4 & CR4_SMEP):
        error_code |= PFERR_FETCH
    vcpu.walker.error_code = error_code
    if kvm_mmu_walker_error.on:
        kvm_mmu_walker_error(error_code)
    return RET_PF_GUEST


def _fault_in_table(vcpu: Vcpu, vpn: Vpn) -> int:
    """Make a page of guest tables resident; index of its frame in ram.q, or a negative RetPf."""
    mm = vcpu.kvm.mm
    result = read_user_u64(mm, Hva(vpn << PAGE_SHIFT))
    if isinstance(result, VmFault):
        # For whoever reports it; the walk itself finds no gfn any more.
        vcpu.walker.gfn = Gfn(vpn - vcpu.slot.vpn_delta)
        return kvm_handle_error_pfn(result)
    return mm.tlb[vpn]


def gpte_gpa(vcpu: Vcpu, gva: Gva, level: int) -> Gpa:
    """Where the entry of `level` that the walk of `gva` used stands."""
    table = vcpu.walker.table_gfn[level] << PAGE_SHIFT
    if vcpu.mode is PT32:
        return Gpa(table | (gva >> (2 + 10 * level) & 1023) << 2)
    return Gpa(table | (gva >> (3 + 9 * level) & 511) << 3)


def _update_accessed_dirty_bits(vcpu: Vcpu, gva: Gva, pferr: int) -> RetPf:
    """Set A in every entry used and D in the leaf of a write, by compare-and-exchange.

    Entries in a read-only slot stay as they are: page tables in ROM are to have their bits set already.
    """
    walker = vcpu.walker
    for level in vcpu.levels:
        if level < walker.level:
            break
        old = walker.ptes[level]
        new = old | PT_ACCESSED
        if level == walker.level and pferr & PFERR_WRITE:
            new |= PT_DIRTY
        if new == old:
            continue
        gpa = gpte_gpa(vcpu, gva, level)
        slot = vcpu.memslots.find(Gfn(gpa >> PAGE_SHIFT))
        if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
            return RET_PF_RETRY
        if slot.flags & KVM_MEM_READONLY:
            continue
        done = _cmpxchg_gpte(vcpu, slot, gpa, old, new)
        if isinstance(done, VmFault):
            return kvm_handle_error_pfn(done)
        if not done:
            return RET_PF_RETRY
        kvm_vcpu_mark_page_dirty(vcpu, Gfn(gpa >> PAGE_SHIFT))
        if vcpu.mode is PT32:
            track_marks32(vcpu.kvm, gpa)
        if kvm_mmu_set_accessed_bit.on and not old & PT_ACCESSED:
            kvm_mmu_set_accessed_bit(gpa)
        if kvm_mmu_set_dirty_bit.on and new & ~old & PT_DIRTY:
            kvm_mmu_set_dirty_bit(gpa)
        walker.ptes[level] = new
    return RET_PF_CONTINUE


def kvm_vcpu_mark_page_dirty(vcpu: Vcpu, gfn: Gfn) -> None:
    """KVM itself has written a page of the guest."""
    slot = vcpu.memslots.find(gfn)
    if slot is not None and slot.dirty_bitmap is not None:
        slot.dirty_bitmap.add(gfn)


def _cmpxchg_gpte(vcpu: Vcpu, slot: MemSlot, gpa: Gpa, old: int, new: int) -> bool | VmFault:
    """Replace an entry if it is still `old`. A 32-bit entry is exchanged with its neighbour, which must hold still."""
    mm = vcpu.kvm.mm
    hva = Hva(slot.vpn(Gfn(gpa >> PAGE_SHIFT)) << PAGE_SHIFT | gpa & 0xFF8)
    if vcpu.mode is not PT32:
        return cmpxchg_user_u64(mm, hva, old, new)
    word = read_user_u64(mm, hva)
    if isinstance(word, VmFault):
        return word
    shift = 32 * (gpa >> 2 & 1)
    if word >> shift & 0xFFFFFFFF != old:
        return False
    return cmpxchg_user_u64(mm, hva, word, word ^ (old ^ new) << shift)


def protect_clean_gpte(walker: GuestWalker) -> int:
    """Rights for a shadow of the leaf that notices the first store: no W while the guest's D is clear."""
    if not walker.pte_access & PT_WRITABLE or walker.level == NONPAGING_LEVEL:
        return walker.pte_access
    if walker.ptes[walker.level] & PT_DIRTY:
        return walker.pte_access
    return walker.pte_access & ~ACC_WRITE_MASK
