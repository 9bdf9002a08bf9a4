"""Whether a vCPU runs, sleeps in HLT or waits for INIT and SIPI (KVM_MP_STATE_*, kvm_vcpu_block of kvm_main.c).

A vCPU that does not run is a task that sleeps; what may concern it (an interrupt, INIT, SIPI, a pause) wakes it by
Vcpu.look_again() or Vcpu.wake_up().
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ..cpu.layout import HF2_NMI_MASK
from ..cpu.registers import HFLAGS
from ..x86 import RFLAGS_IF
from .exit import ExitReason, KvmRun
from .mmu.unsync import vcpu_update_flush_exits
from .vm import KVM_REQ_APF_READY

if TYPE_CHECKING:
    from .irq import IrqState
    from .vcpu import Vcpu


class MpState(IntEnum):
    """KVM_MP_STATE_*, with their numbers."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    """Never had INIT, nor SIPI."""
    INIT_RECEIVED = 2
    HALTED = 3


RUNNABLE = MpState.RUNNABLE


def exit_halted(vcpu: Vcpu) -> KvmRun:
    """Nothing will wake a CPU that sleeps or was never started."""
    if vcpu.mp_state in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED):
        return KvmRun(ExitReason.HLT, f"vcpu {vcpu.id} waits to be started, and no CPU runs")
    return KvmRun(ExitReason.HLT, f"hlt at rip {vcpu.engine.rip - 1:#x}, and nothing can wake the guest")


def exit_intr(vcpu: Vcpu) -> KvmRun:
    """A signal: user space wants the VM to pause."""
    vcpu.stat.signal_exits += 1
    return KvmRun(ExitReason.INTR, "paused")


def kvm_apic_accept_events(vcpu: Vcpu, irq: IrqState) -> None:
    """INIT resets the CPU, which then waits for SIPI unless it is the boot CPU; SIPI starts it."""
    if irq.chip.take_init():
        kvm_vcpu_reset(vcpu, irq)
        vcpu.mp_state = MpState.INIT_RECEIVED if irq.chip.waits_for_sipi else RUNNABLE
    page = irq.chip.take_sipi()
    if page is not None:
        vcpu.engine.init_sipi(page)
        vcpu.mp_state = RUNNABLE


def kvm_vcpu_reset(vcpu: Vcpu, irq: IrqState) -> None:
    """What INIT does to the CPU itself (SDM vol. 3, table 9-1). Its local APIC has done its own part, and its roots go
    at the next access, which finds paging off."""
    vcpu.event = None
    irq.queued, irq.nmi = None, False
    vcpu.apf.reset()
    vcpu.pdptrs_cr3 = -1
    vcpu_update_flush_exits(vcpu)
    vcpu.engine.init_reset(warm=True)


def has_events(vcpu: Vcpu, irq: IrqState) -> bool:
    """Whether a vCPU that sleeps has a reason to go on (kvm_arch_vcpu_runnable)."""
    if irq.chip.has_init_or_sipi:
        return True
    if vcpu.mp_state is not MpState.HALTED and not vcpu.apf.halted:
        return False
    if vcpu.event is not None or irq.nmi_pending() or _holds_nmi(vcpu) or vcpu.requests & KVM_REQ_APF_READY:
        return True
    return bool(vcpu.engine.rflags & RFLAGS_IF) and irq.chip.pending_irq() is not None


def _holds_nmi(vcpu: Vcpu) -> bool:
    """The engine had an NMI when HLT retired: it came in the shadow of STI. One that waits for IRET does not count."""
    engine = vcpu.engine
    return engine.nmi_pending and not engine.env[HFLAGS] >> 32 & HF2_NMI_MASK


def kvm_vcpu_block(vcpu: Vcpu, irq: IrqState) -> bool:
    """Sleep until the vCPU runs. False: the VM is paused, or nothing will ever wake anybody."""
    while True:
        kvm_apic_accept_events(vcpu, irq)
        if vcpu.mp_state is MpState.HALTED and has_events(vcpu, irq):
            vcpu.mp_state = RUNNABLE
        if vcpu.mp_state is RUNNABLE:
            return True
        if vcpu.kvm.paused or vcpu.kvm.all_asleep:
            return False
        vcpu.quiesce()
        vcpu.sched.wait(vcpu)
