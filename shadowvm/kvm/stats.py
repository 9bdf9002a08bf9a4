"""Counters of KVM, under the names that kvm_stat shows (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c).

They are incremented in place by the transition they count; `as_dict` sums a VM's and its vCPUs'.
"""

from __future__ import annotations

from collections.abc import Iterable


class _Counters:
    __slots__: tuple[str, ...] = ()

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def as_dict(self) -> dict[str, int]:
        """Counters by name, in order of their names."""
        return {name: getattr(self, name) for name in self.__slots__}


class VmStat(_Counters):
    """struct kvm_vm_stat."""

    __slots__ = (
        "max_mmu_page_hash_collisions",
        "max_mmu_rmap_size",
        "mmu_cache_miss",
        "mmu_flooded",
        "mmu_pde_zapped",
        "mmu_pte_write",
        "mmu_recycled",
        "mmu_shadow_zapped",
        "mmu_unsync",
        "nx_lpage_splits",
        "pages_2m",
        "pages_4k",
        "remote_tlb_flush",
        "remote_tlb_flush_requests",
    )
    max_mmu_page_hash_collisions: int
    max_mmu_rmap_size: int
    mmu_cache_miss: int
    mmu_flooded: int
    mmu_pde_zapped: int
    mmu_pte_write: int
    mmu_recycled: int
    mmu_shadow_zapped: int
    mmu_unsync: int
    """Pages that are unsync now."""
    nx_lpage_splits: int
    pages_2m: int
    pages_4k: int
    remote_tlb_flush: int
    remote_tlb_flush_requests: int


class VcpuStat(_Counters):
    """struct kvm_vcpu_stat. `pf_taken` counts handler runs, of which at most one outcome counts each."""

    __slots__ = (
        "exits",
        "halt_exits",
        "insn_emulation",
        "insn_emulation_fail",
        "invlpg",
        "io_exits",
        "irq_injections",
        "mmio_exits",
        "nmi_injections",
        "pf_emulate",
        "pf_fast",
        "pf_fixed",
        "pf_guest",
        "pf_mmio_spte_created",
        "pf_spurious",
        "pf_taken",
        "signal_exits",
        "tlb_flush",
    )
    exits: int
    halt_exits: int
    insn_emulation: int
    insn_emulation_fail: int
    invlpg: int
    io_exits: int
    irq_injections: int
    mmio_exits: int
    nmi_injections: int
    pf_emulate: int
    pf_fast: int
    pf_fixed: int
    pf_guest: int
    pf_mmio_spte_created: int
    pf_spurious: int
    pf_taken: int
    signal_exits: int
    tlb_flush: int


class NotifierStat(_Counters):
    """Calls of KVM's mmu notifier. `young` counts yes answers, `sptes_zapped` what invalidations removed."""

    __slots__ = (
        "clear_flush_young",
        "invalidate_range_end",
        "invalidate_range_start",
        "release",
        "sptes_zapped",
        "test_young",
        "young",
    )
    clear_flush_young: int
    invalidate_range_end: int
    invalidate_range_start: int
    release: int
    sptes_zapped: int
    test_young: int
    young: int


def as_dict(vm: VmStat, vcpus: Iterable[VcpuStat]) -> dict[str, int]:
    """All counters by name, those of vCPUs summed, sorted by name."""
    totals = vm.as_dict()
    for vcpu in vcpus:
        for name, value in vcpu.as_dict().items():
            totals[name] = totals.get(name, 0) + value
    return dict(sorted(totals.items()))
