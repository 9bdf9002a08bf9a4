"""KVM's counters agree with what they count, at the end of runs of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.config import MIB
from shadowvm.kvm.mmu.spte import SPTE_MMU_PRESENT
from shadowvm.kvm.stats import as_dict
from shadowvm.machine import Machine
from shadowvm.x86 import PT_PAGE_SIZE
from tests.guest_run import config_for
from tests.kvm.smp import touch_together
from tests.tiny import write_tiny

RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "memtouch": ("size=3M", {"host_memory": 2 * MIB}),
    "demand": ("size=1M shared=256k", {"host_memory": 2 * MIB}),
    "ptchurn": ("pages=256 rounds=1 switches=8", {"host_memory": 8 * MIB}),
    "asyncpf": ("size=3M work=200", {"host_memory": 2560 << 10, "swap_latency": 20_000}),
}


def leaves(machine: Machine) -> int:
    """Present 4 KiB leaves, counted in the shadow tables themselves."""
    kvm = machine.kvm
    found = 0
    for sp in kvm.active_mmu_pages.values():
        entries = kvm.q[sp.q : sp.q + 512].tolist()
        found += sum(1 for spte in entries if spte & SPTE_MMU_PRESENT and sp.level == 1 and not spte & PT_PAGE_SIZE)
    return found


def check(machine: Machine) -> None:
    stat = machine.kvm.stat
    total = as_dict(stat, (vcpu.stat for vcpu in machine.vcpus))
    outcomes = total["pf_fixed"] + total["pf_spurious"] + total["pf_emulate"] + total["pf_fast"]
    assert 0 < outcomes <= total["pf_taken"]
    assert total["pf_taken"] <= total["exits"]
    assert total["remote_tlb_flush"] <= total["remote_tlb_flush_requests"]
    for vcpu in machine.vcpus:
        assert vcpu.stat.pf_fixed + vcpu.stat.pf_spurious + vcpu.stat.pf_emulate <= vcpu.stat.pf_taken


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("guest", RUNS)
def test_after_a_run(guest: str, mmu: str) -> None:
    append, options = RUNS[guest]
    machine = Machine(config_for(guest, append, mmu=mmu, **options), lambda byte: None)
    try:
        assert machine.run().status == 0
        check(machine)
        if mmu == "shadow":
            assert machine.kvm.stat.pages_4k == leaves(machine)
            assert {page.pfn for page in map(machine.host.zone.mem_map.__getitem__, machine.kvm.sp_by_pfn)} >= set(
                machine.kvm.active_mmu_pages
            )
    finally:
        machine.close()
    assert machine.kvm.stat.pages_4k == 0
    assert not machine.kvm.active_mmu_pages


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
