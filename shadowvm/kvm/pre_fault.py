"""KVM_PRE_FAULT_MEMORY: map guest memory before the guest touches it (virt/kvm/kvm_main.c, mmu.c).

By guest-physical address, which only two-dimensional tables are keyed by. Reads: a page gets a frame as a load would
get it, write access if it comes at no price.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from ..errors import KvmError
from .memslot import KVM_MEMSLOT_INVALID
from .mmu.direct_page_fault import kvm_tdp_page_fault
from .mmu.root import kvm_mmu_load
from .mmu.spte import RET_PF_EMULATE, RET_PF_RETRY, RetPf

if TYPE_CHECKING:
    from .vcpu import Vcpu


def kvm_vcpu_pre_fault_memory(vcpu: Vcpu, gpa: Gpa, size: int, flags: int = 0) -> int:
    """Map [gpa, gpa + size) for a vCPU that is not in run(); how many bytes were mapped from `gpa` on. May sleep.

    Fewer than `size` if something stands in the way, which the next call for the rest then tells.

    Raises:
        KvmError: nothing was mapped. EINVAL: flags, or no range of pages. EOPNOTSUPP: shadow paging. ENOENT: no memory
            at `gpa`. EAGAIN: its slot is being deleted or moved. ENOMEM, EFAULT: the host failed.
    """
    if flags or (gpa | size) % PAGE_SIZE or size <= 0 or gpa < 0:
        raise KvmError(errno.EINVAL, f"pre-fault: gpa {gpa:#x}, size {size:#x}, flags {flags:#x}")
    done = 0
    while done < size:
        number = kvm_tdp_map_page(vcpu, Gpa(gpa + done))
        if number:
            if done:
                break
            raise KvmError(number, f"pre-fault: gpa {gpa:#x} cannot be mapped")
        done += PAGE_SIZE
        vcpu.sched.cond_resched()
    return done


def kvm_tdp_map_page(vcpu: Vcpu, gpa: Gpa) -> int:
    """Map one page as a load of the guest would; 0, or an errno. The way into the MMU for who is not the guest."""
    if not vcpu.kvm.tdp_enabled:
        return errno.EOPNOTSUPP
    while True:
        slot = vcpu.memslots.find(Gfn(gpa >> PAGE_SHIFT))
        if slot is not None and slot.flags & KVM_MEMSLOT_INVALID:
            return errno.EAGAIN
        if vcpu.requests:
            vcpu.service_requests()
        if vcpu.root is None and kvm_mmu_load(vcpu) != RetPf.CONTINUE:
            return errno.ENOMEM
        ret = kvm_tdp_page_fault(vcpu, gpa, 0)
        if ret is not RET_PF_RETRY:
            break
        # Whoever stands in the way must come on.
        vcpu.sched.cond_resched()
    if ret is RET_PF_EMULATE:
        return errno.ENOENT
    return -ret if ret < 0 else 0
