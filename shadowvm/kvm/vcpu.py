"""A virtual CPU: its state and one loop around the engine (vcpu_enter_guest of x86.c).

A host thread calls run(); it returns when user space must act: the guest halted, shut down, hit the instruction
limit, or the host failed. Everything else is handled (handle_exit.py) and the guest goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addr import Gfn, Hva
from ..cpu.engine import CpuExit, Event, WalkFault
from ..cpu.mailbox import EXIT_ACCESS, EXIT_USER, EXIT_VA, EXIT_WHY, KEY_CR3, ROOT
from ..events import kvm_entry, kvm_exit, kvm_userspace_exit
from ..mm.page_alloc import Page, put_page
from ..x86 import PFERR_FETCH, PFERR_PK, PFERR_PRESENT, PFERR_RSVD, PFERR_USER, PFERR_WRITE
from .apf import AsyncPf, kvm_apf_block
from .dirty_ring import KVM_REQ_DIRTY_RING_SOFT_FULL, kvm_dirty_ring_alloc, kvm_dirty_ring_check_request
from .exit import ExitReason, KvmRun
from .handle_exit import handle_exit
from .intercept import CR3_RESERVED
from .irq import IrqState, inject_pending, settle_irq
from .memslot import MemSlot
from .mmu.async_page_ready import kvm_check_async_pf_completion
from .mmu.guest_walker import GuestWalker
from .mmu.mmio_fault import MmioInfo
from .mmu.page_fault import KvmPageFault
from .mmu.paging_mode import MAXPHYADDR, TRAITS, PagingMode, root_gfn
from .mmu.root import Root, find_root, free_obsolete_roots, kvm_mmu_free_roots, kvm_mmu_load
from .mmu.spte import RetPf
from .mmu.sync import kvm_mmu_sync_roots
from .mmu.unsync import vcpu_update_flush_exits
from .mp_state import RUNNABLE, exit_halted, exit_intr, has_events, kvm_vcpu_block
from .msr import CHECKED, NATIVE, Msrs
from .stats import VcpuStat
from .turns import end_turn, grant_quantum, vcpu_load
from .vm import (
    KVM_REQ_APF_HALT,
    KVM_REQ_APF_READY,
    KVM_REQ_DEVICE_WORK,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_MMU_RELOAD,
    KVM_REQ_MMU_SYNC,
    KVM_REQ_PAUSE,
    KVM_REQ_SRCU,
    KVM_REQ_TLB_FLUSH,
)

if TYPE_CHECKING:
    from ..cpu.unicorn_engine import UnicornEngine
    from ..sync import Task
    from .userspace_io import UserspaceIo
    from .vm import Kvm

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
    CpuExit.INVLPG: "INVLPG",
    CpuExit.EPT_VIOLATION: "EPT_VIOLATION",
    CpuExit.EPT_MISCONFIG: "EPT_MISCONFIG",
}
"""Exits as the kvm_exit tracepoint names them on VMX."""

_ROOT_REQUESTS = KVM_REQ_MMU_RELOAD | KVM_REQ_MMU_FREE_OBSOLETE_ROOTS | KVM_REQ_MMU_SYNC
_KEEPS_OUT = KVM_REQ_PAUSE | KVM_REQ_DIRTY_RING_SOFT_FULL
_PFERR_OF_ACCESS = (0, PFERR_WRITE, PFERR_FETCH)
_WHY_PK, _WHY_BAD_FRAME = int(WalkFault.PK), int(WalkFault.BAD_FRAME)
_NO_SLOT = MemSlot(-1, Gfn(0), 0, Hva(0))


class Vcpu:
    """State of one vCPU.

    requests: KVM_REQ_* bits, served before the next entry. last_retry: RIP and address of the store for which a page
    was unshadowed last. root: the shadow root of the current CR3. cr0, cr3, cr4,
    efer, cpu_role, mode, levels, root_gfn, pdptrs, rsvd_bits, rsvd_large: what root was loaded for. pdptrs_cr3: the
    CR3 that pdptrs were read at, -1 outside of PAE mode. event: what to inject at the next entry.
    smm: in system management mode. memslots: those that the vCPU sees. slot: that of them used last.
    link_generation: kvm's at the last exit, -1 when box[EXIT_TABLE] means nothing. limit:
    instructions of all vCPUs after which run() returns INTR, 0 for none. irq: None for a CPU that nothing interrupts.
    task: the host thread in run(). mp_state: whether it executes. quit: a device has ended the run. turn_left: what the
    vCPU may still use of its turn, as of the last budget. granted, granted_at: that budget and when it was granted.
    stalled: budget used up by exceptions alone since an instruction last retired; it counts towards the limit too.
    device_work: what a device left to be done outside of the guest. userspace_io: who answers its ports and MMIO if
    there are no devices. mmio_info: the last access to a device. dirty_ring: None where logs are bitmaps. apf: pages
    that it does not wait for.
    """

    __slots__ = (
        "apf",
        "cpu_role",
        "cr0",
        "cr3",
        "cr4",
        "device_work",
        "dirty_ring",
        "efer",
        "engine",
        "event",
        "fault",
        "granted",
        "granted_at",
        "id",
        "irq",
        "kvm",
        "last_retry",
        "levels",
        "limit",
        "link_generation",
        "memslots",
        "mmio_info",
        "mmu_shadow_page_cache",
        "mode",
        "mp_state",
        "msrs",
        "on_quantum",
        "pdptrs",
        "pdptrs_cr3",
        "quit",
        "requests",
        "root",
        "root_gfn",
        "roots",
        "rsvd_bits",
        "rsvd_large",
        "sched",
        "slot",
        "smap_active",
        "smm",
        "stalled",
        "stat",
        "task",
        "turn_left",
        "userspace_io",
        "walker",
    )

    def __init__(self, kvm: Kvm, engine: UnicornEngine, *, limit: int = 0) -> None:
        self.kvm = kvm
        self.memslots = kvm.memslots
        self.sched = kvm.mm.host.sched
        self.id = len(kvm.vcpus)
        self.engine = engine
        self.stat = VcpuStat()
        self.requests = 0
        self.root: Root | None = None
        self.roots: list[Root] = []
        self.cr0 = self.cr3 = self.cr4 = self.efer = self.cpu_role = self.rsvd_bits = 0
        self.smap_active = self.smm = False
        self.mode = PagingMode.NONPAGING
        self.levels = TRAITS[self.mode].levels
        self.root_gfn = Gfn(0)
        self.pdptrs = [0, 0, 0, 0]
        self.pdptrs_cr3 = -1
        self.rsvd_large: tuple[int, ...] = ()
        self.link_generation = -1
        self.last_retry: tuple[int, int] | None = None
        self.event: Event | None = None
        self.walker = GuestWalker()
        self.fault = KvmPageFault()
        self.slot = _NO_SLOT
        self.mmu_shadow_page_cache: list[Page] = []
        self.limit = limit
        self.granted = engine.budget
        self.granted_at = self.stalled = 0
        self.turn_left = kvm.turns.next()
        self.mp_state = RUNNABLE
        self.apf = AsyncPf()
        self.task: Task | None = None
        self.irq: IrqState | None = None
        self.msrs = Msrs()
        self.quit = False
        self.mmio_info = MmioInfo()
        self.dirty_ring = kvm_dirty_ring_alloc(kvm, self.id)
        self.userspace_io: UserspaceIo | None = None
        self.device_work: list[Callable[[], None]] = []
        engine.controls.cr = engine.controls.msr = engine.controls.check_msrs = engine.controls.cpuid = True
        engine.controls.cr3_reserved = CR3_RESERVED
        edx, ecx, ebx7, ecx7, edx81, ecx81 = kvm.cpu_model.features[:6]
        engine.set_features((ecx, edx), (ebx7, ecx7), (ecx81, edx81))
        gigabyte, pse36 = kvm.cpu_model.has("pdpe1gb"), kvm.cpu_model.has("pse36")
        engine.nested.set_features(MAXPHYADDR, gigabyte=gigabyte, pse36=pse36)
        for index in NATIVE:
            engine.controls.pass_msr(index, write=index not in CHECKED)
        self.on_quantum: Callable[[], None] | None = None
        vcpu_update_flush_exits(self)
        kvm.vcpus.append(self)

    def run(self) -> KvmRun:
        """KVM_RUN: execute guest code until user space has something to do."""
        self.quit = False
        self.task = self.sched.current
        questions = self.userspace_io
        if questions is not None:
            questions.complete()
        while True:
            if questions is not None and questions.exits:
                result: KvmRun | None = questions.next_exit()
            elif self.mp_state is not RUNNABLE and not (self.irq is not None and kvm_vcpu_block(self, self.irq)):
                result = exit_intr(self) if self.kvm.paused else exit_halted(self)
            else:
                result = vcpu_enter_guest(self)
            if result is not None:
                self.quiesce()
                if kvm_userspace_exit.on:
                    kvm_userspace_exit(result.exit_reason.name, result.errno)
                return result

    def stop(self) -> None:
        """A device ends the run: run() returns SYSTEM_EVENT after the instruction that asked for it."""
        self.quit = True
        self.engine.request_stop()

    def slot_of_walk(self) -> bool:
        """Whether memory is behind the frame that the last walk found."""
        return self.memslots.find(self.walker.gfn) is not None

    def settle_irq(self) -> None:
        """Let the chips know of an interrupt that was delivered, before the guest can talk to them about it."""
        irq = self.irq
        if irq is not None and irq.queued is not None:
            settle_irq(self, irq)

    def do_outside(self, work: Callable[[], None]) -> None:
        """From a port handler: leave the guest after this instruction and do what takes the host's locks."""
        self.device_work.append(work)
        self.requests |= KVM_REQ_DEVICE_WORK
        self.engine.request_stop()

    def look_again(self) -> None:
        """Interrupts or deadlines have changed, perhaps under a device's hands: look before the next instruction."""
        assert self.irq is not None
        self.irq.check = True
        if self.engine.running:
            self.engine.request_stop()
        elif self.asleep and has_events(self, self.irq):
            self.wake_up()

    @property
    def asleep(self) -> bool:
        """In kvm_vcpu_block()."""
        return self.task is not None and self.task.waiting is self

    def wake_up(self) -> None:
        """kvm_vcpu_wake_up(): have kvm_vcpu_block() look again."""
        if self.asleep and self.task is not None:
            self.sched.wake(self.task)

    def end_of_quantum(self) -> KvmRun | None:
        """The budget is used up: go on, unless the limit is reached."""
        if self.on_quantum is not None:
            self.on_quantum()
        if self.irq is not None:
            self.irq.clock.run_due()
        self.stalled = self.stalled + self.granted if self.engine.instructions == self.granted_at else 0
        if self.limit and self.stalled >= self.limit:
            return KvmRun(ExitReason.INTR, f"{self.stalled} exceptions in a row, and no instruction retired")
        end_turn(self)
        if self.kvm.loaded is not self or grant_quantum(self):
            return None
        return KvmRun(ExitReason.INTR, f"{self.kvm.instructions} instructions")

    def pferr(self) -> int:
        """Hardware error code of the walk that failed last: P, W, U, RSVD, F, PK."""
        box = self.engine.box
        why = box[EXIT_WHY]
        error_code = _PFERR_OF_ACCESS[box[EXIT_ACCESS]] | (PFERR_PRESENT if why else 0)
        if why == _WHY_PK:
            error_code |= PFERR_PK
        elif why == _WHY_BAD_FRAME:
            error_code |= PFERR_RSVD
        return error_code | PFERR_USER if box[EXIT_USER] else error_code

    def service_requests(self) -> None:
        """Serve KVM_REQ_*: devices', pages' and then roots' first: they may sleep, and ask for a flush too."""
        while self.requests & KVM_REQ_DEVICE_WORK:
            self.requests &= ~KVM_REQ_DEVICE_WORK
            while self.device_work:
                self.device_work.pop(0)()
        if self.requests & KVM_REQ_APF_HALT:
            self.requests &= ~KVM_REQ_APF_HALT
            assert self.irq is not None, "only an interrupt could end the halt"
            kvm_apf_block(self, self.irq)
        while self.requests & KVM_REQ_APF_READY:
            self.requests &= ~KVM_REQ_APF_READY
            kvm_check_async_pf_completion(self)
        while self.requests & _ROOT_REQUESTS:
            requests = self.requests & _ROOT_REQUESTS
            self.requests &= ~_ROOT_REQUESTS
            if requests & KVM_REQ_MMU_RELOAD:
                self.free_roots()
            elif requests & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS:
                free_obsolete_roots(self)
            if requests & KVM_REQ_MMU_SYNC:
                kvm_mmu_sync_roots(self, self.root)
        if self.requests & KVM_REQ_TLB_FLUSH:
            self.requests &= ~KVM_REQ_TLB_FLUSH
            self.stat.tlb_flush += 1
            self.engine.flush_tlb()
        self.quiesce()

    @property
    def is_reading(self) -> bool:
        """Between an exit and the next entry: slots that it has found may still be used."""
        return self.task is not None and not self.task.glet.dead and not self.asleep

    def quiesce(self) -> None:
        """Nothing that was read before is used any more (srcu_read_unlock)."""
        if self.requests & KVM_REQ_SRCU:
            self.requests &= ~KVM_REQ_SRCU
            waiters, self.kvm.srcu_waiters = self.kvm.srcu_waiters, []
            for task in waiters:
                self.sched.wake(task)

    def set_smm(self, smm: bool) -> None:
        """Into system management mode, or out of it: the vCPU sees the other address space, through other roots.

        Nothing else of that mode is there. Not while the vCPU executes.
        """
        self.smm = smm
        self.memslots = self.kvm.address_spaces[smm]
        self.forget_slot()
        self.requests |= KVM_REQ_MMU_RELOAD | KVM_REQ_TLB_FLUSH

    def forget_slot(self) -> None:
        """The slots have changed: the one used last is to be looked up."""
        self.slot = _NO_SLOT

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
    irq = vcpu.irq
    if (vcpu.requests or (irq is not None and irq.check)) and not _make_ready(vcpu, irq):
        return _why_not_ready(vcpu)
    if vcpu.root is None and vcpu.kvm.tdp_enabled:
        return _mmu_reload(vcpu)
    engine = vcpu.engine
    if vcpu.kvm.loaded is not vcpu:
        vcpu_load(vcpu)
    if vcpu.event is not None:
        engine.queue_event(vcpu.event)
        vcpu.event = None
        if irq is not None:
            # An NMI may have had to wait for it.
            irq.check = irq.nmi
    if kvm_entry.on:
        kvm_entry(vcpu.id, engine.rip)
    debugger = vcpu.kvm.debugger
    reason = engine.enter() if debugger is None else debugger.enter(vcpu)
    vcpu.link_generation = vcpu.kvm.link_generation
    vcpu.stat.exits += 1
    vcpu.settle_irq()
    box = engine.box
    if vcpu.root is not None and box[ROOT] != vcpu.root.hpa:
        _follow_native_root_switch(vcpu)
    if kvm_exit.on:
        kvm_exit(vcpu.id, _VMX_EXIT_REASONS[reason], engine.rip, box[EXIT_VA], box[EXIT_ACCESS])
    return handle_exit(vcpu, reason)


