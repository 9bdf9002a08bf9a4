"""Stores to write-protected guest page tables.

KVM decodes and emulates the instruction. Here the CPU itself executes exactly that one instruction, with a window of
write access to the page; what changed is then found by comparing the page, and the sptes behind it are zapped
before the guest runs on. Every instruction works: SSE stores, locked exchanges, one iteration of a string store;
and so does the delivery of an exception whose stack lies in such a page.

Loads and stores where no memory is go the same way: for one instruction the page is a device's. So do stores to
read-only memory, of which loads still read what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Gva, Pfn
from ..cpu.engine import FETCH, CpuExit, Event
from ..cpu.mailbox import EXIT_ACCESS, EXIT_FINAL, EXIT_GPA, EXIT_SIZE, EXIT_SMAP, EXIT_VA
from ..errors import ModelBug
from ..events import kvm_emulate_insn
from ..mm.fault import VmFault
from ..mm.page_alloc import Page, put_page
from .hva_to_pfn import hva_to_page
from .memslot import KVM_MEMSLOT_INVALID
from .mmu.direct_page_fault import ept_error_code, kvm_tdp_page_fault, no_table_error_code
from .mmu.guest_walker import kvm_vcpu_mark_page_dirty
from .mmu.page_fault import kvm_mmu_page_fault
from .mmu.pte_write import kvm_mmu_track_write
from .mmu.spte import RET_PF_CONTINUE, RET_PF_EMULATE, RET_PF_WRITE_PROTECTED, RetPf, kvm_handle_error_pfn
from .turns import vcpu_load

if TYPE_CHECKING:
    from .vcpu import Vcpu

MAX_WINDOWS = 2
"""A store that crosses a page boundary writes two pages, and so does a stack frame."""
MAX_ATTEMPTS = 64
_FAULTS = (CpuExit.WALK_FAULT, CpuExit.EPT_VIOLATION, CpuExit.EPT_MISCONFIG)


class Window(NamedTuple):
    """One page that the instruction may write. before: its contents when the window opened, and whenever another vCPU
    may have changed them since."""

    gfn: Gfn
    page: Page
    before: list[bytes]
    offset: int
    size: int


class _Windows:
    """What is open for one instruction: tracked pages, how many pages of devices, and pages of ROM to load from."""

    __slots__ = ("mmio", "rom", "tracked")

    def __init__(self) -> None:
        self.tracked: list[Window] = []
        self.rom: list[Page] = []
        self.mmio = 0


def emulate_write(vcpu: Vcpu, gva: Gva, why: RetPf, event: Event | None = None) -> tuple[RetPf, int]:
    """Execute the instruction at RIP, of which the access to `gva` cannot be done by the CPU.

    `why`, for the page that vcpu.walker has just found: WRITE_PROTECTED, a store to a tracked page; EMULATE, an access
    to no memory or a store to ROM. With `event`, its delivery instead: its stack, or a descriptor that it marks, lies
    in a page table.

    (CONTINUE, exit): how the engine left the instruction, QUANTUM if it is done. Else what became of a fault on
    another page that it needs, at box[EXIT_VA]: GUEST or an errno, or RETRY: run it again as it is. What was being
    delivered then is engine.vectoring().
    """
    vcpu.stat.insn_emulation += 1
    windows = _Windows()
    ret, reason = RetPf.RETRY, 0
    try:
        ret, reason = _run_with_windows(vcpu, gva, why, event, windows)
        retired = ret == RetPf.CONTINUE and reason in (CpuExit.QUANTUM, CpuExit.STOPPED)
        if windows.tracked:
            _track_writes(vcpu, windows.tracked, retired)
    finally:
        vcpu.engine.clear_windows()
        if vcpu.engine.nested.rom != (0, 0):
            vcpu.engine.nested.rom = 0, 0
            vcpu.engine.flush_tlb()  # the next access has to mark, too
        for window in windows.tracked:
            put_page(vcpu.kvm.mm.host, window.page)
        for page in windows.rom:
            put_page(vcpu.kvm.mm.host, page)
    vcpu.stat.insn_emulation_fail += not retired
    if kvm_emulate_insn.on:
        kvm_emulate_insn(vcpu.engine.rip, f"store to gva {gva:#x}", "" if retired else " (failed)")
    return ret, reason


def emulate_unmarked(vcpu: Vcpu, gva: Gva, event: Event | None = None) -> tuple[RetPf, int]:
    """Execute the instruction at RIP, whose access to `gva` would mark a guest's table in ROM, which stays as it is.

    The CPU cannot walk such tables by itself. KVM's emulator walks them in software, and there the marks are skipped
    (pte_writable in paging_tmpl.h). vcpu.walker.gfn is the table's. Result and `event` as of emulate_write().
    """
    _leave_unmarked(vcpu)
    return emulate_write(vcpu, gva, RetPf.RETRY, event)


def _leave_unmarked(vcpu: Vcpu) -> bool:
    """Tell the CPU of the ROM at vcpu.walker.gfn, until the emulation ends; False if it knows of another."""
    slot = vcpu.memslots.find(vcpu.walker.gfn)
    assert slot is not None, "the table has been read"
    nested = vcpu.engine.nested
    if nested.rom != (0, 0):
        return False
    nested.rom = slot.base_gfn << PAGE_SHIFT, slot.end_gfn << PAGE_SHIFT
    return True


def emulate_mmio(vcpu: Vcpu, gva: Gva) -> tuple[RetPf, int]:
    """Execute the instruction at RIP, which accesses a device at frame vcpu.walker.gfn; as emulate_write().

    One window and one step serve nearly all of them. What also needs another page is done by emulate_write().
    """
    engine, gfn = vcpu.engine, vcpu.walker.gfn
    access = engine.box[EXIT_ACCESS]
    if vcpu.requests:
        vcpu.service_requests()
    if vcpu.kvm.loaded is not vcpu:
        vcpu_load(vcpu)
    engine.set_mmio_window(0, gva, gfn << PAGE_SHIFT)  # type: ignore[arg-type]
    try:
        reason = engine.step()
    finally:
        engine.clear_windows()
    if reason in _FAULTS:
        # Of another page, perhaps of the code's, which a flush has taken away: begin again with the device's.
        vcpu.walker.gfn, engine.box[EXIT_ACCESS] = gfn, access
        return emulate_write(vcpu, gva, RET_PF_EMULATE)
    stat = vcpu.stat
    stat.mmio_exits += 1
    stat.insn_emulation += 1
    vcpu.link_generation = -1
    if reason not in (CpuExit.QUANTUM, CpuExit.STOPPED):
        stat.insn_emulation_fail += 1
    if kvm_emulate_insn.on:
        kvm_emulate_insn(engine.rip, f"access to gva {gva:#x}", "")
    return RET_PF_CONTINUE, reason


def _run_with_windows(vcpu: Vcpu, gva: Gva, ret: RetPf, event: Event | None, windows: _Windows) -> tuple[RetPf, int]:
    """Try until nothing that the MMU can mend stands in the way. What the instruction raises is delivered too."""
    engine = vcpu.engine
    vcpu.link_generation = -1
    for _ in range(MAX_ATTEMPTS):
        if ret is RET_PF_WRITE_PROTECTED:
            ret = _open_window(vcpu, gva, windows.tracked)
        elif ret is RET_PF_EMULATE:
            ret = _open_mmio_window(vcpu, gva, windows)
        elif ret in (RetPf.FIXED, RetPf.SPURIOUS, RetPf.RETRY):
            ret = RET_PF_CONTINUE
        if ret is not RET_PF_CONTINUE:
            return ret, CpuExit.WALK_FAULT
        if vcpu.requests:
            vcpu.service_requests()
        if vcpu.kvm.loaded is not vcpu:
            _come_back(vcpu, windows.tracked)
        reason = engine.step() if event is None else engine.deliver(event)
        if reason not in _FAULTS:
            return RetPf.CONTINUE, reason
        event = engine.vectoring()
        gva = Gva(engine.box[EXIT_VA])
        if reason == CpuExit.WALK_FAULT:
            vcpu.smap_active = engine.box[EXIT_SMAP] != 0
            ret = kvm_mmu_page_fault(vcpu, gva, vcpu.pferr())
        else:
            ret = kvm_tdp_page_fault(vcpu, Gpa(engine.box[EXIT_GPA]), ept_error_code(engine.box))
            if ret is RET_PF_EMULATE and not engine.box[EXIT_FINAL]:
                if not vcpu.slot_of_walk():
                    vcpu.walker.error_code = no_table_error_code(vcpu)
                    return RetPf.GUEST, CpuExit.WALK_FAULT
                if not _leave_unmarked(vcpu):
                    return ret, CpuExit.WALK_FAULT
                ret = RetPf.RETRY
    return RetPf.RETRY, CpuExit.WALK_FAULT


def _come_back(vcpu: Vcpu, windows: list[Window]) -> None:
    """Others have executed meanwhile, and may have written to the same tables."""
    vcpu_load(vcpu)
    ram = vcpu.kvm.mm.host.ram
    for window in windows:
        window.before.append(ram.read_page(window.page.pfn))


def _open_window(vcpu: Vcpu, gva: Gva, windows: list[Window]) -> RetPf:
    """Let the instruction write the page that the walk of `gva` found; the frame stays put by our reference."""
    if len(windows) == MAX_WINDOWS:
        raise ModelBug(f"an instruction at rip {vcpu.engine.rip:#x} stores to more than {MAX_WINDOWS} pages")
    kvm = vcpu.kvm
    gfn = vcpu.walker.gfn
    page = _get_page(vcpu, gfn, write=True)
    if isinstance(page, RetPf):
        return page
    before = [kvm.mm.host.ram.read_page(page.pfn)]
    windows.append(Window(gfn, page, before, gva & 0xFFF, vcpu.engine.box[EXIT_SIZE]))
    vcpu.engine.set_window(len(windows) - 1, gva, Pfn(page.pfn))
    return RetPf.CONTINUE


def _get_page(vcpu: Vcpu, gfn: Gfn, *, write: bool) -> Page | RetPf:
    """A reference on the page of a frame that was in a slot when the guest's tables were walked."""
    slot = vcpu.memslots.find(gfn)
    if slot is None or slot.flags & KVM_MEMSLOT_INVALID:
        return RetPf.RETRY
    page = hva_to_page(vcpu.kvm.mm, slot.vpn(gfn), write)
    if isinstance(page, VmFault):
        return kvm_handle_error_pfn(page)
    return page


