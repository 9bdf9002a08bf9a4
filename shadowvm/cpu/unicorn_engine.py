"""UnicornEngine: one virtual CPU on Unicorn 2.1.4, over host RAM that all of a machine's CPUs share.

    engine = UnicornEngine(ram)
    engine.init_long_mode(entry, cr3, gdt_base, gdt_limit, rsp)
    engine.load_root(root, engine.cr3, engine.cr0, engine.cr4, engine.efer)
    exit = engine.enter()

Unicorn's TLB is filled by the native walker (native/walker.py) from tables of 3 to 5 levels in host frames; the engine
writes nothing there but A and D bits. `env` is Unicorn's live register file as 64-bit words, with indices of
registers.py; `box` is the mailbox. `controls` says which instructions exit. Known to be missing: segment limits,
alignment checks, unmasked SSE exceptions, #UD for VEX without AVX, #GP at a far transfer to what is not canonical.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from .. import x86
from ..addr import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva, Hpa, Pfn
from ..errors import ModelBug
from ..events import trace_clock
from ..phys import Ram
from . import context, registers, roots, selftest, start, step
from . import layout as lay
from . import mailbox as mb
from .arena import Arena
from .arrays import Arrays
from .breakpoints import Breakpoints
from .controls import HIDDEN_PAGES, Controls
from .engine import CpuExit, Event, EventKind, InHandler, OutHandler
from .interrupt import queue, vectored
from .library import CTL_TB_FLUSH, library
from .mmio import Mmio, ReadHandler, WriteHandler
from .native.cache import load as load_native
from .nested_root import NestedPaging
from .registers import CR2, DR6, DR7, EFLAGS, HFLAGS, MASK64, RFLAGS_TF, RIP, Registers, data_breakpoints
from .segments import TableRegister
from .setup import control, cpuid, hide_features, limit_features, map_hidden, open_unicorn, patch
from .smp import CodeShare, Suspects
from .watchpoints import Watchpoints

DR6_BS, DR7_GD = 1 << 14, 1 << 13
# Every exit needs these: one lookup less each.
_EXIT, _VECTORING, _INTERRUPT, _NMI = mb.EXIT, mb.VECTORING, EventKind.INTERRUPT, EventKind.NMI
IN_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
OUT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)


class UnicornEngine(Registers):
    """One virtual CPU. With `counting`, instructions are counted and budgets work, at some cost in speed. `running`:
    inside `enter`, so that whoever asks is a handler."""

    def __init__(self, ram: Ram, vcpu_id: int = 0, counting: bool = True) -> None:
        if vcpu_id >= 0:
            _prove_library()
        self.ram, self.vcpu_id, self.counting = ram, vcpu_id, counting
        self.error = ""
        lib = library()
        self._native = load_native()
        self._uc, self._cpu = open_unicorn(lib, ram)
        super().__init__(lib, self._cpu + lay.CPU_ENV)
        self._arrays = arrays = Arrays(ram)
        arrays.connect(lib, self._uc, self._cpu, self._native.address, counting=counting)
        self.box, self.executed = arrays.box, arrays.executed.b
        self.fill_epoch, self.write_epoch = arrays.fill_epoch.b.cast("I"), arrays.write_epoch.b.cast("I")
        patch(lib, self._uc, self._cpu, self._native.address, arrays.mailbox.address, counting)
        hide_features(lib, self._env_address)
        hidden = Arena(HIDDEN_PAGES << PAGE_SHIFT)
        base = map_hidden(lib, self._uc, ram, hidden)
        self.controls = Controls(self._env_address, self.box, hidden, base)
        self.nested = NestedPaging(self.box)
        self.breakpoints = Breakpoints(self.box, arrays.empty_tb_cache)
        self.watchpoints = Watchpoints(self.box, arrays.mailbox.address, self._native.address)
        self.suspects = Suspects(self.box)
        self.code_share: CodeShare | None = None
        self._mmio = Mmio(self.box, self._handler_raised)
        self._mmio.map(lib, self._uc, Hpa(base + len(hidden.b)))
        self._in: InHandler = lambda port, size: (1 << 8 * size) - 1
        self._out: OutHandler = lambda port, size, value: None
        self._callbacks = (IN_CALLBACK(self._port_in), OUT_CALLBACK(self._port_out))
        for word, callback in zip((mb.FN_PORT_IN, mb.FN_PORT_OUT), self._callbacks, strict=True):
            self.box[word] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        self._raised: BaseException | None = None
        self.running = False
        self._request = ctypes.c_uint32.from_address(self._cpu + lay.CPU_INTERRUPT_REQUEST)
        self._cflags_next = ctypes.c_uint32.from_address(self._cpu + lay.CPU_CFLAGS_NEXT_TB)
        # Ready-made arguments, the live RIP among them: converting five numbers took a third of an exit's time.
        self._start = ctypes.CFUNCTYPE(ctypes.c_int32)(lib.address("uc_emu_start"))
        rip = ctypes.c_uint64.from_address(self._env_address + lay.ENV_EIP)
        self._start_arguments = (ctypes.c_uint64(self._uc), rip, *[ctypes.c_uint64(0)] * 3)

    # Running.

    def enter(self) -> int:
        """Run until an exit; the CpuExit. An exception of a port handler is raised here."""
        box = self.box
        box[_EXIT] = 0
        box[_VECTORING] = 0
        self.running = True
        trace_clock.ticks += 1
        error = self._start(*self._start_arguments)
        self.running = False
        code = box[_EXIT]
        if error or not code or self._raised is not None:
            return self._settle(error, code)
        return code

    def _settle(self, error: int, code: int) -> int:
        box = self.box
        step.unkick(box)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            box[mb.STOP] = 0
            raise raised
        if error:
            self.error = self._lib.uc_strerror(error).decode()
            return CpuExit.UNSUPPORTED
        if code:
            return code
        box[mb.LAST_TB] = box[mb.DELIVERING] = box[mb.ASKED] = 0
        box[mb.SINGLE] = MASK64
        if self.old_exception == x86.DF_VECTOR:
            self.old_exception = 0xFFFF_FFFF
            return CpuExit.SHUTDOWN
        return CpuExit.HLT

    @property
    def old_exception(self) -> int:
        return ctypes.c_uint32.from_address(self._env_address + lay.ENV_OLD_EXCEPTION).value

    @old_exception.setter
    def old_exception(self, value: int) -> None:
        ctypes.c_uint32.from_address(self._env_address + lay.ENV_OLD_EXCEPTION).value = value

    def step(self) -> int:
        """Execute one instruction from RIP (one iteration of a rep): QUANTUM if it retired, else the exit.

        Interrupts wait. An exception that the instruction raises is delivered; the step then ends at its handler.

        Raises:
            ModelBug: an event is queued; it would be delivered instead.
        """
        self._mmio.begin_step()
        code = step.step(self)
        self._mmio.end_step(done=code == CpuExit.QUANTUM)
        return code

    def deliver(self, event: Event) -> int:
        """Deliver an event, as `requeue` does, and stop at its handler: QUANTUM, else the exit on the way there."""
        self.requeue(event)
        self.box[mb.STEP] = mb.STEP_DELIVERY
        try:
            return self.enter()
        finally:
            self.box[mb.STEP] = 0

    def skip_instruction(self) -> None:
        """Go past the instruction of the last exit, which has been emulated: it counts as retired.

        Raises:
            ModelBug: single-stepped, and an event is queued already.
        """
        env, box, flags = self.env, self.box, self.rflags
        end = env[RIP] + box[mb.EXIT_INSN_LEN]
        env[RIP] = end if env[HFLAGS] & lay.HF_CS64_MASK else end & 0xFFFF_FFFF
        box[mb.BUDGET] = box[mb.BUDGET] - 1 & MASK64
        trace_clock.ticks += 1
        env[HFLAGS] &= ~lay.HF_INHIBIT_IRQ_MASK
        if flags & RFLAGS_TF:
            self.trap_step()

    def trap_step(self) -> None:
        """Queue the #DB of a single step, for an instruction that the CPU has not executed to its end itself.

        Raises:
            ModelBug: an event is queued already.
        """
        self.env[DR6] |= DR6_BS
        self.queue_event(Event(EventKind.EXCEPTION, x86.DB_VECTOR))

    def set_budget(self, instructions: int) -> None:
        """Instructions until QUANTUM."""
        if not self.counting:
            raise ModelBug("a budget needs a counting engine")
        box = self.box
        box[mb.GRANTED] = box[mb.GRANTED] + instructions - box[mb.BUDGET] - box[mb.STOLEN] & MASK64
        if box[mb.KICK]:
            box[mb.STOLEN] = instructions
        else:
            box[mb.BUDGET] = instructions

    @property
    def budget(self) -> int:
        """What is left of `set_budget`; below 0 after steps that went beyond it."""
        left = self.box[mb.BUDGET] + self.box[mb.STOLEN] & MASK64
        return left - (left >> 63 << 64)

    @property
    def instructions(self) -> int:
        """Instructions retired so far; exact at every exit. 0 without counting."""
        box = self.box
        return box[mb.GRANTED] - box[mb.BUDGET] - box[mb.STOLEN] & MASK64

    @property
    def tsc(self) -> int:
        """The time-stamp counter: retired instructions, the time base and the offset."""
        box = self.box
        return self.instructions + box[mb.TIME_BASE] + box[mb.TSC_OFFSET] & MASK64

    @property
    def tsc_offset(self) -> int:
        return self.box[mb.TSC_OFFSET]

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        self.box[mb.TSC_OFFSET] = value & MASK64

    def set_time_base(self, instructions: int) -> None:
        """What other CPUs have retired until now: the time-stamp counter is the machine's."""
        self.box[mb.TIME_BASE] = instructions

    def set_features(self, leaf1: tuple[int, int], leaf7: tuple[int, int], extended1: tuple[int, int]) -> None:
        """Take away what the guest's CPUID denies: instructions of absent features are #UD.

        `leaf1` and `extended1` are (ecx, edx) of CPUID 1 and 0x80000001, `leaf7` is (ebx, ecx) of 7.0. What the CPU
        under it lacks stays absent.
        """
        limit_features(self._env_address, (leaf1[1], leaf1[0], *leaf7), (extended1[1], extended1[0]))
        control(self._lib, self._uc, CTL_TB_FLUSH)

    def request_stop(self) -> None:
        """From a port handler: end the run after this instruction with STOPPED."""
        self.box[mb.STOP] = 1
        self._kick()

    def _kick(self) -> None:
        """Have the main loop look at interrupts as soon as the current block ends."""
        self._request.value |= lay.INTERRUPT_HARD
        if not self.running:
            return
        box = self.box
        if not self.counting:
            if self._mmio.active:
                return  # Unicorn would leave before the instruction is done, and do it again; the step ends anyway
            ctypes.c_uint16.from_address(self._env_address + lay.ICOUNT_HIGH).value = 0xFFFF
        elif not box[mb.KICK]:
            box[mb.KICK], box[mb.STOLEN], box[mb.BUDGET] = 1, box[mb.BUDGET], 0

    # Ports.

    def on_in(self, handler: InHandler) -> None:
        """`handler(port, size)` answers IN."""
        self._in = handler

    def on_out(self, handler: OutHandler) -> None:
        """`handler(port, size, value)` takes OUT."""
        self._out = handler

    def _port_in(self, port: int, size: int) -> int:
        try:
            return self._in(port, size) & 0xFFFF_FFFF
        except BaseException as error:
            self._handler_raised(error)
            return 0

    def _port_out(self, port: int, size: int, value: int) -> None:
        try:
            self._out(port, size, value)
        except BaseException as error:
            self._handler_raised(error)

    def _handler_raised(self, error: BaseException) -> None:
        """No exception may cross native frames: enter() raises it."""
        self._raised = error
        self.request_stop()

    # Events.

    def queue_event(self, event: Event) -> None:
        """Deliver at the next entry. An INTERRUPT waits for IF and the STI shadow, an NMI for the IRET of the one
        before; a further NMI is lost meanwhile."""
        box = self.box
        if event.kind is _INTERRUPT:
            if box[mb.IRQ_PENDING]:
                raise ModelBug(f"interrupt {event.vector} queued over interrupt {box[mb.IRQ_VECTOR]}")
            box[mb.IRQ_PENDING], box[mb.IRQ_VECTOR] = 1, event.vector
        elif event.kind is _NMI:
            box[mb.NMI_PENDING] = 1
        else:
            queue(box, event)
            if event.cr2 is not None:
                self.env[CR2] = event.cr2
        self._kick()

    def requeue(self, event: Event) -> None:
        """Deliver again, at once, what `vectoring` gave: it had been accepted before."""
        queue(self.box, event)
        self._kick()

    def vectoring(self) -> Event | None:
        """The event that was being delivered when the last exit happened."""
        return vectored(self.box)

    @property
    def irq_pending(self) -> bool:
        """An interrupt is queued and waits for its window."""
        return bool(self.box[mb.IRQ_PENDING])

    @property
    def nmi_pending(self) -> bool:
        """An NMI is queued and waits for the end of the one before."""
        return bool(self.box[mb.NMI_PENDING])

    def cancel_irq(self) -> None:
        """Take a queued interrupt back, if it still waits."""
        self.box[mb.IRQ_PENDING] = 0

    @property
    def irq_window_open(self) -> bool:
        """Would the CPU take an interrupt now: IF, and no shadow of STI or MOV SS?"""
        env = self.env
        return bool(env[EFLAGS] & x86.RFLAGS_IF) and not env[HFLAGS] & lay.HF_INHIBIT_IRQ_MASK

    # The TLB and the tables it is filled from.

    def load_root(self, root: Hpa, cr3: int, cr0: int, cr4: int, efer: int, level: int = 4) -> None:
        """Make the table at `root` current for these registers; see roots.py. If only CR3 differs, the former root
        is kept."""
        roots.load(self.box, root, cr3, cr0, cr4, efer, level)

    def load_nested_root(self, root: Hpa, level: int = 4) -> None:
        """Two-dimensional paging from now on, through the nested table at `root`; see nested_root.py."""
        self.nested.load_root(root, level)

    def load_pdptrs(self, cr3: int, pdptrs: Sequence[int]) -> None:
        """For two-dimensional paging: the PAE pointers that a MOV to `cr3` has loaded."""
        self.nested.load_pdptrs(cr3, pdptrs)

    def kept_roots(self) -> list[tuple[int, int]]:
        """(cr3, root) of the roots that a CR3 write switches to without an exit, latest first."""
        return roots.kept(self.box)

    def drop_root(self, cr3: int) -> None:
        """Forget the root of one CR3, current or kept; the next use is a CR_ACCESS exit. The caller flushes."""
        roots.drop(self.box, cr3)

    def drop_all_roots(self) -> None:
        """Forget every root. The caller flushes."""
        roots.drop_all(self.box)

    def flush_tlb(self) -> None:
        """Empty the TLB; nothing is cached from before this epoch."""
        self._lib.tlb_flush(self._cpu)
        self.box[mb.EPOCH] += 1

    def flush_page(self, va: Gva) -> None:
        """Drop one page from the TLB."""
        self.watchpoints.before_flush(va)
        self._lib.tlb_flush_page(self._cpu, va)

    def may_cache(self, pfn: Pfn) -> bool:
        """Could the TLB hold an entry for this frame?"""
        return self.fill_epoch[pfn] == self.box[mb.EPOCH]

    def may_cache_writable(self, pfn: Pfn) -> bool:
        """Could the TLB hold a writable entry for this frame?"""
        return self.write_epoch[pfn] == self.box[mb.EPOCH]

    def set_window(self, n: int, va: Gva, pfn: Pfn) -> None:
        """Map data accesses to the page of `va` to `pfn`, writable, whatever tables and TLB say; `n` is 0 or 1."""
        self.flush_page(va)
        word = mb.WINDOW1_VA if n else mb.WINDOW_VA
        self.box[word], self.box[word + 1] = va & ~(PAGE_SIZE - 1), pfn
        self.box[mb.WINDOWS_OPEN] |= 1 << n

    def on_mmio(self, read: ReadHandler, write: WriteHandler) -> None:
        """`read(gpa, size)` and `write(gpa, size, value)` answer accesses to MMIO windows; sizes are 1, 2, 4, 8."""
        self._mmio.set_handlers(read, write)

    def set_mmio_window(self, n: int, va: Gva, gpa: Gpa, memory: memoryview | None = None) -> None:
        """During `step`, data accesses to the page of `va` go to the handlers; loads to `memory` if given."""
        self.flush_page(va)
        self._mmio.open(n, va, gpa, memory)

    def clear_windows(self) -> None:
        """End all windows, and flush the TLB if there were others than MMIO's, of which it keeps nothing."""
        self._mmio.close()
        if self.box[mb.WINDOWS_OPEN] & (1 << mb.NR_WINDOWS) - 1:
            self.box[mb.WINDOW_VA] = self.box[mb.WINDOW1_VA] = mb.NO_WINDOW
            self.flush_tlb()
        self.box[mb.WINDOWS_OPEN] = 0

    def _breakpoints_changed(self) -> None:
        self.box[mb.WATCHED] = data_breakpoints(self.env[DR7])
        self.controls.set_general_detect(bool(self.env[DR7] & DR7_GD))
        self._request.value |= lay.INTERRUPT_HARD
        self.flush_tlb()

    def drop_code(self, pfn: Pfn) -> None:
        """The frame gets other contents behind the CPU's back: forget what was translated from it."""
        self.suspects.note_host_write(pfn)
        if self.executed[pfn]:
            if not self.may_cache(pfn):
                self.executed[pfn] = 0  # no TLB entry can be left through which it is executed unseen
                if self.code_share is not None:
                    self.code_share.forget(pfn)
            self._lib.tb_invalidate_phys_range(self._uc, pfn << PAGE_SHIFT, (pfn + 1) << PAGE_SHIFT)

    def drop_code_ranges(self, pfn: Pfn, ranges: list[tuple[int, int]]) -> None:
        """Another CPU has written bytes (start, end) of the frame: forget what was translated from them."""
        if self.executed[pfn]:
            base = pfn << PAGE_SHIFT
            for start, end in ranges:
                self._lib.tb_invalidate_phys_range(self._uc, base + start, base + end)

    def drop_all_code(self) -> None:
        """Forget all translated code."""
        control(self._lib, self._uc, CTL_TB_FLUSH)
        self._arrays.empty_tb_cache()

    def join(self, share: CodeShare) -> None:
        """Mark executed frames for the machine's other CPUs too; see smp.py."""
        self.code_share = share
        self.box[mb.SHARED_CODE] = share.address

    def init_long_mode(
        self,
        entry: Gva,
        cr3: int,
        gdt_base: Gva,
        gdt_limit: int,
        rsp: Gva,
        cr0: int = registers.LONG_MODE_CR0,
        cr4: int = registers.LONG_MODE_CR4,
        efer: int = registers.LONG_MODE_EFER,
        idt_base: int = 0,
        idt_limit: int = 0,
    ) -> None:
        """Long mode at CPL 0 as a boot loader leaves it: flat segments 0x08 and 0x10, no TSS, interrupts off."""
        gdt, idt = (gdt_base, gdt_limit), (Gva(idt_base), idt_limit)
        registers.enter_long_mode(self._lib, self._env_address, entry, cr3, gdt, idt, cr0, cr4, efer)
        self.env[lay.RSP] = rsp

    def init_protected_mode(self, entry: int, eax: int, ebx: int, gdt_base: int = 0, gdt_limit: int = 0) -> None:
        """32-bit protected mode without paging as a Multiboot loader leaves it: flat segments, interrupts off."""
        start.protected_mode(self, entry, TableRegister(gdt_base, gdt_limit))
        self.set_reg(lay.RAX, eax)
        self.set_reg(lay.RBX, ebx)
        self._forget_events()

    def init_reset(self, *, warm: bool = False) -> None:
        """The state after a reset, or after INIT if `warm`: real mode at F000:FFF0 with the CS base 0xffff0000."""
        signature = cpuid(self._lib, self._env_address, 1, 0)[0]
        start.reset(self, signature, is_init=warm)
        self._forget_events()

    def init_sipi(self, vector: int) -> None:
        """A CPU in the state of INIT starts at `vector` << 12 in real mode."""
        start.sipi(self, vector)

    def _forget_events(self) -> None:
        self.box[mb.EVENT_KIND] = self.box[mb.IRQ_PENDING] = self.box[mb.NMI_PENDING] = self.box[mb.VECTORING] = 0
        self.env[HFLAGS] &= ~(lay.HF_INHIBIT_IRQ_MASK | lay.HF2_NMI_MASK << 32)
        self.flush_tlb()

    def save(self) -> bytes:
        """All of the CPU but its memory, TLB and roots."""
        return context.save(self._env_address, self.box)

    def restore(self, state: bytes) -> None:
        """What `save` gave, of this or another engine. Forgets the TLB, roots and translated code."""
        self.set_dr(7, 0)
        context.restore(self._env_address, self.box, state)
        self.set_dr(7, self.env[DR7])
        self.env[lay.ENV_MAILBOX // 8] = self._arrays.mailbox.address
        self.controls.arm()
        self._request.value = lay.INTERRUPT_HARD
        self.drop_all_roots()
        self.flush_tlb()
        self.drop_all_code()
        self.executed[:] = bytes(len(self.executed))

    def close(self) -> None:
        """Free Unicorn's memory. The engine cannot be used afterwards."""
        if self._uc:
            self._lib.uc_close(self._uc)
            self._uc = 0

    def __del__(self) -> None:
        if getattr(self, "_uc", 0):
            self.close()


@cache
def _prove_library() -> None:
    selftest.require(UnicornEngine)
