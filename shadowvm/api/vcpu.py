"""A vCPU: KVM_RUN, registers, MSRs and interrupts (the vCPU ioctls)."""

from __future__ import annotations

import errno
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

from ..addr import Gpa
from ..cpu.engine import Event, EventKind
from ..cpu.registers import GENERAL
from ..cpu.segments import SEGMENTS, Segment, TableRegister
from ..cpu.unicorn_engine import UnicornEngine
from ..errors import KvmError
from ..kvm.cr import load_pdptrs
from ..kvm.dirty_ring_reset import DirtyEntry, dirty_ring_entries
from ..kvm.mmu.paging_mode import PagingMode, paging_mode
from ..kvm.mmu.unsync import vcpu_update_flush_exits
from ..kvm.mp_state import MpState
from ..kvm.msr import kvm_get_msr, kvm_set_msr
from ..kvm.pre_fault import kvm_vcpu_pre_fault_memory
from ..kvm.userspace_io import UserspaceIo
from ..kvm.vcpu import Vcpu as VcpuStruct
from ..x86 import EFER_NX, NMI_VECTOR

if TYPE_CHECKING:
    from ..kvm.exit import KvmRun
    from .vm import Vm

__all__ = ["Regs", "Segment", "Sregs", "TableRegister", "Vcpu"]

_MASK64 = (1 << 64) - 1


@dataclass(slots=True)
class Regs:
    """struct kvm_regs."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(slots=True)
class Sregs:
    """struct kvm_sregs. Limits of segments are in bytes, flags those of the descriptor's second doubleword."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: TableRegister
    idt: TableRegister
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int


