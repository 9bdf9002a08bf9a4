"""A slot is about to go: nothing that refers to it may be left (kvm_arch_flush_shadow_memslot of mmu.c).

KVM zaps everything by default. With slot_zap_all=0, the quirk KVM_X86_QUIRK_SLOT_ZAP_ALL turned off, only what stands
for the slot goes: leaf sptes that map its frames, and shadow pages whose gfn is in it, of whatever level, because
their write tracking is counted in the slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..notifier import kvm_unmap_gfn_range
from .shadow import KvmMmuPage, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from .zap_all import kvm_mmu_zap_all_fast

if TYPE_CHECKING:
    from ..memslot import MemSlot
    from ..vm import Kvm


def kvm_arch_flush_shadow_memslot(kvm: Kvm, slot: MemSlot) -> None:
    """Zap what refers to a slot that faults see as invalid already. The caller holds slots_lock. May sleep."""
    if kvm.params.slot_zap_all:
        kvm_mmu_zap_all_fast(kvm)
        return
    kvm.mmu_lock.acquire()
    _kvm_mmu_zap_memslot(kvm, slot)
    kvm.mmu_lock.release()


def _kvm_mmu_zap_memslot(kvm: Kvm, slot: MemSlot) -> None:
    """Leaf sptes first: those of shadow pages that stay must be gone, too."""
    mapped = kvm_unmap_gfn_range(kvm, slot, slot.base_gfn, slot.end_gfn, may_yield=False)
    invalid_list: list[KvmMmuPage] = []
    for gfn in sorted(gfn for gfn in kvm.page_hash if slot.base_gfn <= gfn < slot.end_gfn):
        for sp in list(kvm.page_hash.get(gfn, ())):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)
    if invalid_list:
        kvm_mmu_commit_zap_page(kvm, invalid_list)
    elif mapped:
        kvm.flush_remote_tlbs()
