"""A virtual CPU: its state and one loop around the engine (vcpu_enter_guest of x86.c).

A host thread calls run(); it returns when user space must act: the guest halted, shut down, hit the instruction
limit, or the host failed. Everything else is handled (handle_exit.py) and the guest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addr import Gfn, Hva
from ..cpu.engine import CpuExit, Event
from ..cpu.mailbox import EXIT_ACCESS, EXIT_USER, EXIT_VA, EXIT_WHY, KEY_CR3, ROOT
from ..events import kvm_entry, kvm_exit, kvm_userspace_exit
from ..mm.page_alloc import Page, put_page
from ..x86 import PFERR_FETCH, PFERR_PRESENT, PFERR_USER, PFERR_WRITE
from .exit import ExitReason, KvmRun
from .handle_exit import handle_exit
from .intercept import CR3_RESERVED
from .irq import IrqState, inject_pending, settle_irq
from .memslot import MemSlot
from .mmu.guest_walker import GuestWalker
from .mmu.page_fault import KvmPageFault
from .mmu.paging_mode import TRAITS, PagingMode, root_gfn
from .mmu.root import Root, find_root, free_obsolete_roots, kvm_mmu_free_roots
from .msr import NATIVE, Msrs
from .stats import VcpuStat
from .vm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, KVM_REQ_TLB_FLUSH

if TYPE_CHECKING:
    from ..cpu.unicorn_engine import UnicornEngine
    from .vm import Kvm

QUANTUM = 1_000_000
"""Guest instructions between two looks at the limit, at signals and at other tasks."""

_VMX_EXIT_REASONS: dict[int, str] = {
    CpuExit.QUANTUM: "PREEMPTION_TIMER",
    CpuExit.WALK_FAULT: "EXCEPTION_NMI",
    CpuExit.CR_ACCESS: "CR_ACCESS",
    CpuExit.NON_CANONICAL: "EXCEPTION_NMI",
    CpuExit.HLT: "HLT",
    CpuExit.SHUTDOWN: "TRIPLE_FAULT",
    CpuExit.STOPPED: "IO_INSTRUCTION",
    CpuExit.UNSUPPORTED: "INVALID_STATE",
    CpuExit.CR_WRITE: "CR_ACCESS",
    CpuExit.MSR_READ: "MSR_READ",
    CpuExit.MSR_WRITE: "MSR_WRITE",
    CpuExit.CPUID: "CPUID",
}
"""Exits as the kvm_exit tracepoint names them on VMX without EPT."""

_PFERR_OF_ACCESS = (0, PFERR_WRITE, PFERR_FETCH)
_NO_SLOT = MemSlot(-1, Gfn(0), 0, Hva(0))


class Vcpu:
    """State of one vCPU.

    requests: KVM_REQ_* bits, served before the next entry. root: the shadow root of the current CR3. cr0, cr3, cr4,
    efer, cpu_role, mode, levels, root_gfn, pdptrs: what root was loaded for. event: what to inject at the next entry.
    slot: the memslot used last. link_generation: kvm's at the last exit, -1 when box[EXIT_TABLE] means nothing. limit:
    instructions after which run() returns INTR, 0 for none. irq: None for a CPU that nothing interrupts. quit: a device
    has ended the run. granted, granted_at: the last budget and when it was granted. stalled: budget used up by
    exceptions alone since an instruction last retired; it counts towards the limit too.
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
        "granted",
        "granted_at",
        "id",
        "irq",
        "kvm",
        "levels",
        "limit",
        "link_generation",
        "mmu_shadow_page_cache",
        "mode",
        "msrs",
        "on_quantum",
        "pdptrs",
        "quit",
        "requests",
        "root",
        "root_gfn",
        "roots",
        "rsvd_bits",
        "sched",
        "slot",
        "smap_active",
        "stalled",
        "stat",
        "walker",
    )

    def __init__(self, kvm: Kvm, engine: UnicornEngine, *, limit: int = 0) -> None:
        self.kvm = kvm
        self.sched = kvm.mm.host.sched
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
        self.link_generation = -1
        self.event: Event | None = None
        self.walker = GuestWalker()
        self.fault = KvmPageFault()
        self.slot = _NO_SLOT
        self.mmu_shadow_page_cache: list[Page] = []
        self.limit = limit
        self.granted = self.granted_at = self.stalled = 0
        self.irq: IrqState | None = None
        self.msrs = Msrs()
        self.quit = False
        engine.controls.cr = engine.controls.msr = engine.controls.cpuid = True
        engine.controls.cr3_reserved = CR3_RESERVED
        edx, ecx, ebx7, ecx7, edx81, ecx81 = kvm.cpu_model.features
        engine.set_features((ecx, edx), (ebx7, ecx7), (ecx81, edx81))
        for index in NATIVE:
            engine.controls.pass_msr(index)
        self.on_quantum: Callable[[], None] | None = None
        kvm.vcpus.append(self)

    def run(self) -> KvmRun:
        """KVM_RUN: execute guest code until user space has something to do."""
        self.quit = False
        self.grant_quantum()
        while True:
            result = vcpu_enter_guest(self)
            if result is not None:
                if kvm_userspace_exit.on:
                    kvm_userspace_exit(result.exit_reason.name, result.errno)
                return result

    def grant_quantum(self) -> bool:
        """Budget for the next stretch; False when the limit is reached."""
        engine = self.engine
        if not engine.counting:
            return True
        left = self.limit - engine.instructions if self.limit else QUANTUM
        if left <= 0:
            return False
        if self.irq is not None:
            now = self.irq.clock.now()
            engine.set_time_base(now - engine.instructions)
            deadline = self.irq.clock.next_deadline()
            if deadline is not None:
                left = min(left, max(deadline - now, 1))
        self.granted, self.granted_at = min(left, QUANTUM), engine.instructions
        engine.set_budget(self.granted)
        return True

    def stop(self) -> None:
        """A device ends the run: run() returns SYSTEM_EVENT after the instruction that asked for it."""
        self.quit = True
        self.engine.request_stop()

    def slot_of_walk(self) -> bool:
        """Whether memory is behind the frame that the last walk found."""
        return self.kvm.memslots.find(self.walker.gfn) is not None

    def settle_irq(self) -> None:
        """Let the chips know of an interrupt that was delivered, before the guest can talk to them about it."""
        irq = self.irq
        if irq is not None and irq.queued is not None:
            settle_irq(self, irq)

    def look_again(self) -> None:
        """Interrupts or deadlines have changed under a device's hands: leave the guest and look."""
        assert self.irq is not None
        self.irq.check = True
        self.engine.request_stop()

    def end_of_quantum(self) -> KvmRun | None:
        """The budget is used up: go on, unless the limit is reached."""
        if self.on_quantum is not None:
            self.on_quantum()
        if self.irq is not None:
            self.irq.clock.run_due()
        self.stalled = self.stalled + self.granted if self.engine.instructions == self.granted_at else 0
        if self.limit and self.stalled >= self.limit:
            return KvmRun(ExitReason.INTR, f"{self.stalled} exceptions in a row, and no instruction retired")
        if self.grant_quantum():
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
    sched = vcpu.sched
    if sched.need_resched:
        sched.cond_resched()
    if vcpu.requests:
        vcpu.service_requests()
    engine = vcpu.engine
    irq = vcpu.irq
    if irq is not None and irq.check:
        inject_pending(vcpu, irq)
    if vcpu.event is not None:
        engine.queue_event(vcpu.event)
        vcpu.event = None
    if kvm_entry.on:
        kvm_entry(vcpu.id, engine.rip)
    reason = engine.enter()
    vcpu.link_generation = vcpu.kvm.link_generation
    vcpu.stat.exits += 1
    vcpu.settle_irq()
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
