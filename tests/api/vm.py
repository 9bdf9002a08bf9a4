"""VMs for the tests of the API: flat 16-bit code at 0x1000, with a stack below it."""

from __future__ import annotations

from shadowvm.api import Host, Kvm, Segment, Vcpu, Vm
from tests.tiny import assemble16

CODE = 0x1000
MIB = 1 << 20


def vm_with_memory(host: Host, size: int = MIB, **more: object) -> Vm:
    """A VM with one slot at 0."""
    vm = Kvm(host).create_vm(**more)  # type: ignore[arg-type]
    vm.set_user_memory_region(0, 0, size, vm.mmap(size))
    return vm


def vcpu_with_code(vm: Vm, source: str, at: int = CODE) -> Vcpu:
    """A vCPU that is about to execute 16-bit code in segment 0."""
    vm.write_memory(at, assemble16(source))
    vcpu = vm.create_vcpu()
    sregs = vcpu.get_sregs()
    sregs.cs = Segment(0, 0, 0xFFFF, sregs.cs.flags)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(rip=at, rsp=0x1000)
    return vcpu
