"""/dev/kvm and a VM: the system and VM ioctls, and the memory of the process that makes them."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING

from ..addr import PAGE_SIZE, Gpa, Hva
from ..config import MAX_VCPUS, MMUS
from ..errors import KvmError
from ..kvm import stats
from ..kvm.cpuid import CpuModel, parse_cpu_model
from ..kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from ..kvm.dirty_ring import KVM_DIRTY_RING_MAX_ENTRIES, SIZEOF_DIRTY_GFN, kvm_enable_dirty_log_ring
from ..kvm.dirty_ring_reset import reset_dirty_rings
from ..kvm.guest_memory import kvm_read_guest, kvm_write_guest
from ..kvm.memory_region import KVM_USER_MEM_SLOTS, kvm_set_nr_mmu_pages
from ..kvm.turns import Turns
from ..kvm.vm import Kvm as KvmStruct
from ..mm.mm_struct import (
    MmStruct,
    exit_mmap,
    madvise_dontneed,
    madvise_hugepage,
    madvise_pageout,
    mmap,
    mprotect,
    munmap,
)
from ..mm.pfnmap import open_device
from ..params import DEFAULT_PARAMS, KvmParams
from .vcpu import Vcpu

if TYPE_CHECKING:
    from .host import Host

KVM_API_VERSION = 12


class Capability(IntEnum):
    """KVM_CAP_*, with their numbers."""

    MMU_SHADOW_CACHE_CONTROL = 2
    USER_MEMORY = 3
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    SYNC_MMU = 16
    MAX_VCPUS = 66
    READONLY_MEM = 81
    MULTI_ADDRESS_SPACE = 118
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    DIRTY_LOG_RING = 192
    PRE_FAULT_MEMORY = 236


_EXTENSIONS = {
    Capability.MMU_SHADOW_CACHE_CONTROL: 1,
    Capability.USER_MEMORY: 1,
    Capability.NR_VCPUS: MAX_VCPUS,
    Capability.NR_MEMSLOTS: KVM_USER_MEM_SLOTS,
    Capability.SYNC_MMU: 1,
    Capability.MAX_VCPUS: MAX_VCPUS,
    Capability.READONLY_MEM: 1,
    Capability.MULTI_ADDRESS_SPACE: 2,
    Capability.DIRTY_LOG_RING: KVM_DIRTY_RING_MAX_ENTRIES * SIZEOF_DIRTY_GFN,
    Capability.PRE_FAULT_MEMORY: 1,
    Capability.MANUAL_DIRTY_LOG_PROTECT2: int(ManualProtect.ENABLE | ManualProtect.INITIALLY_SET),
}


class Kvm:
    """/dev/kvm of a host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION."""
        return KVM_API_VERSION

    def check_extension(self, capability: Capability | int) -> int:
        """KVM_CHECK_EXTENSION: 0 if there is no such thing."""
        return _EXTENSIONS.get(Capability(capability), 0) if capability in list(Capability) else 0

    def create_vm(
        self,
        mmu: str = "shadow",
        params: KvmParams = DEFAULT_PARAMS,
        cpu: str | CpuModel = "max",
        turns: Turns | None = None,
        name: str = "qemu",
    ) -> Vm:
        """KVM_CREATE_VM, by a new process `name`. mmu: "shadow" or "tdp"; cpu: as -cpu; turns: of several vCPUs."""
        if mmu not in MMUS:
            raise KvmError(errno.EINVAL, f"no MMU '{mmu}': {' or '.join(MMUS)}")
        model = parse_cpu_model(cpu, MAX_VCPUS) if isinstance(cpu, str) else cpu
        vm = Vm(self.host, MmStruct(self.host.node, name), model, params, turns, tdp_enabled=mmu == "tdp")
        self.host.vms.append(vm)
        return vm


class Vm:
    """A VM and the process that owns it. kvm: struct kvm, with all that is inside; mm: the process's memory."""

    def __init__(
        self,
        host: Host,
        mm: MmStruct,
        cpu_model: CpuModel,
        params: KvmParams,
        turns: Turns | None,
        *,
        tdp_enabled: bool,
    ) -> None:
        self.host = host
        self.mm = mm
        self.kvm = KvmStruct(mm, cpu_model, turns, params, tdp_enabled=tdp_enabled)
        self.vcpus: list[Vcpu] = []

    def create_vcpu(self, *, counting: bool = True, limit: int = 0, userspace_io: bool = True) -> Vcpu:
        """KVM_CREATE_VCPU, in the state of reset.

        counting: count instructions, as -icount. limit: INTR after so many of all vCPUs, 0 for none.
        userspace_io: ports and MMIO are exits; without it, whoever made the vCPU connects devices to its engine.
        """
        if len(self.vcpus) == MAX_VCPUS:
            raise KvmError(errno.EINVAL, f"a VM has at most {MAX_VCPUS} vCPUs")
        vcpu = Vcpu(self, len(self.vcpus), counting=counting, limit=limit, userspace_io=userspace_io)
        self.vcpus.append(vcpu)
        return vcpu

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION; a size of 0 deletes the slot."""
        gpa, hva = Gpa(guest_phys_addr), Hva(userspace_addr)
        self.host.call(lambda: self.kvm.set_user_memory_region(slot, gpa, memory_size, hva, flags))

    def set_nr_mmu_pages(self, number: int) -> None:
        """KVM_SET_NR_MMU_PAGES."""
        self.host.call(lambda: kvm_set_nr_mmu_pages(self.kvm, number))

    def enable_cap(self, capability: Capability, *args: int) -> None:
        """KVM_ENABLE_CAP: MANUAL_DIRTY_LOG_PROTECT2 (flags), or DIRTY_LOG_RING (bytes of each vCPU's ring)."""
        if capability is Capability.DIRTY_LOG_RING and len(args) == 1:
            self.host.call(lambda: kvm_enable_dirty_log_ring(self.kvm, args[0]))
            return
        if capability is not Capability.MANUAL_DIRTY_LOG_PROTECT2:
            raise KvmError(errno.EINVAL, f"capability {capability!r} cannot be enabled")
        if len(args) != 1 or args[0] & ~_EXTENSIONS[capability] or args[0] == ManualProtect.INITIALLY_SET:
            raise KvmError(errno.EINVAL, f"{capability!r} does not take {args}")
        self.kvm.manual_dirty_log_protect = ManualProtect(args[0])

    def get_dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG: a bit for each page, in words of 64."""
        return self.host.call(lambda: kvm_get_dirty_log(self.kvm, slot))

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG."""
        self.host.call(lambda: kvm_clear_dirty_log(self.kvm, slot, first_page, num_pages, bitmap))

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: take back what user space has harvested; how many entries."""
        return self.host.call(lambda: reset_dirty_rings(self.kvm))

    def read_memory(self, gpa: int, size: int) -> bytes:
        """Guest memory, through the process's mapping."""
        return self.host.call(lambda: kvm_read_guest(self.kvm, Gpa(gpa), size))

    def write_memory(self, gpa: int, data: bytes) -> None:
        """Store from outside of the guest, at any time: page tables, code and dirty log follow."""
        self.host.call(lambda: kvm_write_guest(self.kvm, Gpa(gpa), data))

    def mmap(self, length: int, *, writable: bool = True) -> Hva:
        """Anonymous memory of the process."""
        return self.host.call(lambda: mmap(self.mm, length, writable))

    def mmap_device(self, length: int, *, writable: bool = True) -> Hva:
        """Memory of a driver, as vfio-pci gives a BAR: frames without reference counts (VM_IO | VM_PFNMAP), of zeros.

        Neither reclaim nor madvise() has to do with it. It is given back when nothing of it is mapped any more.
        """
        device = open_device(self.host.node, -(-length // PAGE_SIZE))
        return self.host.call(lambda: mmap(self.mm, length, writable, device=device))

    def munmap(self, start: int, length: int) -> None:
        """Take memory from the process, and so from the guest: accesses to it fail with EFAULT."""
        self.host.call(lambda: munmap(self.mm, Hva(start), length))

    def mprotect(self, start: int, length: int, *, writable: bool) -> None:
        """PROT_READ, or PROT_READ | PROT_WRITE."""
        self.host.call(lambda: mprotect(self.mm, Hva(start), length, writable))

    def madvise_dontneed(self, start: int, length: int) -> None:
        """MADV_DONTNEED: the pages are zeros from here on."""
        self.host.call(lambda: madvise_dontneed(self.mm, Hva(start), length))

    def madvise_pageout(self, start: int, length: int) -> int:
        """MADV_PAGEOUT: to swap with them; how many went."""
        return self.host.call(lambda: madvise_pageout(self.mm, Hva(start), length))

    def madvise_hugepage(self, start: int, length: int) -> None:
        """MADV_HUGEPAGE: huge pages are welcome there."""
        self.host.call(lambda: madvise_hugepage(self.mm, Hva(start), length))

    def get_stats(self) -> dict[str, int]:
        """KVM's counters, those of the vCPUs summed."""
        return stats.as_dict(self.kvm.stat, (vcpu.stat for vcpu in self.kvm.vcpus))

    def release(self) -> None:
        """The last file descriptor is closed and the process exits. Inside a thread of the host."""
        self.kvm.destroy()
        exit_mmap(self.mm)
