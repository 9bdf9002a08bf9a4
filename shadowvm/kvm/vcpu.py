"""A virtual CPU: one loop around the engine, one switch over exit reasons (vcpu_enter_guest and handle_exit).

A host thread calls run(); it returns when user space must act: the guest halted, shut down, hit the instruction
limit, or the host failed. Everything else is handled here and the guest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Gfn, Gva, Hva
from ..cpu.engine import CpuExit, Event, EventKind
from ..cpu.mailbox import EXIT_ACCESS, EXIT_SMAP, EXIT_USER, EXIT_VA, EXIT_WHY, KEY_CR3, ROOT, VECTORING
from ..errors import ModelBug
from ..events import kvm_cr, kvm_entry, kvm_exit, kvm_inj_exception, kvm_page_fault, kvm_userspace_exit
from ..mm.page_alloc import Page, put_page
from ..x86 import (
    GP_VECTOR,
    PF_VECTOR,
    PFERR_FETCH,
    PFERR_PRESENT,
    PFERR_USER,
    PFERR_WRITE,
)
from .emulate import emulate_write
from .exception import merge_events
from .exit import ExitReason, KvmRun
from .memslot import MemSlot
from .mmu.guest_walker import GuestWalker
from .mmu.page_fault import KvmPageFault, kvm_mmu_page_fault
from .mmu.paging_mode import TRAITS, PagingMode, paging_mode, root_gfn, rsvd_bits
from .mmu.pte_write import kvm_mmu_unprotect_gfn
from .mmu.role import kvm_calc_cpu_role
from .mmu.root import Root, find_root, free_obsolete_roots, kvm_mmu_free_roots, kvm_mmu_load
from .mmu.spte import RET_PF_FIXED, RET_PF_GUEST, RET_PF_RETRY, RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED, RetPf
from .stats import VcpuStat
from .vm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, KVM_REQ_TLB_FLUSH

if TYPE_CHECKING:
    from ..cpu.unicorn_engine import UnicornEngine
    from .vm import Kvm

QUANTUM = 1_000_000
"""Guest instructions between two looks at the limit, at signals and at other tasks."""

_VMX_EXIT_REASONS = {
    CpuExit.QUANTUM: "PREEMPTION_TIMER",
    CpuExit.WALK_FAULT: "EXCEPTION_NMI",
    CpuExit.CR_ACCESS: "CR_ACCESS",
    CpuExit.NON_CANONICAL: "EXCEPTION_NMI",
    CpuExit.HLT: "HLT",
    CpuExit.SHUTDOWN: "TRIPLE_FAULT",
    CpuExit.STOPPED: "IO_INSTRUCTION",
    CpuExit.UNSUPPORTED: "INVALID_STATE",
}
"""Exits as the kvm_exit tracepoint names them on VMX without EPT."""

_PFERR_OF_ACCESS = (0, PFERR_WRITE, PFERR_FETCH)
_GO_ON = (RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_RETRY)
_NO_SLOT = MemSlot(-1, Gfn(0), 0, Hva(0))


class Vcpu:
    """State of one vCPU.

    requests: KVM_REQ_* bits, served before the next entry. root: the shadow root of the current CR3. cr0, cr3, cr4,
    efer, cpu_role, mode, levels, root_gfn, pdptrs: what root was loaded for. event: what to inject at the next entry.
    slot: the memslot used last. limit: instructions after which run() returns INTR, 0 for none.
    """

    __slots__ = (
        "cpu_role",
        "cr0",
        "cr3",
        "cr4",
        "efer",
        "engine",
        "event",
        "fault",
        "id",
        "kvm",
        "levels",
        "limit",
        "mmu_shadow_page_cache",
        "mode",
        "on_quantum",
        "pdptrs",
        "requests",
        "root",
        "root_gfn",
        "roots",
        "rsvd_bits",
        "slot",
        "smap_active",
        "stat",
        "walker",
    )

    def __init__(self, kvm: Kvm, engine: UnicornEngine, *, limit: int = 0) -> None:
        self.kvm = kvm
        self.id = len(kvm.vcpus)
        self.engine = engine
        self.stat = VcpuStat()
        self.requests = 0
        self.root: Root | None = None
        self.roots: list[Root] = []
        self.cr0 = self.cr3 = self.cr4 = self.efer = self.cpu_role = self.rsvd_bits = 0
        self.smap_active = False
        self.mode = PagingMode.NONPAGING
        self.levels = TRAITS[self.mode].levels
        self.root_gfn = Gfn(0)
        self.pdptrs = [0, 0, 0, 0]
        self.event: Event | None = None
        self.walker = GuestWalker()
        self.fault = KvmPageFault()
        self.slot = _NO_SLOT
        self.mmu_shadow_page_cache: list[Page] = []
        self.limit = limit
        self.on_quantum: Callable[[], None] | None = None
        kvm.vcpus.append(self)

    def run(self) -> KvmRun:
        """KVM_RUN: execute guest code until user space has something to do."""
        self._grant_quantum()
        while True:
            result = vcpu_enter_guest(self)
            if result is not None:
                if kvm_userspace_exit.on:
                    kvm_userspace_exit(result.exit_reason.name, result.errno)
                return result

    def _grant_quantum(self) -> bool:
        """Budget for the next stretch; False when the limit is reached."""
        engine = self.engine
        if not engine.counting:
            return True
        left = self.limit - engine.instructions if self.limit else QUANTUM
        if left <= 0:
            return False
        engine.set_budget(min(left, QUANTUM))
        return True

    def end_of_quantum(self) -> KvmRun | None:
        """The budget is used up: go on, unless the limit is reached."""
        if self.on_quantum is not None:
            self.on_quantum()
        if self._grant_quantum():
            return None
        return KvmRun(ExitReason.INTR, f"{self.engine.instructions} instructions")

    def pferr(self) -> int:
        """Hardware error code of the walk that failed last: P, W, U, F."""
        box = self.engine.box
        error_code = _PFERR_OF_ACCESS[box[EXIT_ACCESS]] | (PFERR_PRESENT if box[EXIT_WHY] else 0)
        return error_code | PFERR_USER if box[EXIT_USER] else error_code

    def service_requests(self) -> None:
        """Serve KVM_REQ_*: obsolete roots first, since dropping them asks for a flush too."""
        if self.requests & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS:
            free_obsolete_roots(self)
        if self.requests & KVM_REQ_TLB_FLUSH:
            self.stat.tlb_flush += 1
            self.engine.flush_tlb()
        self.requests = 0

    def free_roots(self) -> None:
        """Drop every root (kvm_mmu_unload)."""
        kvm_mmu_free_roots(self)

    def free_caches(self) -> None:
        """Give unused shadow page frames back to the host."""
        while self.mmu_shadow_page_cache:
            put_page(self.kvm.mm.host, self.mmu_shadow_page_cache.pop())


def vcpu_enter_guest(vcpu: Vcpu) -> KvmRun | None:
    """One entry and the handling of its exit; None to go on."""
    sched = vcpu.kvm.mm.host.sched
    if sched.need_resched:
        sched.cond_resched()
    if vcpu.requests:
        vcpu.service_requests()
    engine = vcpu.engine
    if vcpu.event is not None:
        engine.queue_event(vcpu.event)
        vcpu.event = None
    if kvm_entry.on:
        kvm_entry(vcpu.id, engine.rip)
    reason = engine.enter()
    vcpu.stat.exits += 1
    box = engine.box
    if vcpu.root is not None and box[ROOT] != vcpu.root.hpa:
        _follow_native_root_switch(vcpu)
    if kvm_exit.on:
        kvm_exit(vcpu.id, _VMX_EXIT_REASONS[reason], engine.rip, box[EXIT_VA], box[EXIT_ACCESS])
    return handle_exit(vcpu, reason)


def _follow_native_root_switch(vcpu: Vcpu) -> None:
    """The engine found a new CR3 among the cached roots and switched by itself."""
    vcpu.root = find_root(vcpu, vcpu.engine.box[ROOT])
    vcpu.cr3 = vcpu.engine.box[KEY_CR3]
    vcpu.root_gfn = root_gfn(vcpu.mode, vcpu.cr3)


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
    ret = kvm_mmu_page_fault(vcpu, gva, error_code)
    if ret is RET_PF_FIXED and interrupted is None:
        return None
    if ret is RET_PF_WRITE_PROTECTED:
        if interrupted is None:
            return _emulate(vcpu, gva)
        kvm_mmu_unprotect_gfn(vcpu.kvm, vcpu.walker.gfn)
        ret = RET_PF_RETRY
    if ret is RET_PF_GUEST:
        return inject_page_fault(vcpu, gva, interrupted)
    if interrupted is not None:
        engine.requeue(interrupted)
    if ret in _GO_ON:
        return None
    return page_fault_failed(vcpu, gva, ret)


def _emulate(vcpu: Vcpu, gva: Gva) -> KvmRun | None:
    """The instruction at RIP stores to a tracked page; run it under supervision, then handle how that ended."""
    ret, reason = emulate_write(vcpu, gva)
    if ret == RetPf.CONTINUE:
        return None if reason == CpuExit.QUANTUM else handle_exit(vcpu, reason)
    gva = Gva(vcpu.engine.box[EXIT_VA])
    return inject_page_fault(vcpu, gva, None) if ret == RetPf.GUEST else page_fault_failed(vcpu, gva, ret)


def handle_exit(vcpu: Vcpu, reason: int) -> KvmRun | None:
    """The one switch over exit reasons."""
    handler = _EXIT_HANDLERS.get(reason)
    if handler is None:
        raise ModelBug(f"unknown exit {reason}")
    return handler(vcpu)


def page_fault_failed(vcpu: Vcpu, gva: Gva, ret: RetPf) -> KvmRun:
    """A fault that neither the guest nor the MMU can go on from."""
    where = f"rip {vcpu.engine.rip:#x} accesses gva {gva:#x}, gpa {vcpu.walker.gfn << PAGE_SHIFT | gva & 0xFFF:#x}"
    if ret == RetPf.INVALID:
        return KvmRun(ExitReason.MMIO, f"{where}: no memory there")
    return KvmRun(ExitReason.INTERNAL_ERROR, f"{where}: {ret.name}", ret)


def inject_page_fault(vcpu: Vcpu, gva: Gva, interrupted: Event | None) -> KvmRun | None:
    """The guest's tables refuse: its own #PF handler is to run (kvm_inject_page_fault)."""
    vcpu.stat.pf_guest += 1
    return inject(vcpu, interrupted, Event(EventKind.EXCEPTION, PF_VECTOR, vcpu.walker.error_code, gva))


