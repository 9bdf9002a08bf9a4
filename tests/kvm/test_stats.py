"""KVM's counters agree with what they count, at the end of runs of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from shadowvm.kvm.mmu.spte import SPTE_MMU_PRESENT, spte_pfn
from shadowvm.kvm.stats import as_dict
from shadowvm.machine import Machine
from shadowvm.params import KvmParams
from shadowvm.x86 import PT_PAGE_SIZE
from tests.guest_run import config_for
from tests.kvm.smp import touch_together
from tests.tiny import write_tiny

RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "memtouch": ("size=3M", {"host_memory": 2 * MIB}),
    "memtouch in large pages": ("size=6M", {"host_memory": 16 * MIB, "thp": "always"}),
    "demand": ("size=1M shared=256k", {"host_memory": 2 * MIB}),
    "ptchurn": ("pages=256 rounds=1 switches=8", {"host_memory": 8 * MIB}),
    "asyncpf": ("size=3M work=200", {"host_memory": 2560 << 10, "swap_latency": 20_000}),
}
MODES: dict[str, dict[str, object]] = {
    "shadow": {"mmu": "shadow"},
    "tdp": {"mmu": "tdp"},
    "tdp_mmu=0": {"mmu": "tdp", "kvm_params": KvmParams(tdp_mmu=0)},
    "eptad=0": {"mmu": "tdp", "kvm_params": KvmParams(eptad=0)},
}


def leaves(machine: Machine, level: int) -> int:
    """Present leaves of a level, counted in the tables themselves."""
    kvm = machine.kvm
    found = 0
    for sp in kvm.sp_by_pfn.values():
        if sp.level == level and not sp.invalid:
            present = [spte for spte in kvm.q[sp.q : sp.q + 512].tolist() if spte & SPTE_MMU_PRESENT]
            found += sum(1 for spte in present if level == 1 or spte & PT_PAGE_SIZE)
    return found


def linked(machine: Machine) -> set[int]:
    """Frames of the tables that can be reached from a table in use."""
    kvm = machine.kvm
    found: set[int] = set()
    for sp in kvm.sp_by_pfn.values():
        if sp.level > 1 and not sp.invalid:
            entries = kvm.q[sp.q : sp.q + 512].tolist()
            found |= {
                spte_pfn(spte) for spte in entries if spte & (SPTE_MMU_PRESENT | PT_PAGE_SIZE) == SPTE_MMU_PRESENT
            }
    return found


def check(machine: Machine) -> None:
    """Outcomes of faults. A fast one is fixed or spurious too; one that is retried, or is the guest's, is neither."""
    stat = machine.kvm.stat
    total = as_dict(stat, (vcpu.stat for vcpu in machine.vcpus))
    outcomes = total["pf_fixed"] + total["pf_spurious"] + total["pf_emulate"]
    assert 0 < outcomes <= total["pf_taken"]
    assert total["pf_fast"] <= total["pf_fixed"] + total["pf_spurious"]
    assert total["pf_taken"] <= total["exits"]
    assert total["remote_tlb_flush"] <= total["remote_tlb_flush_requests"]
    for vcpu in machine.vcpus:
        assert vcpu.stat.pf_fixed + vcpu.stat.pf_spurious + vcpu.stat.pf_emulate <= vcpu.stat.pf_taken


def check_pages(machine: Machine) -> None:
    """Leaves by level, and used pages: they are those on the lists, and those that are linked, besides the roots."""
    kvm = machine.kvm
    assert kvm.stat.pages_4k == leaves(machine, 1)
    assert kvm.stat.pages_2m == leaves(machine, 2)
    live = {pfn for pfn, sp in kvm.sp_by_pfn.items() if not sp.invalid}
    roots = {sp.pfn for vcpu in machine.vcpus for root in vcpu.roots for sp in root.pages if sp is not None}
    if kvm.tdp_mmu_enabled:
        assert kvm.tdp_mmu_pages == len(linked(machine))
        assert live == linked(machine) | roots
        return
    assert live == set(kvm.active_mmu_pages)
    assert sorted(live) == sorted(sp.pfn for pages in kvm.page_hash.values() for sp in pages)
    assert linked(machine) <= live
    assert sum(sp.unsync for sp in kvm.active_mmu_pages.values()) == kvm.stat.mmu_unsync


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guest", RUNS)
def test_after_a_run(guest: str, mode: str) -> None:
    append, options = RUNS[guest]
    machine = Machine(config_for(guest.split(maxsplit=1)[0], append, **MODES[mode], **options), lambda byte: None)
    try:
        assert machine.run().status == 0
        check(machine)
        check_pages(machine)
        assert bool(machine.kvm.stat.pages_2m) == ("large" in guest)
    finally:
        machine.close()
    assert machine.kvm.stat.pages_4k == machine.kvm.stat.pages_2m == machine.kvm.stat.mmu_unsync == 0
    assert not machine.kvm.active_mmu_pages
    assert not machine.kvm.tdp_mmu_pages
    assert not machine.host.vmstat.nr_sec_page_table_pages


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_a_fault_that_another_cpu_has_mended_is_spurious_and_counts_once(tmp_path: Path, mmu: str) -> None:
    """Two CPUs touch the same pages under random preemption: some faults find their spte there."""
    spurious = 0
    path = write_tiny(tmp_path, touch_together(2, 900))
    for seed in range(1, 4):
        machine = Machine(config_for(path, smp=2, seed=seed, quantum=(20, 60), mmu=mmu), lambda byte: None)
        try:
            assert machine.run().status == 0
            check(machine)
            spurious += sum(vcpu.stat.pf_spurious for vcpu in machine.vcpus)
        finally:
            machine.close()
    assert spurious > 0
