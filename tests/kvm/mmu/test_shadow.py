"""Shadow pages in their lists: how many there may be, which ones go, and what a page is found again by."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.api import ExitReason, Host
from shadowvm.config import MIB
from shadowvm.errors import ModelBug
from shadowvm.events import (
    Tracepoint,
    attached,
    kvm_flush_remote_tlbs,
    kvm_mmu_get_page,
    kvm_mmu_prepare_zap_page,
    lock_release,
    spte_change,
)
from shadowvm.kvm.mmu.shadow import (
    KVM_MIN_FREE_MMU_PAGES,
    KVM_REFILL_PAGES,
    kvm_mmu_change_mmu_pages,
    kvm_mmu_free_shadow_page,
    kvm_mmu_zap_oldest_mmu_pages,
)
from shadowvm.machine import Machine
from shadowvm.params import KvmParams
from shadowvm.x86 import PT_PAGE_SIZE
from tests.api.vm import vcpu_with_code, vm_with_memory
from tests.guest_run import config_for
from tests.tiny import EXIT, write_tiny

LIMIT = 64
FAR_APART = f"mov edi, 0x400000\nmov ecx, 150\nl: mov [rdi], rdi\nadd edi, 0x200000\nloop l\nxor eax, eax\n{EXIT}"
"""Stores that need a shadow page each."""


def machine_of(directory: Path, mmu: str = "shadow", limit: int = LIMIT) -> Machine:
    params = KvmParams(tdp_mmu=0, nr_mmu_pages=limit)
    config = config_for(write_tiny(directory, FAR_APART), memory=320 * MIB, mmu=mmu, kvm_params=params)
    return Machine(config, lambda byte: None)


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_the_oldest_pages_make_room_a_few_at_a_time(tmp_path: Path, mmu: str) -> None:
    """In the order in which they were made, roots in use aside, as soon as fewer than 5 are free, until 25 are."""
    machine = machine_of(tmp_path, mmu)
    kvm = machine.kvm
    made: list[tuple[int, str]] = []
    zapped: list[tuple[int, str]] = []
    free_before, free_after = [], []
    zapping = False

    def sink(tracepoint: Tracepoint, args: tuple[int, int, str, int, bool, bool]) -> None:
        nonlocal zapping
        free = kvm.n_max_mmu_pages - len(kvm.active_mmu_pages)
        if tracepoint is kvm_mmu_prepare_zap_page:
            if not zapping:
                free_before.append(free)
            zapping = True
            assert not args[3], "a root in use is no victim"
            zapped.append(args[1:3])
        elif args[5]:
            assert free >= 0
            if zapping:
                free_after.append(free + 1)
            zapping = False
            made.append(args[1:3])

    with attached(sink, (kvm_mmu_get_page, kvm_mmu_prepare_zap_page)):
        assert machine.run().status == 0
    assert kvm.n_max_mmu_pages == LIMIT
    assert len(zapped) == kvm.stat.mmu_recycled == kvm.stat.mmu_shadow_zapped > 60
    roots = {(sp.gfn, sp.level) for root in machine.vcpu.roots for sp in root.pages if sp is not None}
    assert roots
    first_made = [each for each in made if each != made[0]][: len(zapped)]
    assert zapped == first_made
    assert all(free < KVM_MIN_FREE_MMU_PAGES for free in free_before)
    assert free_after == [KVM_REFILL_PAGES] * len(free_after)
    assert len(kvm.active_mmu_pages) == len(made) - len(zapped)
    machine.close()


def test_a_root_in_use_is_flushed_when_it_is_zapped_though_no_page_is_freed() -> None:
    """A 32-bit guest's page directory is shadowed by four roots of level 2, of which one has a large spte.

    A store to the directory that is none of an entry zaps them.
    """
    code = "mov dword [dword 0x200000], 7\nmov word [0x5800], 0\nmov al, [dword 0x200000]\nhlt"
    events: list[str] = []

    def sink(tracepoint: Tracepoint, args: tuple[int, ...]) -> None:
        if tracepoint is not spte_change or args[1] & PT_PAGE_SIZE > args[2] & PT_PAGE_SIZE:
            events.append(tracepoint.name)

    with Host(32 * MIB, thp="always") as host:
        vm = vm_with_memory(host, 4 * MIB)
        vm.write_memory(0x5000, b"\xe3")
        vcpu = vcpu_with_code(vm, code)
        sregs = vcpu.get_sregs()
        sregs.cr0, sregs.cr3, sregs.cr4 = sregs.cr0 | 0x80000001, 0x5000, 1 << 4
        sregs.ds = sregs.ds._replace(limit=0xFFFFFFFF)
        vcpu.set_sregs(sregs)
        with attached(sink, (spte_change, kvm_flush_remote_tlbs, lock_release)):
            assert vcpu.run().exit_reason is ExitReason.HLT
        assert vcpu.get_regs().rax & 0xFF == 7
        assert vm.kvm.stat.mmu_flooded == 4
    assert events[events.index("spte_change") + 1] == "kvm_flush_remote_tlbs"


def test_a_lower_limit_is_kept_at_once(tmp_path: Path) -> None:
    """But for roots in use, which nobody may take away."""
    machine = machine_of(tmp_path, limit=1000)
    assert machine.run().status == 0
    kvm = machine.kvm
    assert len(kvm.active_mmu_pages) > 150
    done = []

    def lower() -> None:
        kvm_mmu_change_mmu_pages(kvm, 30)
        done.append(len(kvm.active_mmu_pages))
        kvm.mmu_lock.acquire()
        kvm_mmu_zap_oldest_mmu_pages(kvm, 1000)
        kvm.mmu_lock.release()
        done.append(len(kvm.active_mmu_pages))

    machine.sched.spawn("vmm", lower)
    machine.sched.run()
    assert done == [30, 1]
    (root,) = kvm.active_mmu_pages.values()
    assert root.root_count == 1
    with pytest.raises(ModelBug, match="while in use"):
        kvm_mmu_free_shadow_page(kvm, root)
    machine.close()
