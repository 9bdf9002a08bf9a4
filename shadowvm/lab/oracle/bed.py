"""The machine under the oracle: real vCPUs, MMU, host; each operation is one instruction or one act of the host.

An instruction is executed from the code page by the vCPU's own loop (vcpu_enter_guest), as any guest's; only where a
#PF or #GP would be delivered the bed takes the event as the outcome. The image that the machine was made with is gone:
the bed puts slots of its own in the place of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...addr import PAGE_SHIFT, PAGE_SIZE, Gpa, Hva
from ...config import MIB, MachineConfig
from ...cpu import segments as seg
from ...cpu.segments import Segment, TableRegister
from ...errors import ModelBug
from ...events import REGISTRY, Tracepoint, attached
from ...guests import find_image
from ...kvm.cr import load_pdptrs
from ...kvm.exit import ExitReason, KvmRun
from ...kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from ...kvm.mmu.nx_huge_page import kvm_recover_nx_huge_pages
from ...kvm.mmu.unsync import vcpu_update_flush_exits
from ...kvm.mp_state import RUNNABLE
from ...kvm.turns import Turns
from ...kvm.vcpu import Vcpu, vcpu_enter_guest
from ...machine import Machine
from ...mm.fault import VmFault
from ...mm.gup import host_pte
from ...mm.khugepaged import collapse_huge_page
from ...mm.mm_struct import madvise_dontneed, madvise_pageout, mmap, mprotect, munmap
from ...mm.uaccess import copy_from_user, copy_to_user, read_user_u64, write_user_u64
from ...sync import Task
from ...x86 import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    GP_VECTOR,
    PF_VECTOR,
    PT_ADDR_MASK,
    PT_PRESENT,
    RFLAGS_AC,
)
from . import layout as at
from . import traps
from .dirty_logs import DirtyLogs
from .model import EFAULT, FAULT, GP, MMIO, OK, Outcome
from .paging import Control
from .setup import Setup

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
_EFER_INDEX = 0xC000_0080
_CR0_FIXED, _CR4_FIXED = CR0_PE | 0x32, 0x600
_CPUID_LENGTH = 2
_MAX_ENTRIES = 256
"""Entries that one instruction may take before we say that it makes no progress."""
_TURN, _MAX_TURNS = 1000, 3
"""Instructions in a turn of a vCPU, and how many turns may end in one operation: where it executes what is no code of
ours it goes on and on."""
_MAX_WAITS = 100_000
"""So often another thread may be let run before it has to be done."""
_ERRNO_EFAULT = -14
HOG_PAGES = 256


class Bed:
    """See the module. Everything but the constructor runs in a task of the machine."""

    def __init__(self, setup: Setup) -> None:
        config = MachineConfig(
            image=find_image("hello")[1],
            memory=4 * MIB,
            host_memory=setup.host_memory,
            swap=16 * MIB,
            smp=setup.smp,
            mmu=setup.mmu,
            kvm_params=setup.params,
            thp="always" if setup.thp else "never",
        )
        self.machine = Machine(config, lambda byte: None)
        self.kvm = self.machine.kvm
        self.mm = self.machine.mm
        self.vcpus = self.kvm.vcpus
        self._kind_of_log = setup.dirty_log
        # Of tables that one address space shadows and the other stores to KVM does not hear.
        self.has_smm = setup.mmu == "tdp"
        self.hvas: dict[int, int] = {}
        self._hog = 0
        self._device_stores: dict[int, int] = {}
        self._race: Task | None = None
        self._turns = 0
        self._levels = [-1] * setup.smp
        self._code = {kind: n * at.STEP for n, kind in enumerate(at.KINDS)}
        self.kvm.turns = Turns(_TURN, _TURN)
        for vcpu in self.vcpus:
            vcpu.turn_left = _TURN
            # The machine's own devices are at frames that a random entry can name.
            vcpu.engine.on_mmio(at.device_word, self._store_to_device)
            vcpu.on_quantum = self._end_of_turn

    def set_up(self, controls: list[Control]) -> None:
        """Slots, their first contents, and the state of each CPU."""
        for slot in list(self.kvm.memslots.slots):
            self.kvm.set_user_memory_region(slot.id, Gpa(slot.base_gfn << PAGE_SHIFT), 0, slot.userspace_addr)
        for slot_id, base, pages in (
            (at.LOW, at.LOW_BASE, at.LOW_PAGES),
            (at.HIGH, at.HIGH_BASE, at.HIGH_PAGES),
            (at.MOVING, at.MOVING_BASES[0], at.MOVING_PAGES),
        ):
            self.hvas[slot_id] = mmap(self.mm, pages * PAGE_SIZE)
            self.set_slot(slot_id, base, log=False)
            if self.has_smm:
                self.set_slot(at.IN_SMM | slot_id, at.SMM_BASE if slot_id == at.MOVING else base, log=False)
        self.dirty_logs = DirtyLogs(self.kvm, self._kind_of_log)
        # Last, so that a page which is unmapped leaves the lowest hole.
        self._hog = mmap(self.mm, HOG_PAGES * PAGE_SIZE)
        self._store(at.CODE << PAGE_SHIFT, at.code_page())
        self._store(at.TRAPS << PAGE_SHIFT, traps.traps_page())
        for place, value in at.link_tables().items():
            self.set_outside(place, value)
        for hpage in at.POOL:
            self.restore(hpage)
        for number, control in enumerate(controls):
            self.vcpus[number].mp_state = RUNNABLE
            self.set_sregs(number, control)

    # Host memory.

    def hva(self, hpage: int) -> Hva:
        """Where the VMM has a host page."""
        return Hva(self.hvas[hpage >> 16] + ((hpage & 0xFFFF) << PAGE_SHIFT))

    def _store(self, offset: int, data: bytes) -> None:
        if copy_to_user(self.mm, Hva(self.hvas[at.LOW] + offset), data) is not None:
            raise ModelBug("the oracle's VMM cannot store to its own memory")

    def set_outside(self, place: int, value: int) -> None:
        """The VMM stores a word, `hpage << 9 | index`."""
        if write_user_u64(self.mm, Hva(self.hva(place >> 9) + (place & 511) * 8), value) is not None:
            raise ModelBug(f"the oracle's VMM cannot store to page {place >> 9:#x}")

    def restore(self, hpage: int) -> None:
        """Put the fixed words of a pool page in."""
        for word, value in at.fixed_words(hpage).items():
            self.set_outside(hpage << 9 | word, value)

    def peek(self, place: int) -> int | None:
        """A word, without any trace in the machine unless it has to be read from swap; None if it is unmapped."""
        pte = host_pte(self.mm, self.hva(place >> 9) >> PAGE_SHIFT)  # type: ignore[arg-type]
        if pte & PT_PRESENT:
            return self.mm.q[((pte & PT_ADDR_MASK) >> PAGE_SHIFT << 9) + (place & 511)]
        word = read_user_u64(self.mm, Hva(self.hva(place >> 9) + (place & 511) * 8))
        return None if isinstance(word, VmFault) else word

    def resident(self, hpage: int) -> list[int]:
        """The 512 words of a page, without any trace in the machine; none if it is not in memory."""
        pte = host_pte(self.mm, self.hva(hpage) >> PAGE_SHIFT)  # type: ignore[arg-type]
        first = (pte & PT_ADDR_MASK) >> PAGE_SHIFT << 9
        return self.mm.q[first : first + 512].tolist() if pte & PT_PRESENT else []

    def page(self, hpage: int) -> memoryview | None:
        """The 512 words of a page, read as the VMM does; None if it is unmapped."""
        data = copy_from_user(self.mm, self.hva(hpage), PAGE_SIZE)
        return None if isinstance(data, VmFault) else memoryview(data).cast("Q")

    def dontneed(self, hpage: int) -> None:
        madvise_dontneed(self.mm, self.hva(hpage), PAGE_SIZE)
        if hpage in at.POOL:
            self.restore(hpage)

    def pageout(self, hpage: int) -> None:
        madvise_pageout(self.mm, self.hva(hpage), PAGE_SIZE)

    def protect(self, hpage: int, *, writable: bool) -> None:
        mprotect(self.mm, self.hva(hpage), PAGE_SIZE, writable)

    def unmap(self, hpage: int) -> None:
        munmap(self.mm, self.hva(hpage), PAGE_SIZE)

    def map(self, hpage: int) -> None:
        """Map the one page that is missing again: it is the lowest hole."""
        if mmap(self.mm, PAGE_SIZE, align=PAGE_SIZE) != self.hva(hpage):
            raise ModelBug("the oracle's VMM has mapped another page")
        if hpage in at.POOL:
            self.restore(hpage)

    def age(self, hpage: int) -> None:
        """What reclaim does to learn whether a page is used."""
        hva = self.hva(hpage)
        self.kvm.notifier.clear_flush_young(self.mm, hva, hva + PAGE_SIZE)

    def hog(self, first: int, pages: int) -> None:
        """The VMM uses memory of its own, so that the host has to reclaim some."""
        for page in range(first, first + pages):
            hva = Hva(self._hog + (page % HOG_PAGES << PAGE_SHIFT))
            write_user_u64(self.mm, hva, page + 1)

    def collapse(self, slot: int) -> None:
        """What khugepaged does, for the first 2 MiB of a slot, after everything that is in swap was read."""
        for hpage in at.POOL:
            if hpage >> 16 == slot & 0xFFFF:
                self.page(hpage)
        collapse_huge_page(self.mm, self.hva((slot & 0xFFFF) << 16) >> PAGE_SHIFT)  # type: ignore[arg-type]

    def reprotect(self, slot: int) -> None:
        """Take the right to write from a whole slot and give it back: huge pages stay what they are."""
        start, size = self.hva(slot << 16), at.SLOT_PAGES[slot] << PAGE_SHIFT
        mprotect(self.mm, start, size, False)
        mprotect(self.mm, start, size, True)

    def recover(self) -> None:
        """The worker of nx_huge_pages makes a pass."""
        kvm_recover_nx_huge_pages(self.kvm)

    def flap(self, hpage: int) -> None:
        """Take the right to write and give it back."""
        self.protect(hpage, writable=False)
        self.protect(hpage, writable=True)

    @contextmanager
    def racing(self, point: str, nth: int, act: Callable[[], None]) -> Iterator[None]:
        """Inside the block, at the `nth` time that the tracepoint `point` is passed, another thread does `act`.

        It goes on until it is done or has to wait; at the end of the block it is waited for.
        """
        sched = self.machine.sched
        passed = 0

        def sink(_tracepoint: Tracepoint, _args: tuple[Any, ...]) -> None:
            nonlocal passed
            passed += 1
            if passed == nth:
                self._race = task = sched.spawn("race", act)
                while not task.glet.dead and task.waiting is None:
                    sched.preempt()

        with attached(sink, (REGISTRY[point],)):
            yield
        self.wait_for_race()

    def wait_for_race(self) -> None:
        """Let the other thread come to its end."""
        task, self._race = self._race, None
        if task is not None:
            for _ in range(_MAX_WAITS):
                if task.glet.dead:
                    break
                self.machine.sched.preempt()
            else:
                raise ModelBug(f"what {task.name} came to do amid an operation has no end")
            self.machine.sched.tasks.remove(task)

    # Slots.

    def set_slot(self, slot_id: int, base: int, *, log: bool, rom: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION; a negative base deletes."""
        flags = (KVM_MEM_LOG_DIRTY_PAGES if log else 0) | (KVM_MEM_READONLY if rom else 0)
        number = slot_id & 0xFFFF
        offset = at.SMM_OFFSET if slot_id == at.IN_SMM | at.MOVING else 0
        hva = Hva(self.hvas[number] + (offset << PAGE_SHIFT))
        size = at.SLOT_PAGES[number] - offset << PAGE_SHIFT if base >= 0 else 0
        self.kvm.set_user_memory_region(slot_id, Gpa(max(base, 0) + offset << PAGE_SHIFT), size, hva, flags)

    # vCPUs.

    def _store_to_device(self, gpa: int, size: int, value: int) -> None:
        for n in range(size):
            self._device_stores[gpa + n] = value >> 8 * n & 0xFF

    def set_sregs(self, number: int, control: Control) -> None:
        """KVM_SET_SREGS: another mode, another root."""
        vcpu, engine = self.vcpus[number], self.vcpus[number].engine
        vcpu.free_roots()
        long_mode = control.mode >= at.PT64
        engine.cr0 = _CR0_FIXED
        engine.efer = EFER_SCE
        engine.cr4 = cr4_of(control)
        engine.cr3 = control.cr3
        engine.efer = efer_of(control)
        engine.cr0 = cr0_of(control)
        engine.pkru = control.pkru
        if long_mode:
            engine.efer = efer_of(control) | EFER_LMA
        vcpu.pdptrs_cr3 = -1
        if control.mode == at.PAE:
            vcpu.pdptrs = load_pdptrs(vcpu, control.cr3) or [0, 0, 0, 0]
            vcpu.pdptrs_cr3 = control.cr3
            engine.load_pdptrs(control.cr3, vcpu.pdptrs)
        vcpu_update_flush_exits(vcpu)
        base = at.traps_address(control.mode)
        idt, tss = traps.places_for(control.mode)
        engine.idtr = TableRegister(base + idt, traps.IDT_LIMIT)
        engine.gdtr = TableRegister(base + traps.GDT, traps.GDT_LIMIT)
        engine.tr = Segment(traps.TASK, base + tss, traps.TSS_LIMIT, seg.TSS_FLAGS)
        engine.flush_tlb()
        self._levels[number] = -1

    def set_smm(self, number: int, on: bool) -> None:
        """SMI, or RSM."""
        self.vcpus[number].set_smm(on)

    def _set_level(self, number: int, mode: int, cpl: int) -> None:
        """Code and data segments of a privilege level."""
        if self._levels[number] == mode << 2 | cpl:
            return
        self._levels[number] = mode << 2 | cpl
        engine = self.vcpus[number].engine
        dpl = cpl << seg.DPL_SHIFT
        code = seg.CODE64_FLAGS if mode >= at.PT64 else seg.CODE32_FLAGS
        engine.set_segment(seg.CS, Segment(8 | cpl, 0, 0xFFFFFFFF, code | dpl))
        for register in (seg.SS, seg.DS, seg.ES):
            engine.set_segment(register, Segment(16 | cpl, 0, 0xFFFFFFFF, seg.DATA_FLAGS | dpl))

    def access(self, number: int, mode: int, kind: str, va: int, value: int, *, cpl: int, ac: bool) -> Outcome:
        """One load, store, XADD or fetch at `va`."""
        vcpu = self.vcpus[number]
        engine = vcpu.engine
        self._set_level(number, mode, cpl)
        engine.rflags = RFLAGS_AC | 2 if ac else 2
        env = engine.env
        env[RAX], env[RCX] = 0, 0
        env[RSI] = env[RDX] = value
        env[RDI] = va
        env[RBP] = 0
        # Another CPU's access may come in between.
        waiting, self._device_stores = self._device_stores, {}
        if kind == "x":
            rip, length = va, at.FETCH_LENGTH
        else:
            rip, length = at.code_address(mode, cpl) + self._code[kind], len(at.KINDS[kind])
        outcome = self._execute(number, mode, rip, rip + length)
        stored, self._device_stores = self._device_stores, waiting
        if outcome.kind != OK:
            return outcome
        size = 8 if kind == "x" else int(kind[1])
        loaded = env[RBP] if kind == "x" else env[RSI] & (1 << 8 * size) - 1
        return Outcome(OK, loaded, device=stored)

    def control(self, number: int, mode: int, what: str, value: int) -> Outcome:
        """INVLPG, MOV to a control register, WRMSR EFER or WRPKRU with `value`, at CPL 0."""
        vcpu = self.vcpus[number]
        env = vcpu.engine.env
        self._set_level(number, mode, 0)
        vcpu.engine.rflags = 2
        env[RAX], env[RDX], env[RCX] = value, 0, _EFER_INDEX if what == "wrmsr" else 0
        env[RDI] = value
        rip = at.code_address(mode, 0) + self._code[what]
        return self._execute(number, mode, rip, rip + len(at.KINDS[what]))

    def _execute(self, number: int, mode: int, rip: int, after: int) -> Outcome:
        """Run until the instruction at `rip` is done (RIP is `after`, or behind the CPUID there) or fails."""
        vcpu = self.vcpus[number]
        engine = vcpu.engine
        engine.env[RSP] = at.traps_address(mode) + traps.STACK_TOP
        engine.rip = rip
        vcpu.task = self.machine.sched.current
        try:
            return self._enter(vcpu, mode, after)
        finally:
            vcpu.task = None

    def _end_of_turn(self) -> None:
        self._turns += 1

    def _enter(self, vcpu: Vcpu, mode: int, after: int) -> Outcome:
        number, engine = vcpu.id, vcpu.engine
        begun = self._turns
        for _ in range(_MAX_ENTRIES):
            if self._turns - begun >= _MAX_TURNS:
                break
            result = vcpu_enter_guest(vcpu)
            if result is not None and result.exit_reason == ExitReason.DIRTY_RING_FULL:
                self.dirty_logs.empty_rings()
                continue
            if vcpu.event is not None:
                event, vcpu.event = vcpu.event, None
                return _raised(event.vector, event.error_code or 0, event.cr2 or 0)
            if result is not None:
                return _ended(result)
            if after <= engine.rip <= after + _CPUID_LENGTH:
                return Outcome(OK)
            for vector in at.VECTORS:
                if 0 <= engine.rip - at.handler_address(mode, vector) <= _CPUID_LENGTH:
                    self._levels[number] = -1
                    return _raised(vector, self._error_code(engine.env[RSP], mode), engine.cr2)
        return Outcome("no progress")

    def _error_code(self, rsp: int, mode: int) -> int:
        """What the CPU has pushed last."""
        word = self.peek(at.TRAPS << 9 | (rsp & 0xFFF) >> 3) or 0
        return word if mode >= at.PT64 else word >> 8 * (rsp & 4) & 0xFFFFFFFF