def _mmu_reload(vcpu: Vcpu) -> KvmRun | None:
    """kvm_mmu_reload(): no root of two-dimensional paging is loaded. May sleep, so that there may be requests again."""
    ret = kvm_mmu_load(vcpu)
    return None if ret == RetPf.CONTINUE else KvmRun(ExitReason.INTERNAL_ERROR, f"nested root: {ret.name}", ret)


def _why_not_ready(vcpu: Vcpu) -> KvmRun | None:
    """What run() returns when _make_ready() says no; None if it goes on."""
    if vcpu.kvm.paused:
        return exit_intr(vcpu)
    if vcpu.requests & KVM_REQ_DIRTY_RING_SOFT_FULL:
        return KvmRun(ExitReason.DIRTY_RING_FULL, f"the dirty ring of vcpu {vcpu.id} is full")
    return None


def _make_ready(vcpu: Vcpu, irq: IrqState | None) -> bool:
    """Serve requests and see to interrupts until neither is left. Both may sleep. False: do not enter."""
    while True:
        if vcpu.requests:
            vcpu.service_requests()
            if vcpu.requests & _KEEPS_OUT and (vcpu.requests & KVM_REQ_PAUSE or kvm_dirty_ring_check_request(vcpu)):
                return False
        if irq is None or not irq.check:
            return True
        inject_pending(vcpu, irq)
        if vcpu.mp_state is not RUNNABLE:
            return False
        if vcpu.kvm.loaded is vcpu:
            grant_quantum(vcpu)


def _follow_native_root_switch(vcpu: Vcpu) -> None:
    """The engine found a new CR3 among the cached roots and switched by itself."""
    vcpu.root = find_root(vcpu, vcpu.engine.box[ROOT])
    vcpu.cr3 = vcpu.engine.box[KEY_CR3]
    vcpu.root_gfn = root_gfn(vcpu.mode, vcpu.cr3)