def _open_mmio_window(vcpu: Vcpu, gva: Gva, windows: _Windows) -> RetPf:
    """Let the instruction access a device, or ROM, at the page that the walk of `gva` found."""
    engine = vcpu.engine
    if windows.mmio == MAX_WINDOWS or engine.box[EXIT_ACCESS] == FETCH:
        return RET_PF_EMULATE
    gfn = vcpu.walker.gfn
    memory = None
    if vcpu.memslots.find(gfn) is not None:
        page = _get_page(vcpu, gfn, write=False)
        if isinstance(page, RetPf):
            return page
        windows.rom.append(page)
        memory = vcpu.kvm.mm.host.ram.b[page.pfn << PAGE_SHIFT : page.pfn + 1 << PAGE_SHIFT]
    engine.set_mmio_window(windows.mmio, gva, Gpa(gfn << PAGE_SHIFT), memory)
    windows.mmio += 1
    vcpu.stat.mmio_exits += 1
    return RET_PF_CONTINUE


def _track_writes(vcpu: Vcpu, windows: list[Window], retired: bool) -> None:
    """Zap what stood behind every entry that the instruction changed."""
    kvm = vcpu.kvm
    kvm.mmu_lock.acquire()
    for window in windows:
        window.page.dirty = True
        after = kvm.mm.host.ram.read_page(window.page.pfn)
        changes = _changes(window, after, retired)
        if changes:
            kvm_vcpu_mark_page_dirty(vcpu, window.gfn)
        for offset, length in changes:
            kvm_mmu_track_write(kvm, Gpa(window.gfn << PAGE_SHIFT | offset), length)
    kvm.mmu_lock.release()


def _changes(window: Window, after: bytes, retired: bool) -> list[tuple[int, int]]:
    """(offset, length) of the stores: the faulting one if it explains every change, else whole changed entries.

    If nothing has changed, an instruction that has retired has stored what was there.
    """
    befores = [before for before in window.before if before != after]
    start, end = window.offset, window.offset + window.size
    if not befores:
        return [(start, min(end, PAGE_SIZE) - start)] if retired else []
    if end <= PAGE_SIZE and all(one[:start] == after[:start] and one[end:] == after[end:] for one in befores):
        return [(start, window.size)]
    entries = range(0, PAGE_SIZE, 8)
    return [(at, 8) for at in entries if any(one[at : at + 8] != after[at : at + 8] for one in befores)]