def _raised(vector: int, error: int, address: int) -> Outcome:
    if vector == PF_VECTOR:
        return Outcome(FAULT, error=error, address=address)
    return Outcome(GP, error=error) if vector == GP_VECTOR else Outcome(f"exception {vector}")


def _ended(result: KvmRun) -> Outcome:
    if result.exit_reason == ExitReason.MMIO:
        return Outcome(MMIO)
    if result.errno == _ERRNO_EFAULT:
        return Outcome(EFAULT)
    return Outcome(f"exit {result.exit_reason.name} {result.text} errno {result.errno}")


def cr0_of(control: Control) -> int:
    """CR0 of these control bits."""
    value = _CR0_FIXED | (CR0_WP if control.wp else 0)
    return value if control.mode == at.NONPAGING else value | CR0_PG


def cr4_of(control: Control) -> int:
    """CR4."""
    value = _CR4_FIXED | (CR4_PAE if control.mode >= at.PAE else 0) | (CR4_LA57 if control.mode == at.LA57 else 0)
    for on, bit in (
        (control.pse, CR4_PSE),
        (control.smep, CR4_SMEP),
        (control.smap, CR4_SMAP),
        (control.pke, CR4_PKE),
    ):
        value |= bit if on else 0
    return value


def efer_of(control: Control) -> int:
    """EFER, without LMA."""
    return EFER_SCE | (EFER_NX if control.nxe else 0) | (EFER_LME if control.mode >= at.PT64 else 0)
