"""Large leaves of the TDP MMU, as a guest over transparent huge pages has them: set, split, and come back."""

from __future__ import annotations

import pytest

from shadowvm.config import MIB
from shadowvm.events import attached, kvm_entry, kvm_exit
from shadowvm.kvm.dirty import kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES as LOG
from shadowvm.kvm.mmu.nx_huge_page import kvm_recover_nx_huge_pages
from shadowvm.machine import Machine
from shadowvm.params import KvmParams
from tests.guest_run import Result, config_for, run_checked


def run(guest: str, append: str, host_memory: int = 16 * MIB, seed: int = 0, **params: int) -> Result:
    config = config_for(
        guest, append, host_memory=host_memory, seed=seed, mmu="tdp", thp="madvise", kvm_params=KvmParams(**params)
    )
    result = run_checked(config)
    assert result.report == ""
    assert result.outcome is not None
    assert result.outcome.status == 0
    return result


def test_large_leaves_take_few_faults() -> None:
    large = run("demand", "size=1M shared=512k")
    small = run("demand", "size=1M shared=512k", large_pages=0)
    assert large.output == small.output
    assert 20 * large.machine.vcpu.stat.pf_fixed < small.machine.vcpu.stat.pf_fixed


def test_nx_huge_pages_splits_what_is_executed() -> None:
    splits: set[int] = set()
    config = config_for("smc", "pages=64 rounds=1", mmu="tdp", thp="madvise", kvm_params=KvmParams(nx_huge_pages=1))
    result = run_checked(
        config,
        lambda machine: attached(lambda *_: splits.add(machine.kvm.stat.nx_lpage_splits), (kvm_entry,)),
    )
    assert result.report == ""
    assert max(splits) >= 1
    assert result.machine.kvm.stat.nx_lpage_splits == 0


@pytest.mark.parametrize("eptad", [0, 1])
def test_reclaim_takes_large_pages_apart(eptad: int) -> None:
    result = run("memtouch", "size=6M", host_memory=4 * MIB, seed=3, eptad=eptad)
    assert result.machine.host.vmstat.pswpout > 0


def test_a_pass_of_recovery_lets_the_large_leaf_come_back() -> None:
    passes: list[int] = []
    params = KvmParams(nx_huge_pages=1, nx_huge_pages_recovery_ratio=1)
    config = config_for("smc", "pages=64 rounds=1", mmu="tdp", thp="madvise", kvm_params=params)

    def recover(machine: Machine) -> None:
        if not passes and machine.kvm.stat.nx_lpage_splits and not machine.kvm.mmu_lock.held:
            passes.append(kvm_recover_nx_huge_pages(machine.kvm))
            assert machine.kvm.stat.nx_lpage_splits == 0

    result = run_checked(config, lambda machine: attached(lambda *_: recover(machine), (kvm_exit,)))
    assert result.report == ""
    assert passes[0] >= 1


def flags(machine: Machine, on: int) -> None:
    slot = machine.kvm.memslots.slots[0]
    base, size = slot.base_gfn << 12, slot.npages << 12
    machine.kvm.set_user_memory_region(slot.id, base, size, slot.userspace_addr, on)


@pytest.mark.parametrize("eager", [0, 1])
def test_the_log_has_small_leaves_and_its_end_large_ones(eager: int) -> None:
    params = KvmParams(eager_page_split=eager)
    more = {"mmu": "tdp", "thp": "madvise", "kvm_params": params}
    machine = Machine(config_for("memtouch", "size=2M passes=40", host_memory=32 * MIB, **more), lambda byte: None)
    kvm = machine.kvm
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((kvm.stat.pages_4k, kvm.stat.pages_2m))

    def vmm() -> None:
        for _ in range(40):
            machine.sched.preempt()
        look()
        flags(machine, LOG)
        look()
        kvm_get_dirty_log(kvm, kvm.memslots.slots[0].id)
        for _ in range(10):
            machine.sched.preempt()
        look()
        flags(machine, 0)
        look()

    machine.sched.spawn("vmm", vmm)
    assert machine.run().status == 0
    machine.close()
    before, logged, later, after = seen
    assert before[1] > 0
    assert (logged[1] == 0) == bool(eager)
    assert later[0] >= logged[0] > 0 or not eager
    assert after[0] < max(later[0], 1)
