"""KVM's API in Python: a host, its /dev/kvm, VMs and vCPUs, with the words of Documentation/virt/kvm/api.rst.

    with Host(memory=16 << 20, swap=64 << 20) as host:
        vm = Kvm(host).create_vm(mmu="tdp")
        hva = vm.mmap(1 << 20)
        vm.set_user_memory_region(0, 0, 1 << 20, hva)
        vm.write_memory(0x1000, code)
        vcpu = vm.create_vcpu()
        run = vcpu.run()

Calls that may sleep (all but those that only look) run as a thread of the simulated host: the caller's own, if it was
started by Host.start_thread(), else one for this call. A refused ioctl raises KvmError with its errno.
"""

from __future__ import annotations

from ..errors import KvmError
from ..kvm.dirty import ManualProtect
from ..kvm.exit import ExitReason, InternalError, KvmIo, KvmMmio, KvmRun
from ..kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from .host import Host
from .vcpu import Regs, Segment, Sregs, TableRegister, Vcpu
from .vm import Capability, Kvm, Vm

__all__ = [
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "Capability",
    "ExitReason",
    "Host",
    "InternalError",
    "Kvm",
    "KvmError",
    "KvmIo",
    "KvmMmio",
    "KvmRun",
    "ManualProtect",
    "Regs",
    "Segment",
    "Sregs",
    "TableRegister",
    "Vcpu",
    "Vm",
]
