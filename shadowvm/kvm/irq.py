"""Interrupts on their way into a vCPU: what is pending, and when it is injected.

The chips are devices and know nothing of KVM; what they must offer is written down here. A maskable interrupt is
given to the engine with its vector and waits there for IF and the STI shadow; only when the engine has taken it does
the chip move it from requested to in service (kvm_cpu_get_interrupt, kvm_vcpu_has_events).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..cpu.engine import Event, EventKind
from ..events import kvm_inj_virq
from ..x86 import NMI_VECTOR
from .mp_state import kvm_apic_accept_events

if TYPE_CHECKING:
    from .vcpu import Vcpu


class Irqchip(Protocol):
    """What interrupts one vCPU: its local APIC, with the 8259 behind it."""

    def pending_irq(self) -> int | None:
        """The vector of the maskable interrupt that would be taken now."""

    def accept_irq(self, vector: int) -> None:
        """The CPU has taken it: requested becomes in service."""

    def take_nmi(self) -> bool:
        """Whether an NMI waits; it is taken."""

    def take_init(self) -> bool:
        """Whether INIT waits; it is taken, and the APIC is reset."""

    def take_sipi(self) -> int | None:
        """The page at which a CPU that waits is to start, once."""

    def request_irq(self, vector: int) -> bool:
        """An interrupt for this CPU alone, by its local APIC; whether that takes it."""

    @property
    def apic_software_enabled(self) -> bool: ...

    @property
    def waits_for_sipi(self) -> bool: ...

    @property
    def has_init_or_sipi(self) -> bool: ...

    cr8: int
    """The local APIC's task priority class, which is CR8."""

    @property
    def apic_enabled(self) -> bool: ...

    def owns_msr(self, index: int) -> bool: ...

    def read_msr(self, index: int) -> int | None: ...

    def write_msr(self, index: int, value: int) -> bool: ...


class Clock(Protocol):
    """Virtual time, in nanoseconds."""

    def now(self) -> int: ...

    def next_deadline(self) -> int | None: ...

    def run_due(self) -> int: ...

    def skip_to_next(self) -> bool: ...


class IrqState:
    """What a vCPU knows of its interrupts.

    check: something may have changed since inject_pending() looked. queued: the vector that the engine holds.
    """

    __slots__ = ("check", "chip", "clock", "nmi", "queued")

    def __init__(self, chip: Irqchip, clock: Clock) -> None:
        self.chip = chip
        self.clock = clock
        self.check = False
        self.nmi = False
        self.queued: int | None = None

    def nmi_pending(self) -> bool:
        """An NMI has come and is not in the engine yet."""
        if self.chip.take_nmi():
            self.nmi = True
        return self.nmi


def settle_irq(vcpu: Vcpu, irq: IrqState) -> None:
    """After an exit: if the engine has delivered what it held, tell the chip."""
    vector = irq.queued
    if vector is None or vcpu.engine.irq_pending:
        return
    irq.queued = None
    irq.check = True
    vcpu.stat.irq_injections += 1
    if kvm_inj_virq.on:
        kvm_inj_virq(vector)
    irq.chip.accept_irq(vector)


def inject_pending(vcpu: Vcpu, irq: IrqState) -> None:
    """Before an entry, when something may have changed: INIT and SIPI first, then what the engine is to deliver."""
    irq.check = False
    kvm_apic_accept_events(vcpu, irq)
    vcpu.engine.cr8 = irq.chip.cr8
    if irq.nmi_pending() and vcpu.event is None:
        irq.nmi = False
        vcpu.stat.nmi_injections += 1
        vcpu.event = Event(EventKind.NMI, NMI_VECTOR)
    vector = irq.chip.pending_irq()
    if vector == irq.queued:
        return
    if irq.queued is not None:
        vcpu.engine.cancel_irq()
    irq.queued = vector
    if vector is not None:
        vcpu.engine.queue_event(Event(EventKind.INTERRUPT, vector))
