"""Guest memory that is a device's on the host: mapped without a reference, and let go when the host says so."""

from __future__ import annotations

from functools import partial

import pytest

from shadowvm.addr import PAGE_SIZE
from shadowvm.api import ExitReason, Host
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from shadowvm.lab.mutate import host as act
from shadowvm.lab.mutate.guest import DATA, KERNEL, PAGE, PAGE_PDE, TABLE, Code
from shadowvm.lab.mutate.pfnmap import PAGES, TAIL, add_device
from shadowvm.lab.mutate.scenario import Scenario, run_scenario
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import mmap, munmap
from shadowvm.params import KvmParams
from tests.api.vm import vcpu_with_code, vm_with_memory

MMUS = {
    "shadow": {},
    "tdp": {"mmu": "tdp"},
    "tdp_mmu=0": {"mmu": "tdp", "kvm_params": KvmParams(tdp_mmu=0)},
}
every_mmu = pytest.mark.parametrize("config", MMUS.values(), ids=MMUS)


def counts(machine: Machine) -> list[int]:
    """References to the frames of the device."""
    device = machine.mm.vmas.overlapping(act.hva_of(machine, act.EXTRA), act.hva_of(machine, act.EXTRA) + 1)[0].device
    return [page.refcount for page in machine.host.zone.mem_map[device.first : device.first + PAGES]]


@every_mmu
def test_no_fault_takes_a_reference_and_what_is_stored_is_there(config):
    seen = []
    code = Code().load(TAIL).host(0).store(TAIL, 7).store(act.EXTRA, 8).host(0).expect(TAIL, 7).exit()
    scenario = Scenario(
        code, config=config, prepare=add_device(writable=True), actions=(lambda machine: seen.append(counts(machine)),)
    )
    assert run_scenario(scenario).law is None
    assert seen == [[1, 0, 0, 0]] * 2


@every_mmu
def test_a_device_is_logged_like_memory(config):
    seen = []

    def harvest(machine):
        act.harvest(machine, act.EXTRA)
        seen.append(sorted(act.slot_of(machine, act.EXTRA).dirty_bitmap))

    code = Code().store(TAIL, 7).host(0).host(1).store(TAIL, 8).host(1).store(TAIL, 9).expect(TAIL, 9).exit()
    actions = (partial(act.log_dirty, gpa=act.EXTRA), harvest)
    assert run_scenario(Scenario(code, config=config, prepare=add_device(writable=True), actions=actions)).law is None
    assert seen == [[], []]


@every_mmu
def test_a_store_that_the_devices_pte_does_not_allow_goes_to_the_bus(config):
    code = Code().load(TAIL).store(TAIL, 7).expect(TAIL, 0).exit()
    assert run_scenario(Scenario(code, config=config, prepare=add_device(writable=False))).law is None


@every_mmu
def test_what_the_host_unmaps_is_unmapped_for_the_guest(config):
    zapped = []

    def unmap(machine):
        before = machine.kvm.stat.pages_4k
        hva = act.hva_of(machine, act.EXTRA)
        munmap(machine.mm, hva, PAGES * PAGE_SIZE)
        zapped.append(before - machine.kvm.stat.pages_4k)

    code = Code().store(TAIL, 7).store(act.EXTRA, 7).host(0).exit()
    assert run_scenario(Scenario(code, config=config, prepare=add_device(writable=True), actions=(unmap,))).law is None
    assert zapped == [2]


@every_mmu
def test_a_device_may_be_mapped_twice_and_lives_on_in_one_of_both(config):
    def again(machine):
        vma = machine.mm.vmas.overlapping(act.hva_of(machine, act.EXTRA), act.hva_of(machine, act.EXTRA) + 1)[0]
        hva = mmap(machine.mm, PAGES * PAGE_SIZE, device=vma.device)
        machine.kvm.set_user_memory_region(act.EXTRA_SLOT + 1, act.ELSEWHERE, PAGES * PAGE_SIZE, hva)

    def unmap(machine):
        munmap(machine.mm, act.hva_of(machine, act.EXTRA), PAGES * PAGE_SIZE)

    there = act.ELSEWHERE + TAIL - act.EXTRA
    code = Code().store(TAIL, 7).host(0).expect(there, 7).host(1).expect(there, 7).store(there, 8).exit()
    scenario = Scenario(code, config=config, prepare=add_device(writable=True), actions=(again, unmap))
    finding = run_scenario(scenario)
    assert finding.law is None, finding.text


def test_a_page_table_in_a_device_is_followed_and_written_by_emulation():
    code = (
        Code()
        .store(PAGE_PDE, TABLE | KERNEL)
        .store(TABLE, act.EXTRA | DATA)
        .reload_cr3()
        .store(PAGE, (PAGE + 0x3000) | DATA)
        .store(PAGE_PDE + 8, act.EXTRA | KERNEL)
        .store(PAGE + (2 << 20), 7)
        .store(PAGE, (PAGE + 0x4000) | DATA)
        .reload_cr3()
        .store(PAGE + (2 << 20), 8)
        .expect(PAGE + (2 << 20), 8)
        .exit()
    )
    for unsync in (0, 1):
        config = {"kvm_params": KvmParams(unsync=unsync)}
        assert run_scenario(Scenario(code, config=config, prepare=add_device(writable=True))).law is None


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_the_api_gives_a_guest_a_device(mmu):
    with Host(8 << 20) as host:
        vm = vm_with_memory(host, mmu=mmu)
        hva = vm.mmap_device(3 * PAGE_SIZE)
        vm.set_user_memory_region(1, 0x10_0000 + PAGE_SIZE, 3 * PAGE_SIZE, hva, KVM_MEM_LOG_DIRTY_PAGES)
        vm.write_memory(0x10_2000, b"\5")
        assert vm.get_dirty_log(1)[0] == 0b10
        vcpu = vcpu_with_code(vm, "mov ax, 0xffff\nmov ds, ax\ninc byte [0x2010]\nhlt")
        assert vcpu.run().exit_reason is ExitReason.HLT
        assert vm.read_memory(0x10_2000, 1) == b"\6"
        assert vm.get_dirty_log(1)[0] == 0b10
        vm.munmap(hva, 3 * PAGE_SIZE)
        vcpu.set_regs(rip=0x1005)
        run = vcpu.run()
        assert (run.exit_reason, "EFAULT" in run.text) == (ExitReason.INTERNAL_ERROR, True)
