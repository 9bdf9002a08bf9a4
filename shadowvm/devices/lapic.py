"""The local APIC of one CPU, xAPIC and x2APIC (Intel SDM vol. 3, chapter 11).

The vCPU asks: pending_vector() and accept(), or acknowledge() for both; take_nmi(), take_init(), take_sipi();
extint_pending; mmio_read() and mmio_write() if claims(); read_msr() and write_msr(); cr8; timer.tsc. `on_event` tells
it to ask again. A CPU that starts or got INIT is `waiting` for SIPI, except the boot CPU.
Interrupts that are pending when the guest disables the APIC by software stay deliverable, as on hardware and KVM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..addr import PAGE_MASK, Gpa
from ..events import kvm_apic_accept_irq, kvm_eoi
from .apic_bits import (
    APIC_DEFAULT_BASE,
    BASE_BSP,
    BASE_ENABLE,
    BASE_X2APIC,
    DFR_FLAT,
    ESR_RECEIVE_ILLEGAL,
    LVT_ERROR,
    LVT_LEVEL,
    LVT_LINT0,
    LVT_LINT1,
    LVT_MASKED,
    LVT_MODE,
    LVT_REMOTE_IRR,
    LVT_TIMER,
    SVR_ENABLE,
)
from .clock import VirtualClock
from .lapic_bus import DeliveryMode, LapicBus
from .lapic_msr import read_msr, write_msr
from .lapic_regs import read_register, write_register
from .lapic_timer import LapicTimer
from .state import load_fields, save_fields

_LVT_EXTINT = DeliveryMode.EXTINT << 8
MAX_NMIS = 2


class Lapic:
    """See the module.

    id: APIC ID in the current mode. base: IA32_APIC_BASE. irr, isr, tmr: 256-bit masks by vector. lvt: by LVT_*.
    icr: destination << 32 | low half. errors: found since ESR was written. lines: levels of LINT0 and LINT1.
    nmi_blocked: the vCPU keeps it set from the delivery of an NMI to its IRET. sipi: page of a start-up message.
    """

    _STATE = (
        *(
            "id",
            "base",
            "tpr",
            "svr",
            "ldr",
            "dfr",
            "esr",
            "errors",
            "icr",
            "irr",
            "isr",
            "tmr",
            "lvt",
            "lines",
        ),
        *("nmis", "nmi_blocked", "init_pending", "waiting", "sipi"),
    )
    __slots__ = ("bus", "clock", "cpu", "maxphyaddr", "on_event", "timer", "tsc_deadline", "x2apic", *_STATE)

    id: int
    base: int
    tpr: int
    svr: int
    ldr: int
    dfr: int
    esr: int
    icr: int
    lvt: list[int]
    timer: LapicTimer

    def __init__(
        self,
        cpu: int,
        clock: VirtualClock,
        bus: LapicBus,
        *,
        x2apic: bool = True,
        tsc_deadline: bool = True,
        maxphyaddr: int = 40,
    ) -> None:
        self.cpu, self.clock, self.bus = cpu, clock, bus
        self.x2apic, self.tsc_deadline, self.maxphyaddr = x2apic, tsc_deadline, maxphyaddr
        self.on_event: Callable[[], None] | None = None
        self.timer = LapicTimer(clock, lambda: self.local_interrupt(LVT_TIMER))
        self.lines = [0, 0]
        bus.lapics.append(self)
        self.reset()

    @property
    def is_bsp(self) -> bool:
        """The boot CPU."""
        return self.cpu == 0

    def reset(self) -> None:
        """Power-up."""
        self.base = APIC_DEFAULT_BASE | BASE_ENABLE | (BASE_BSP if self.is_bsp else 0)
        self.id = self.cpu
        self.nmis = 0
        self.nmi_blocked = self.init_pending = False
        self.waiting = not self.is_bsp
        self.sipi: int | None = None
        self.reset_registers()

    def reset_registers(self) -> None:
        """What INIT does: everything but the ID and the base.

        The boot CPU's LINT0 passes the 8259 through, as QEMU and KVM start it; a real one starts masked.
        """
        self.tpr = self.esr = self.errors = self.icr = self.irr = self.isr = self.tmr = 0
        self.svr = 0xFF
        self.dfr = DFR_FLAT
        self.ldr = self.x2apic_ldr if self.x2apic_mode else 0
        self.lvt = [LVT_MASKED] * 6
        if self.is_bsp:
            self.lvt[LVT_LINT0] = _LVT_EXTINT
        self.timer.reset()

    @property
    def enabled(self) -> bool:
        """By IA32_APIC_BASE; CPUID.1:EDX.APIC shows it."""
        return bool(self.base & BASE_ENABLE)

    @property
    def software_enabled(self) -> bool:
        """By the spurious interrupt vector register."""
        return self.enabled and bool(self.svr & SVR_ENABLE)

    @property
    def x2apic_mode(self) -> bool:
        """Registers are MSRs."""
        return bool(self.base & BASE_X2APIC)

    @property
    def x2apic_ldr(self) -> int:
        """The logical ID that x2APIC mode derives from the APIC ID: cluster << 16 | one bit."""
        return self.cpu >> 4 << 16 | 1 << (self.cpu & 15)

    def claims(self, gpa: Gpa) -> bool:
        """This CPU's accesses to `gpa` go to mmio_read() and mmio_write()."""
        if self.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE:
            return False
        return gpa & PAGE_MASK == self.base & PAGE_MASK & (1 << self.maxphyaddr) - 1

    def read(self, offset: int) -> int:
        """An xAPIC register; one that does not exist reads as 0."""
        return read_register(self, offset) or 0

    def write(self, offset: int, value: int) -> None:
        """An xAPIC register."""
        write_register(self, offset, value)

    def mmio_read(self, offset: int, size: int) -> int:
        """A load from the page. Registers are the first four bytes of sixteen; the rest reads as 0."""
        part = offset & 15
        if part + size > 4:
            return 0
        return self.read(offset & 0xFF0) >> 8 * part & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A store to the page. Only aligned stores of four bytes reach a register, as on KVM."""
        if size == 4 and not offset & 15:
            self.write(offset & 0xFF0, value)

    def read_msr(self, msr: int) -> int | None:
        """An MSR for which is_apic_msr() is true; None is #GP(0)."""
        return read_msr(self, msr)

    def write_msr(self, msr: int, value: int) -> bool:
        """The same; False is #GP(0)."""
        return write_msr(self, msr, value)

    def notify(self) -> None:
        """Something may have become deliverable."""
        if self.on_event is not None:
            self.on_event()

    @property
    def ppr(self) -> int:
        """Processor priority: the higher class of the task's and of the interrupt in service."""
        service = self.isr.bit_length() - 1 & 0xF0 if self.isr else 0
        return self.tpr if self.tpr >> 4 >= service >> 4 else service

    @property
    def cr8(self) -> int:
        """CR8 is the class of the task priority."""
        return self.tpr >> 4

    def set_tpr(self, value: int) -> None:
        """A store to TPR, or to CR8 shifted by 4."""
        self.tpr = value & 0xFF
        self.notify()

    def pending_vector(self) -> int | None:
        """The vector that may interrupt now, as far as priorities go; None without one."""
        if not self.irr or not self.enabled:
            return None
        vector = self.irr.bit_length() - 1
        return vector if vector >> 4 > self.ppr >> 4 else None

    def accept(self, vector: int) -> None:
        """The CPU takes pending_vector(): it goes into service."""
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector

    def acknowledge(self) -> int:
        """INTA: the pending vector, in service now; the spurious vector if there is none any more."""
        vector = self.pending_vector()
        if vector is None:
            return self.svr & 0xFF
        self.accept(vector)
        return vector

    def end_of_interrupt(self) -> None:
        """A store to EOI ends the highest interrupt in service."""
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        self.isr &= ~(1 << vector)
        if kvm_eoi.on:
            kvm_eoi(self.id, vector)
        if self.tmr >> vector & 1:
            self.bus.end_of_interrupt(vector)
            self._end_of_lint(vector)
        self.notify()

    def request(self, vector: int, *, level: bool, mode: int = DeliveryMode.FIXED) -> bool:
        """Accept a vector into IRR; False if the APIC is off or the vector is illegal."""
        if not self.software_enabled:
            return False
        if vector < 16:
            self.error(ESR_RECEIVE_ILLEGAL)
            return False
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        if kvm_apic_accept_irq.on:
            kvm_apic_accept_irq(self.id, int(mode), int(level), vector)
        self.notify()
        return True

    def receive(self, mode: int, vector: int, level: bool) -> bool:
        """A message has come; False if it is not accepted. SMIs vanish."""
        if mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY, DeliveryMode.EXTINT):
            return self.request(vector, level=level, mode=mode)
        if mode == DeliveryMode.NMI:
            self.nmis = min(self.nmis + 1, 1 if self.nmi_blocked else MAX_NMIS)
        elif mode == DeliveryMode.INIT:
            self.init_pending, self.sipi = True, None
        elif mode == DeliveryMode.STARTUP:
            if self.is_bsp or not (self.waiting or self.init_pending):
                return False
            self.sipi = vector
        else:
            return False
        self.notify()
        return True

    def has_logical_id(self, dest: int) -> bool:
        """A logical destination names this APIC: a set of bits, flat or of one cluster."""
        if self.x2apic_mode:
            return dest >> 16 == self.ldr >> 16 and bool(dest & self.ldr & 0xFFFF)
        logical = self.ldr >> 24
        if self.dfr == DFR_FLAT:
            return bool(dest & logical)
        return dest >> 4 in (logical >> 4, 15) and bool(dest & logical & 15)

    def local_interrupt(self, entry: int) -> None:
        """A source of this CPU's own asks for what its LVT entry says."""
        lvt = self.lvt[entry]
        if lvt & LVT_MASKED:
            return
        mode = DeliveryMode.FIXED if entry in (LVT_TIMER, LVT_ERROR) else DeliveryMode(lvt >> 8 & 7)
        if mode == DeliveryMode.EXTINT:
            self.notify()
            return
        level = entry in (LVT_LINT0, LVT_LINT1) and mode == DeliveryMode.FIXED and bool(lvt & LVT_LEVEL)
        if level and lvt & LVT_REMOTE_IRR:
            return
        if self.receive(mode, lvt & 0xFF, level) and level:
            self.lvt[entry] |= LVT_REMOTE_IRR

    def set_line(self, line: int, level: int) -> None:
        """Drive LINT0 or LINT1 (a Pin). With the APIC off they are the CPU's INTR and NMI.

        The 8259 pair calls for LINT0 whenever its vector changes, too, and so does on_event.
        """
        rising = level and not self.lines[line]
        self.lines[line] = level
        if line == 0 and self.extint_enabled:
            self.notify()
        elif rising and self.enabled:
            self.local_interrupt(LVT_LINT0 + line)
        elif rising and line == 1:
            self.receive(DeliveryMode.NMI, 0, False)

    def _end_of_lint(self, vector: int) -> None:
        for line in (0, 1):
            lvt = self.lvt[LVT_LINT0 + line]
            if lvt & LVT_REMOTE_IRR and lvt & 0xFF == vector:
                self.lvt[LVT_LINT0 + line] &= ~LVT_REMOTE_IRR
                if self.lines[line]:
                    self.local_interrupt(LVT_LINT0 + line)

    @property
    def extint_enabled(self) -> bool:
        """Interrupts of the 8259 pair reach this CPU: LINT0 passes them, or the boot CPU's APIC is off."""
        if not self.enabled:
            return self.is_bsp
        return self.lvt[LVT_LINT0] & (LVT_MASKED | LVT_MODE) == _LVT_EXTINT

    @property
    def extint_pending(self) -> bool:
        """The 8259 pair asks for an interrupt of this CPU."""
        return bool(self.lines[0]) and self.extint_enabled

    def error(self, bit: int) -> None:
        """Note an error for ESR and raise the error interrupt."""
        self.errors |= bit
        if bit != ESR_RECEIVE_ILLEGAL or self.lvt[LVT_ERROR] & 0xFF >= 16:
            self.local_interrupt(LVT_ERROR)

    def take_nmi(self) -> bool:
        """An NMI is pending; it no longer is."""
        taken = self.nmis > 0
        self.nmis -= taken
        return taken

    def take_init(self) -> bool:
        """INIT is pending: the APIC's part of it is done, the CPU's is the caller's. A BSP runs on from reset."""
        taken, self.init_pending = self.init_pending, False
        if taken:
            self.reset_registers()
            self.nmis, self.nmi_blocked = 0, False
            self.waiting = not self.is_bsp
        return taken

    def take_sipi(self) -> int | None:
        """The waiting CPU is to start at this page (vector << 12), None to wait on."""
        if not self.waiting or self.init_pending or self.sipi is None:
            return None
        vector, self.sipi = self.sipi, None
        self.waiting = False
        return vector

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {**save_fields(self, self._STATE), "timer": self.timer.state()}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's."""
        load_fields(self, self._STATE, saved)
        self.timer.load(saved["timer"])
