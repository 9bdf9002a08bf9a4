"""What each VM exit means, and what is done about it: the one switch over exit reasons (handle_exit of vmx.c).

A handler returns None when the guest can go on, or the KvmRun that user space is to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Gpa, Gva
from ..cpu.engine import FETCH, READ, CpuExit, Event, EventKind
from ..cpu.mailbox import (
    EXIT_ACCESS,
    EXIT_FINAL,
    EXIT_GPA,
    EXIT_SIZE,
    EXIT_SMAP,
    EXIT_STACK,
    EXIT_VA,
    VECTORING,
)
from ..cpu.registers import RFLAGS_TF
from ..errors import ModelBug
from ..events import kvm_cr, kvm_page_fault
from ..x86 import (
    GP_VECTOR,
    PF_VECTOR,
    PFERR_RSVD,
    SS_VECTOR,
)
from .cr import load_pdptrs
from .emulate import emulate_mmio, emulate_unmarked, emulate_write
from .exit import ExitReason, InternalError, KvmRun
from .inject import exit_shutdown, inject
from .intercept import exit_cpuid, exit_cr_write, exit_invlpg, exit_msr_read, exit_msr_write
from .mmu.direct_page_fault import ept_error_code, kvm_tdp_page_fault, no_table_error_code
from .mmu.mmio_fault import handle_mmio_page_fault
from .mmu.page_fault import kvm_mmu_page_fault
from .mmu.paging_mode import TRAITS, PagingMode, paging_mode, root_gfn, rsvd_bits, rsvd_large_bits
from .mmu.role import kvm_calc_cpu_role
from .mmu.root import kvm_mmu_free_roots, kvm_mmu_load
from .mmu.spte import (
    RET_PF_CONTINUE,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_GUEST,
    RET_PF_INVALID,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    RetPf,
)
from .mp_state import MpState, exit_halted, exit_intr
from .turns import grant_quantum
from .unprotect import kvm_mmu_unprotect_gfn_and_retry

if TYPE_CHECKING:
    from .vcpu import Vcpu

_EXCEPTION = EventKind.EXCEPTION
_GO_ON = (RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_RETRY)


def handle_page_fault(vcpu: Vcpu) -> KvmRun | None:
    """The CPU's walker failed: an spte is missing or narrow, or the guest's own tables say no."""
    engine = vcpu.engine
    box = engine.box
    gva = Gva(box[EXIT_VA])
    error_code = vcpu.pferr()
    vcpu.smap_active = box[EXIT_SMAP] != 0
    interrupted = engine.vectoring() if box[VECTORING] else None
    if kvm_page_fault.on:
        kvm_page_fault(vcpu.id, engine.rip, gva, error_code)
    ret = handle_mmio_page_fault(vcpu, gva) if error_code & PFERR_RSVD else RET_PF_INVALID
    no_slot = ret is RET_PF_EMULATE
    if ret is RET_PF_INVALID:
        ret = kvm_mmu_page_fault(vcpu, gva, error_code)
    if ret is RET_PF_FIXED and interrupted is None:
        return None
    if ret is RET_PF_WRITE_PROTECTED:
        unprotect = vcpu.kvm.params.unprotect_retry and interrupted is None
        if unprotect and kvm_mmu_unprotect_gfn_and_retry(vcpu, gva):
            return None
        return _emulated(vcpu, *emulate_write(vcpu, gva, ret, interrupted))
    if ret is RET_PF_EMULATE and interrupted is None and box[EXIT_ACCESS] != FETCH:
        return _emulate_mmio(vcpu, gva, rom=not no_slot and vcpu.slot_of_walk())
    return _page_fault_done(vcpu, gva, ret, interrupted)


def handle_ept_violation(vcpu: Vcpu) -> KvmRun | None:
    """The nested tables do not map a gpa, or not for this access; or they name no frame (handle_ept_misconfig)."""
    engine = vcpu.engine
    box = engine.box
    gpa = Gpa(box[EXIT_GPA])
    error_code = ept_error_code(box)
    interrupted = engine.vectoring() if box[VECTORING] else None
    if kvm_page_fault.on:
        kvm_page_fault(vcpu.id, engine.rip, gpa, error_code)
    ret = handle_mmio_page_fault(vcpu, gpa) if error_code & PFERR_RSVD else RET_PF_INVALID
    no_slot = ret is RET_PF_EMULATE
    if ret is RET_PF_INVALID:
        ret = kvm_tdp_page_fault(vcpu, gpa, error_code)
    if ret is RET_PF_FIXED and interrupted is None:
        return None
    gva = Gva(box[EXIT_VA])
    if ret is RET_PF_EMULATE:
        if not box[EXIT_FINAL]:
            return _no_guest_table(vcpu, gva, interrupted)
        if interrupted is None and box[EXIT_ACCESS] != FETCH:
            return _emulate_mmio(vcpu, gva, rom=not no_slot and vcpu.slot_of_walk())
    return _page_fault_done(vcpu, gva, ret, interrupted)


def _no_guest_table(vcpu: Vcpu, gva: Gva, interrupted: Event | None) -> KvmRun | None:
    """One of the guest's own tables is where no memory is, which reads as not present; or it is in ROM."""
    if vcpu.slot_of_walk():
        return _emulated(vcpu, *emulate_unmarked(vcpu, gva, interrupted))
    vcpu.walker.error_code = no_table_error_code(vcpu)
    return inject_page_fault(vcpu, gva, interrupted)