class Vcpu:
    """One vCPU; `vcpu` is struct kvm_vcpu, `engine` the CPU itself. Registers may be read and written between runs."""

    def __init__(self, vm: Vm, vcpu_id: int, *, counting: bool, limit: int, userspace_io: bool) -> None:
        self.vm = vm
        self.id = vcpu_id
        self.engine = UnicornEngine(vm.host.ram, vcpu_id=vcpu_id, counting=counting)
        self.vcpu = VcpuStruct(vm.kvm, self.engine, limit=limit)
        vm.host.ram.code_caches.append(self.engine.drop_code)
        self.engine.init_reset()
        if not vm.kvm.cpu_model.has("nx"):
            self.engine.efer &= ~EFER_NX
        if userspace_io:
            UserspaceIo(self.vcpu)

    def run(self, instructions: int = 0) -> KvmRun:
        """KVM_RUN: until user space has something to do; INTR after so many `instructions` of all vCPUs, if not 0."""
        if instructions:
            self.vcpu.limit = self.vm.kvm.instructions + instructions
        return self.vm.host.call(partial(self.vcpu.run), f"CPU {self.id}/KVM", self.id)

    def get_regs(self) -> Regs:
        """KVM_GET_REGS."""
        general = {name: self.engine.get_reg(number) for name, number in GENERAL.items()}
        return Regs(**general, rip=self.engine.rip, rflags=self.engine.rflags)

    def set_regs(self, regs: Regs | None = None, **values: int) -> None:
        """KVM_SET_REGS: all of `regs`, and then single ones by name."""
        known = {each.name for each in fields(Regs)}
        changed = {} if regs is None else {name: getattr(regs, name) for name in known}
        for name, value in (changed | values).items():
            if name not in known:
                raise KvmError(errno.EINVAL, f"there is no register {name}")
            if name in GENERAL:
                self.engine.set_reg(GENERAL[name], value & _MASK64)
            else:
                setattr(self.engine, name, value & _MASK64)

    def get_sregs(self) -> Sregs:
        """KVM_GET_SREGS."""
        engine = self.engine
        return Sregs(
            **{name: engine.segment(number) for name, number in SEGMENTS.items()},
            tr=engine.tr,
            ldt=engine.ldtr,
            gdt=engine.gdtr,
            idt=engine.idtr,
            cr0=engine.cr0,
            cr2=engine.cr2,
            cr3=engine.cr3,
            cr4=engine.cr4,
            cr8=engine.cr8,
            efer=engine.efer,
        )

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM_SET_SREGS. The TLB is flushed; the MMU looks at the new registers at the next entry.

        Raises:
            KvmError: EINVAL, CR3 does not point at four PAE pointers in a mode that needs them.
        """
        self.vm.host.call(self.vcpu.free_roots)
        engine = self.engine
        engine.efer, engine.cr4, engine.cr0, engine.cr3 = sregs.efer, sregs.cr4, sregs.cr0, sregs.cr3
        engine.cr2, engine.cr8 = sregs.cr2, sregs.cr8
        for name, number in SEGMENTS.items():
            engine.set_segment(number, getattr(sregs, name))
        engine.tr, engine.ldtr, engine.gdtr, engine.idtr = sregs.tr, sregs.ldt, sregs.gdt, sregs.idt
        self._load_pdptrs(sregs)
        vcpu_update_flush_exits(self.vcpu)
        engine.flush_tlb()

    def _load_pdptrs(self, sregs: Sregs) -> None:
        self.vcpu.pdptrs_cr3 = -1
        if paging_mode(sregs.cr0, sregs.cr4, sregs.efer) is not PagingMode.PAE:
            return
        pdptrs = self.vm.host.call(lambda: load_pdptrs(self.vcpu, sregs.cr3))
        if pdptrs is None:
            raise KvmError(errno.EINVAL, f"cr3 {sregs.cr3:#x} points at no PAE pointers")
        self.vcpu.pdptrs, self.vcpu.pdptrs_cr3 = pdptrs, sregs.cr3
        self.engine.load_pdptrs(sregs.cr3, pdptrs)

    def get_msr(self, index: int) -> int:
        """KVM_GET_MSRS of one."""
        value = kvm_get_msr(self.vcpu, index)
        if value is None:
            raise KvmError(errno.EINVAL, f"there is no MSR {index:#x}")
        return value

    def set_msr(self, index: int, value: int) -> None:
        """KVM_SET_MSRS of one."""
        if not kvm_set_msr(self.vcpu, index, value):
            raise KvmError(errno.EINVAL, f"MSR {index:#x} does not take {value:#x}")

    def dirty_ring_entries(self) -> list[DirtyEntry]:
        """Harvest this vCPU's dirty ring; Vm.reset_dirty_rings() then makes room."""
        return self.vm.host.call(lambda: dirty_ring_entries(self.vcpu))

    def pre_fault_memory(self, gpa: int, size: int, flags: int = 0) -> int:
        """KVM_PRE_FAULT_MEMORY: map memory before the guest touches it; how many bytes were."""
        return self.vm.host.call(lambda: kvm_vcpu_pre_fault_memory(self.vcpu, Gpa(gpa), size, flags))

    def set_smm(self, smm: bool) -> None:
        """Look at the other address space (of slots with 1 << 16 in their numbers), as in system management mode."""
        self.vm.host.call(lambda: self.vcpu.set_smm(smm))

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: an external interrupt, which waits for IF."""
        if self.engine.irq_pending:
            raise KvmError(errno.EEXIST, "an interrupt waits already")
        if not 0 <= vector <= 255:
            raise KvmError(errno.EINVAL, f"there is no vector {vector}")
        self._wake()
        self.engine.queue_event(Event(EventKind.INTERRUPT, vector))

    def nmi(self) -> None:
        """KVM_NMI."""
        self._wake()
        self.engine.queue_event(Event(EventKind.NMI, NMI_VECTOR))

    def _wake(self) -> None:
        if self.vcpu.mp_state is MpState.HALTED:
            self.vcpu.mp_state = MpState.RUNNABLE

    @property
    def instructions(self) -> int:
        """Instructions that this vCPU has retired; 0 if they are not counted."""
        return self.engine.instructions

    def get_stats(self) -> dict[str, int]:
        """This vCPU's counters."""
        return self.vcpu.stat.as_dict()
