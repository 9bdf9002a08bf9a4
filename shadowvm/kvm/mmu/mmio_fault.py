"""Accesses where no memory is: MMIO sptes are set, believed, renewed and invalidated (mmu.c).

A fault that finds no slot leaves an MMIO spte. The next access there fails with RSVD, or under TDP as EPT_MISCONFIG,
and is emulated at once, without a walk of the guest's tables, as long as the slots have not changed since: an entry is
of one generation. When the 19 bits of these begin anew everything is zapped (invariant I32).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addr import PAGE_SHIFT, Gfn, Gva
from ...cpu.engine import WRITE
from ...cpu.mailbox import EXIT_ACCESS, EXIT_LEVEL, EXIT_TABLE
from ...events import check_mmio_spte as trace_check_mmio_spte
from ...events import handle_mmio_page_fault as trace_handle_mmio_page_fault
from ...events import mark_mmio_spte as trace_mark_mmio_spte
from ...events import vcpu_match_mmio
from ...x86 import PT_PKEY_MASK
from ..memslot import KVM_ADDRESS_SPACE_NUM, KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
from .mmio_spte import (
    MMIO_SPTE_GEN_MASK,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_mmio_spte,
    make_mmio_spte,
)
from .permission import permission_fault
from .rmap import drop_spte
from .spte import ACC_WRITE_MASK, RET_PF_EMULATE, RET_PF_INVALID, RET_PF_RETRY, SPTE_MMU_PRESENT, RetPf, mmu_spte_set
from .zap_all import kvm_mmu_zap_all_fast

if TYPE_CHECKING:
    from ..vcpu import Vcpu
    from ..vm import Kvm
    from .shadow import KvmMmuPage


class MmioInfo:
    """A vCPU's last MMIO access (vcpu_cache_mmio_info): with the same spte and generation, what it said still holds."""

    __slots__ = ("access", "generation", "gfn", "gva", "spte")

    def __init__(self) -> None:
        self.gva = Gva(0)
        self.gfn = Gfn(0)
        self.access = self.spte = 0
        self.generation = -1


def vcpu_cache_mmio_info(vcpu: Vcpu, gva: Gva, gfn: Gfn, access: int, spte: int) -> None:
    """Remember an access; not while an update is in progress, since the generation does not tell it from the last."""
    generation = vcpu.memslots.generation
    if generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return
    info = vcpu.mmio_info
    info.gva, info.gfn, info.access, info.spte, info.generation = Gva(gva & ~0xFFF), gfn, access, spte, generation


def mark_mmio_spte(vcpu: Vcpu, sp: KvmMmuPage, index: int, gfn: Gfn, access: int, pkey: int = 0) -> RetPf:
    """Enter that no memory is at entry `index` of a level 1 page; EMULATE. Under mmu_lock.

    What was mapped there goes first, with a flush: the guest's table was changed from outside (I33).
    """
    kvm = vcpu.kvm
    sptep = sp.q + index
    if kvm.q[sptep] & SPTE_MMU_PRESENT:
        drop_spte(kvm, sptep)
        kvm.flush_remote_tlbs()
    generation = vcpu.memslots.generation & MMIO_SPTE_GEN_MASK
    if trace_mark_mmio_spte.on:
        trace_mark_mmio_spte(sptep * 8, gfn, access, generation)
    mmu_spte_set(kvm, sptep, make_mmio_spte(gfn, access, generation, pkey))
    vcpu.stat.pf_mmio_spte_created += 1
    return RET_PF_EMULATE


def handle_mmio_page_fault(vcpu: Vcpu, addr: int) -> RetPf:
    """The CPU met a reserved bit on its way to `addr`, a gva, or under TDP a gpa.

    EMULATE: an access to no memory, at frame vcpu.walker.gfn. INVALID: the entry is of an old generation, or its table
    has gone meanwhile; make the whole walk. RETRY: another vCPU has zapped it.
    """
    kvm, box = vcpu.kvm, vcpu.engine.box
    if box[EXIT_LEVEL] != 1 or (kvm.link_generation != vcpu.link_generation and not kvm.tdp_enabled):
        return RET_PF_INVALID
    if kvm.tdp_enabled:
        sp = kvm.sp_by_pfn.get(box[EXIT_TABLE])
        if sp is None or sp.gfn != addr >> PAGE_SHIFT & ~511:
            return RET_PF_RETRY
    spte = kvm.q[box[EXIT_TABLE] << 9 | addr >> PAGE_SHIFT & 511]
    if box[EXIT_ACCESS] == WRITE and not kvm.tdp_enabled and _refuses_store(vcpu, spte):
        return RET_PF_INVALID
    info = vcpu.mmio_info
    if spte == info.spte and info.generation == vcpu.memslots.generation:
        vcpu.walker.gfn = info.gfn
        if vcpu_match_mmio.on:
            vcpu_match_mmio(addr, info.gfn << PAGE_SHIFT | addr & 0xFFF, box[EXIT_ACCESS] == WRITE, kvm.tdp_enabled)
        return RET_PF_EMULATE
    if not is_mmio_spte(spte):
        return RET_PF_RETRY
    if not check_mmio_spte(vcpu, spte):
        return RET_PF_INVALID
    gfn, access = get_mmio_spte_gfn(spte), get_mmio_spte_access(spte)
    if trace_handle_mmio_page_fault.on:
        trace_handle_mmio_page_fault(0 if kvm.tdp_enabled else addr, gfn, access)
    vcpu_cache_mmio_info(vcpu, Gva(addr), gfn, access, spte)
    vcpu.walker.gfn = gfn
    return RET_PF_EMULATE


def _refuses_store(vcpu: Vcpu, spte: int) -> bool:
    """The CPU has asked for the right to load only if the instruction does both (as XADD)."""
    access = get_mmio_spte_access(spte)
    return not access & ACC_WRITE_MASK or permission_fault(vcpu, access, spte & PT_PKEY_MASK, vcpu.pferr()) != 0


def check_mmio_spte(vcpu: Vcpu, spte: int) -> bool:
    """Whether the entry is of the current generation, and that one stands."""
    generation = vcpu.memslots.generation
    if generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return False
    kvm_gen, spte_gen = generation & MMIO_SPTE_GEN_MASK, get_mmio_spte_generation(spte)
    if trace_check_mmio_spte.on:
        trace_check_mmio_spte(kvm_gen, spte_gen, spte)
    return kvm_gen == spte_gen


def kvm_mmu_invalidate_mmio_sptes(kvm: Kvm, generation: int) -> None:
    """The slots are about to get `generation`: when its 19 bits begin anew, entries of the last round must be gone.

    The caller holds slots_lock. May sleep.
    """
    if not generation & MMIO_SPTE_GEN_MASK & -KVM_ADDRESS_SPACE_NUM:
        kvm_mmu_zap_all_fast(kvm)