def inject(vcpu: Vcpu, interrupted: Event | None, event: Event) -> KvmRun | None:
    """Queue `event`, or what it becomes on top of a delivery that it interrupted."""
    merged = merge_events(interrupted, event)
    if merged is None:
        return _exit_shutdown(vcpu)
    vcpu.event = merged
    if kvm_inj_exception.on:
        kvm_inj_exception(merged.vector, merged.error_code or 0, "")
    return None


def _exit_cr_access(vcpu: Vcpu) -> KvmRun | None:
    """CR3, CR0, CR4 or EFER changed to something that no cached root was built for."""
    engine = vcpu.engine
    interrupted = engine.vectoring()
    if interrupted is not None:
        engine.requeue(interrupted)
    cr0, cr3, cr4, efer = engine.cr0, engine.cr3, engine.cr4, engine.efer
    if kvm_cr.on:
        kvm_cr(3, cr3)
    mode = paging_mode(cr0, cr4, efer)
    if mode is not PagingMode.PT64:
        text = f"paging mode cr0={cr0:#x} cr4={cr4:#x} efer={efer:#x} is not supported: only 4-level paging is"
        return KvmRun(ExitReason.INTERNAL_ERROR, text)
    role = kvm_calc_cpu_role(cr0, cr4, efer)
    if role != vcpu.cpu_role or mode != vcpu.mode:
        kvm_mmu_free_roots(vcpu)
    vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer = cr0, cr3, cr4, efer
    vcpu.mode, vcpu.levels, vcpu.cpu_role = mode, TRAITS[mode].levels, role
    vcpu.rsvd_bits, vcpu.root_gfn = rsvd_bits(mode, efer), root_gfn(mode, cr3)
    ret = kvm_mmu_load(vcpu)
    return None if ret == RetPf.CONTINUE else KvmRun(ExitReason.INTERNAL_ERROR, f"cr3 {cr3:#x}: {ret.name}", ret)


