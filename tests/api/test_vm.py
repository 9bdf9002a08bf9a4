"""Slots, the dirty log, and memory stored to from outside."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from shadowvm.api import KVM_MEM_LOG_DIRTY_PAGES, Capability, ExitReason, Host, Kvm, KvmError, Vcpu, Vm
from tests.api.vm import MIB, vcpu_with_code, vm_with_memory

WRITER = "again: inc byte [0x5000]\nout 0x10, al\ninc byte [0x6000]\nout 0x10, al\njmp again"


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(memory=4 * MIB, swap=4 * MIB) as host:
        yield host


def dirty_pages(vm: Vm) -> list[int]:
    bits = int.from_bytes(vm.get_dirty_log(0), "little")
    return [page for page in range(bits.bit_length()) if bits >> page & 1]


def run_to_io(vcpu: Vcpu) -> None:
    assert vcpu.run().exit_reason is ExitReason.IO


def test_a_dirty_log_names_what_was_written_since_it_was_asked(host: Host) -> None:
    vm = vm_with_memory(host)
    vm.set_user_memory_region(0, 0, MIB, vm.kvm.memslots.slots[0].userspace_addr, KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = vcpu_with_code(vm, WRITER)
    run_to_io(vcpu)
    assert dirty_pages(vm) == [1, 5]
    run_to_io(vcpu)
    assert dirty_pages(vm) == [6]
    vm.write_memory(0x9FFF, b"ab")
    assert dirty_pages(vm) == [9, 10]
    assert vm.get_stats()["pf_taken"] > 0


def test_clearing_by_hand(host: Host) -> None:
    vm = vm_with_memory(host)
    vm.enable_cap(Capability.MANUAL_DIRTY_LOG_PROTECT2, 1)
    vm.set_user_memory_region(0, 0, MIB, vm.kvm.memslots.slots[0].userspace_addr, KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = vcpu_with_code(vm, WRITER)
    run_to_io(vcpu)
    assert dirty_pages(vm) == dirty_pages(vm) == [1, 5]
    vm.clear_dirty_log(0, 0, 64, (1 << 1).to_bytes(8, "little"))
    assert dirty_pages(vm) == [5]
    for arguments in ((2,), (8,), ()):
        with pytest.raises(KvmError, match="does not take"):
            vm.enable_cap(Capability.MANUAL_DIRTY_LOG_PROTECT2, *arguments)


def test_memory_that_the_process_lost_is_efault(host: Host) -> None:
    vm = vm_with_memory(host)
    vcpu = vcpu_with_code(vm, "mov [0x8000], ax\nhlt")
    vm.munmap(vm.kvm.memslots.slots[0].userspace_addr + 0x8000, 0x1000)
    run = vcpu.run()
    assert (run.exit_reason, run.errno) == (ExitReason.INTERNAL_ERROR, -errno.EFAULT)
    with pytest.raises(KvmError, match="gpa 0x8000") as refused:
        vm.read_memory(0x7FFF, 2)
    assert refused.value.errno == errno.EFAULT


def test_where_no_slot_is_nothing_can_be_read_or_written(host: Host) -> None:
    vm = vm_with_memory(host)
    for call in (lambda: vm.read_memory(MIB, 1), lambda: vm.write_memory(MIB - 1, b"ab")):
        with pytest.raises(KvmError, match="gpa 0x100000: no memory slot"):
            call()


def test_pages_go_to_swap_and_come_back(host: Host) -> None:
    vm = vm_with_memory(host)
    start = vm.kvm.memslots.slots[0].userspace_addr
    vm.write_memory(0x3000, b"kept" * 2048)
    assert vm.madvise_pageout(start, MIB) == 2
    assert vm.read_memory(0x3000, 8192) == b"kept" * 2048
    vm.madvise_dontneed(start + 0x3000, 4096)
    assert vm.read_memory(0x3000, 8192) == bytes(4096) + b"kept" * 1024


def test_what_kvm_says_of_itself(host: Host) -> None:
    kvm = Kvm(host)
    assert kvm.get_api_version() == 12
    assert kvm.check_extension(Capability.SYNC_MMU) == 1
    assert kvm.check_extension(999) == 0
    with pytest.raises(KvmError, match="no MMU 'ept'"):
        kvm.create_vm(mmu="ept")
    vm = kvm.create_vm()
    for _ in range(16):
        vm.create_vcpu()
    with pytest.raises(KvmError, match="at most 16"):
        vm.create_vcpu()


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_a_dirty_ring_stops_the_vcpu_before_it_overflows(host: Host, mmu: str) -> None:
    vm = vm_with_memory(host, mmu=mmu)
    start = vm.kvm.memslots.slots[0].userspace_addr
    source = "mov ax, 0x1000\nagain: mov es, ax\ninc byte [es:0]\nadd ax, 0x100\ncmp ax, 0xff00\njne again\nhlt"
    vcpu = vcpu_with_code(vm, source)
    vm.enable_cap(Capability.DIRTY_LOG_RING, 4096)
    vm.set_user_memory_region(0, 0, MIB, start, KVM_MEM_LOG_DIRTY_PAGES)
    dirty: set[int] = set()
    stops = 0
    while (run := vcpu.run()).exit_reason is ExitReason.DIRTY_RING_FULL:
        stops += 1
        dirty |= {entry.offset for entry in vcpu.dirty_ring_entries()}
        assert vm.reset_dirty_rings() > 0
    assert run.exit_reason is ExitReason.HLT
    dirty |= {entry.offset for entry in vcpu.dirty_ring_entries()}
    assert stops >= 1
    assert dirty >= set(range(16, 255))


def test_memory_is_mapped_before_the_guest_touches_it(host: Host) -> None:
    vm = vm_with_memory(host, mmu="tdp")
    vcpu = vcpu_with_code(vm, "mov al, [0x8000]\nhlt")
    assert vcpu.pre_fault_memory(0, 0x10000) == 0x10000
    before = vcpu.get_stats()["pf_taken"]
    assert vcpu.run().exit_reason is ExitReason.HLT
    assert vcpu.get_stats()["pf_taken"] == before
    with pytest.raises(KvmError, match="cannot be mapped"):
        vcpu.pre_fault_memory(MIB, 4096)
