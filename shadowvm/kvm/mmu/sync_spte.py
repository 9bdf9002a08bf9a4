"""Bringing the sptes of one leaf shadow page up to date with its guest table (__kvm_sync_page, FNAME(sync_spte)).

Only what is present is looked at: an spte stays, loses or gains rights, or is dropped to be faulted in again; its frame
never changes in place (I19). Under mmu_lock; the caller flushes, since other TLBs may hold what was taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn
from ...mm.gup import host_pte
from ...x86 import PT_ACCESSED, PT_ADDR_MASK, PT_DIRTY, PT_NX, PT_PKEY_MASK, PT_PRESENT, PT_USER, PT_WRITABLE
from ..memslot import KVM_MEMSLOT_INVALID
from .mmio_spte import get_mmio_spte_access, get_mmio_spte_gfn
from .paging_mode import PT32
from .rmap import drop_spte
from .role import CPU_ROLE_MASK, unpack_role
from .spte import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    SPTE_HOST_WRITABLE,
    SPTE_MMIO,
    SPTE_MMU_WRITABLE,
    make_spte,
    mmu_spte_clear,
    mmu_spte_set,
    spte_pfn,
)
from .unsync import mmu_try_to_unsync_pages

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from .shadow import KvmMmuPage

_VALID = PT_PRESENT | PT_ACCESSED
_W_U = ACC_WRITE_MASK | ACC_USER_MASK
_SHADOWED_RIGHTS = PT_USER | PT_NX | PT_PKEY_MASK
_TAKEN = PT_WRITABLE | SPTE_MMU_WRITABLE | PT_USER


def kvm_sync_page(vcpu: Vcpu, sp: KvmMmuPage) -> int:
    """Look at every present spte of a level 1 page. 1: the caller must flush; 0: nothing; -1: it cannot be synced."""
    frame = guest_table(vcpu, sp)
    if frame < 0:
        return -1
    kvm = vcpu.kvm
    flush = 0
    for index, spte in enumerate(kvm.q[sp.q : sp.q + 512].tolist()):
        if spte and _sync(vcpu, sp, index, spte, gpte_of(vcpu, sp, frame, index)):
            flush = 1
    return flush


def sync_spte(vcpu: Vcpu, sp: KvmMmuPage, index: int) -> int:
    """FNAME(sync_spte): as kvm_sync_page(), for one entry."""
    spte = vcpu.kvm.q[sp.q + index]
    if not spte:
        return 0
    frame = guest_table(vcpu, sp)
    if frame < 0:
        return -1
    return int(_sync(vcpu, sp, index, spte, gpte_of(vcpu, sp, frame, index)))


def prefetch_invalid_gpte(vcpu: Vcpu, gpte: int) -> bool:
    """Whether a guest entry maps nothing that may be mapped without a fault: absent, never used, or malformed."""
    return gpte & (_VALID | vcpu.rsvd_bits) != _VALID


def gpte_access(sp: KvmMmuPage, gpte: int) -> int:
    """Rights for an spte of `sp` that stands for `gpte`: none to write while D is clear (protect_clean_gpte)."""
    access = sp.access & (gpte & _W_U | (0 if gpte & PT_NX else ACC_EXEC_MASK))
    return access if gpte & PT_DIRTY else access & ~ACC_WRITE_MASK


def guest_table(vcpu: Vcpu, sp: KvmMmuPage) -> int:
    """Index in ram.q of the frame of a page's guest table; -1 if it is not there, or `sp` is of another mode."""
    if (sp.role ^ vcpu.cpu_role) & CPU_ROLE_MASK:
        return -1
    slot = vcpu.memslots.find(sp.gfn)
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        return -1
    pte = host_pte(vcpu.kvm.mm, slot.vpn(sp.gfn))
    return (pte & PT_ADDR_MASK) >> PAGE_SHIFT << 9 if pte & PT_PRESENT else -1


def gpte_of(vcpu: Vcpu, sp: KvmMmuPage, frame: int, index: int) -> int:
    """The guest entry behind entry `index`; a 32-bit one has the form of a 64-bit one of the same meaning."""
    q = vcpu.kvm.q
    if vcpu.mode is not PT32:
        return q[frame + index]
    at = 512 * unpack_role(sp.role).quadrant + index
    return q[frame + (at >> 1)] >> 32 * (at & 1) & 0xFFFFFFFF


def _sync(vcpu: Vcpu, sp: KvmMmuPage, index: int, spte: int, gpte: int) -> bool:
    """Make one present spte what `gpte` allows. True if something was taken away."""
    if spte & SPTE_MMIO:
        _sync_mmio_spte(vcpu, sp, index, spte, gpte)
        return False
    kvm = vcpu.kvm
    gfn = Gfn((gpte & PT_ADDR_MASK) >> PAGE_SHIFT)
    if prefetch_invalid_gpte(vcpu, gpte) or gfn != sp.gfns[index]:
        drop_spte(kvm, sp.q + index)
        return True
    access = gpte_access(sp, gpte)
    rights = gpte & PT_PKEY_MASK | access & ACC_USER_MASK | (0 if access & ACC_EXEC_MASK else PT_NX)
    may_write = access & ACC_WRITE_MASK and spte & SPTE_HOST_WRITABLE
    if spte & _SHADOWED_RIGHTS == rights and bool(may_write) == bool(spte & SPTE_MMU_WRITABLE):
        return False
    slot = vcpu.memslots.find(gfn)
    if slot is None:
        drop_spte(kvm, sp.q + index)
        return True
    if (
        access & ACC_WRITE_MASK
        and gfn in kvm.page_hash
        and not mmu_try_to_unsync_pages(kvm, slot, gfn, synchronizing=True)
    ):
        access &= ~ACC_WRITE_MASK
    host_writable = spte & SPTE_HOST_WRITABLE != 0
    new = make_spte(slot, access, gfn, spte_pfn(spte), host_writable, gpte & PT_PKEY_MASK)
    new ^= (new ^ spte) & PT_ACCESSED
    if new & PT_WRITABLE and slot.dirty_bitmap is not None and not spte & PT_WRITABLE:
        # Write-protected by the dirty log, perhaps: a fault has to tell.
        new &= ~PT_WRITABLE
    if new == spte:
        return False
    mmu_spte_set(kvm, sp.q + index, new)
    return bool(spte & ~new & _TAKEN or new & ~spte & PT_NX or (new ^ spte) & PT_PKEY_MASK)


def _sync_mmio_spte(vcpu: Vcpu, sp: KvmMmuPage, index: int, spte: int, gpte: int) -> None:
    """sync_mmio_spte(): no TLB holds it. If it is good no more the next access makes another one."""
    same = get_mmio_spte_gfn(spte) == (gpte & PT_ADDR_MASK) >> PAGE_SHIFT and not (spte ^ gpte) & PT_PKEY_MASK
    if prefetch_invalid_gpte(vcpu, gpte) or not same or get_mmio_spte_access(spte) != gpte_access(sp, gpte):
        mmu_spte_clear(vcpu.kvm, sp.q + index)