def _exit_non_canonical(vcpu: Vcpu) -> KvmRun | None:
    interrupted = vcpu.engine.vectoring()
    return inject(vcpu, interrupted, Event(EventKind.EXCEPTION, GP_VECTOR, 0))


def _exit_quantum(vcpu: Vcpu) -> KvmRun | None:
    return vcpu.end_of_quantum()


def _exit_hlt(vcpu: Vcpu) -> KvmRun:
    vcpu.stat.halt_exits += 1
    return KvmRun(ExitReason.HLT, f"hlt at rip {vcpu.engine.rip - 1:#x}, and nothing can wake the guest")


def _exit_shutdown(vcpu: Vcpu) -> KvmRun:
    return KvmRun(ExitReason.SHUTDOWN, f"at rip {vcpu.engine.rip:#x}, cr2 {vcpu.engine.cr2:#x}")


def _exit_stopped(vcpu: Vcpu) -> KvmRun:
    vcpu.stat.io_exits += 1
    return KvmRun(ExitReason.SYSTEM_EVENT)


def _exit_unsupported(vcpu: Vcpu) -> KvmRun:
    return KvmRun(ExitReason.INTERNAL_ERROR, f"at rip {vcpu.engine.rip:#x}: {vcpu.engine.error}")


_EXIT_HANDLERS: dict[int, Callable[[Vcpu], KvmRun | None]] = {
    CpuExit.WALK_FAULT: handle_page_fault,
    CpuExit.QUANTUM: _exit_quantum,
    CpuExit.CR_ACCESS: _exit_cr_access,
    CpuExit.NON_CANONICAL: _exit_non_canonical,
    CpuExit.HLT: _exit_hlt,
    CpuExit.SHUTDOWN: _exit_shutdown,
    CpuExit.STOPPED: _exit_stopped,
    CpuExit.UNSUPPORTED: _exit_unsupported,
}