def _page_fault_done(vcpu: Vcpu, gva: Gva, ret: RetPf, interrupted: Event | None) -> KvmRun | None:
    if ret is RET_PF_GUEST:
        return inject_page_fault(vcpu, gva, interrupted)
    if interrupted is not None:
        vcpu.engine.requeue(interrupted)
    if ret in _GO_ON:
        return None
    if ret is RET_PF_EMULATE and interrupted is not None:
        return _delivery_failed(vcpu, gva, interrupted)
    return page_fault_failed(vcpu, gva, ret)


def _delivery_failed(vcpu: Vcpu, gva: Gva, event: Event) -> KvmRun:
    """An event is delivered to, or by way of, where no memory is or only ROM: no instruction is there to emulate."""
    what = "ROM" if vcpu.slot_of_walk() else "no memory"
    gpa = vcpu.walker.gfn << PAGE_SHIFT | gva & 0xFFF
    text = f"rip {vcpu.engine.rip:#x}: vector {event.vector:#x} is delivered, and gva {gva:#x}, gpa {gpa:#x}, is {what}"
    return KvmRun(ExitReason.INTERNAL_ERROR, text, suberror=InternalError.DELIVERY_EV)


def _emulate_mmio(vcpu: Vcpu, gva: Gva, *, rom: bool) -> KvmRun | None:
    """A load or store where no memory is, or a store to ROM. Where there is no bus, user space answers it."""
    if vcpu.irq is not None:
        return _emulated(vcpu, *(emulate_write(vcpu, gva, RET_PF_EMULATE) if rom else emulate_mmio(vcpu, gva)))
    questions = vcpu.userspace_io
    if questions is None:
        return page_fault_failed(vcpu, gva, RET_PF_EMULATE)
    engine = vcpu.engine
    gpa = Gpa(vcpu.walker.gfn << PAGE_SHIFT | gva & 0xFFF)
    if engine.box[EXIT_ACCESS] == READ and questions.ask(gpa, engine.box[EXIT_SIZE]):
        return None
    before = engine.save()
    run = _emulated(vcpu, *emulate_write(vcpu, gva, RET_PF_EMULATE))
    if questions.take_back():
        engine.restore(before)
        kvm_mmu_free_roots(vcpu)
        return None
    return run


def _emulated(vcpu: Vcpu, ret: RetPf, reason: int) -> KvmRun | None:
    """What emulation came to: the instruction is done, perhaps with an exit of its own, or another page is missing."""
    if ret is RET_PF_CONTINUE:
        return None if reason == CpuExit.QUANTUM else handle_exit(vcpu, reason)
    return _page_fault_done(vcpu, Gva(vcpu.engine.box[EXIT_VA]), ret, vcpu.engine.vectoring())


def handle_exit(vcpu: Vcpu, reason: int) -> KvmRun | None:
    """The one switch over exit reasons."""
    handler = _EXIT_HANDLERS.get(reason)
    if handler is None:
        raise ModelBug(f"unknown exit {reason}")
    return handler(vcpu)


def page_fault_failed(vcpu: Vcpu, gva: Gva, ret: RetPf) -> KvmRun:
    """A fault that neither the guest nor the MMU can go on from."""
    where = f"rip {vcpu.engine.rip:#x} accesses gva {gva:#x}, gpa {vcpu.walker.gfn << PAGE_SHIFT | gva & 0xFFF:#x}"
    if ret == RetPf.EMULATE and not vcpu.slot_of_walk():
        return KvmRun(ExitReason.MMIO, f"{where}: no memory there")
    if ret == RetPf.EHWPOISON:
        return KvmRun(ExitReason.MEMORY_FAULT, f"{where}: {_poisoned(vcpu)} is poisoned", ret)
    if ret == RetPf.EINTR:
        return exit_intr(vcpu)
    return KvmRun(ExitReason.INTERNAL_ERROR, f"{where}: {ret.name}", ret)


def _poisoned(vcpu: Vcpu) -> str:
    """The page that the last walk found, or the guest's table at which it ended."""
    slot = vcpu.memslots.find(vcpu.walker.gfn)
    assert slot is not None, "the host was asked for a page of it"
    return f"hva {slot.vpn(vcpu.walker.gfn) << PAGE_SHIFT:#x}"


def inject_page_fault(vcpu: Vcpu, gva: Gva, interrupted: Event | None) -> KvmRun | None:
    """The guest's tables refuse: its own #PF handler is to run (kvm_inject_page_fault)."""
    vcpu.stat.pf_guest += 1
    return inject(vcpu, interrupted, Event(_EXCEPTION, PF_VECTOR, vcpu.walker.error_code, gva))


def _exit_cr_access(vcpu: Vcpu) -> KvmRun | None:
    """CR3, CR0, CR4 or EFER changed to something that no cached root was built for.

    The PAE pointers were loaded by the MOV that did it (intercept.py), unless that was a task switch: all that this can
    be with two-dimensional paging, of which the root does not depend on registers.
    """
    engine = vcpu.engine
    interrupted = engine.vectoring()
    if interrupted is not None:
        engine.requeue(interrupted)
    cr0, cr3, cr4, efer = engine.cr0, engine.cr3, engine.cr4, engine.efer
    if kvm_cr.on:
        kvm_cr(3, cr3)
    mode = paging_mode(cr0, cr4, efer)
    if mode is PagingMode.PAE and vcpu.pdptrs_cr3 != cr3:
        pdptrs = load_pdptrs(vcpu, cr3)
        if pdptrs is None:
            return inject(vcpu, None, Event(EventKind.EXCEPTION, GP_VECTOR, 0))
        vcpu.pdptrs, vcpu.pdptrs_cr3 = pdptrs, cr3
        engine.load_pdptrs(cr3, pdptrs)
    if vcpu.kvm.tdp_enabled:
        return None
    role = kvm_calc_cpu_role(cr0, cr4, efer, vcpu.kvm.a20_closed, vcpu.smm)
    if role != vcpu.cpu_role or mode != vcpu.mode:
        kvm_mmu_free_roots(vcpu)
    vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer = cr0, cr3, cr4, efer
    vcpu.mode, vcpu.levels, vcpu.cpu_role = mode, TRAITS[mode].levels, role
    vcpu.rsvd_bits, vcpu.root_gfn = rsvd_bits(mode, efer), root_gfn(mode, cr3)
    vcpu.rsvd_large = rsvd_large_bits(mode, vcpu.kvm.cpu_model)
    ret = kvm_mmu_load(vcpu)
    return None if ret == RetPf.CONTINUE else KvmRun(ExitReason.INTERNAL_ERROR, f"cr3 {cr3:#x}: {ret.name}", ret)


def _exit_non_canonical(vcpu: Vcpu) -> KvmRun | None:
    interrupted = vcpu.engine.vectoring()
    vector = SS_VECTOR if vcpu.engine.box[EXIT_STACK] else GP_VECTOR
    return inject(vcpu, interrupted, Event(EventKind.EXCEPTION, vector, 0))


def _exit_quantum(vcpu: Vcpu) -> KvmRun | None:
    return vcpu.end_of_quantum()


def _exit_hlt(vcpu: Vcpu) -> KvmRun | None:
    vcpu.stat.halt_exits += 1
    if vcpu.engine.rflags & RFLAGS_TF:
        vcpu.engine.trap_step()  # which ends the HLT at once
        return None
    if vcpu.irq is None:
        return exit_halted(vcpu)
    vcpu.mp_state = MpState.HALTED
    return None


def _exit_stopped(vcpu: Vcpu) -> KvmRun | None:
    vcpu.stat.io_exits += 1
    if vcpu.quit:
        return KvmRun(ExitReason.SYSTEM_EVENT)
    grant_quantum(vcpu)
    return None


def _exit_unsupported(vcpu: Vcpu) -> KvmRun:
    return KvmRun(ExitReason.INTERNAL_ERROR, f"at rip {vcpu.engine.rip:#x}: {vcpu.engine.error}")


_EXIT_HANDLERS: dict[int, Callable[[Vcpu], KvmRun | None]] = {
    CpuExit.WALK_FAULT: handle_page_fault,
    CpuExit.QUANTUM: _exit_quantum,
    CpuExit.CR_ACCESS: _exit_cr_access,
    CpuExit.NON_CANONICAL: _exit_non_canonical,
    CpuExit.HLT: _exit_hlt,
    CpuExit.SHUTDOWN: exit_shutdown,
    CpuExit.STOPPED: _exit_stopped,
    CpuExit.UNSUPPORTED: _exit_unsupported,
    CpuExit.CR_WRITE: exit_cr_write,
    CpuExit.MSR_READ: exit_msr_read,
    CpuExit.MSR_WRITE: exit_msr_write,
    CpuExit.CPUID: exit_cpuid,
    CpuExit.INVLPG: exit_invlpg,
    CpuExit.EPT_VIOLATION: handle_ept_violation,
    CpuExit.EPT_MISCONFIG: handle_ept_violation,
}
