"""Interrupts on their way into a vCPU: what is pending, when it is injected, and waiting for it in HLT.

The chips are devices and know nothing of KVM; what they must offer is written down here. A maskable interrupt is
given to the engine with its vector and waits there for IF and the STI shadow; only when the engine has taken it does
the chip move it from requested to in service (kvm_cpu_get_interrupt, kvm_vcpu_has_events).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..cpu.engine import Event, EventKind
from ..events import kvm_inj_virq
from ..x86 import NMI_VECTOR, RFLAGS_IF

if TYPE_CHECKING:
    from .vcpu import Vcpu


MAX_IDLE_DEADLINES = 100_000
"""A timer that has fired so often without waking a halted CPU is masked for good."""


class Irqchip(Protocol):
    """What interrupts one vCPU: its local APIC, with the 8259 behind it."""

    def pending_irq(self) -> int | None:
        """The vector of the maskable interrupt that would be taken now."""

    def accept_irq(self, vector: int) -> None:
        """The CPU has taken it: requested becomes in service."""

    def take_nmi(self) -> bool:
        """Whether an NMI waits; it is taken."""

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

    def notify(self) -> None:
        """Something may be deliverable (lapic.on_event)."""
        self.check = True


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
    """Before an entry, when something may have changed: give the engine what is due now."""
    irq.check = False
    if _nmi_pending(irq) and vcpu.event is None:
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


def _nmi_pending(irq: IrqState) -> bool:
    if irq.chip.take_nmi():
        irq.nmi = True
    return irq.nmi


def can_wake(vcpu: Vcpu, irq: IrqState) -> bool:
    """Whether a halted vCPU has a reason to go on (kvm_vcpu_has_events)."""
    if vcpu.event is not None or _nmi_pending(irq):
        return True
    return bool(vcpu.engine.rflags & RFLAGS_IF) and irq.chip.pending_irq() is not None


def block(vcpu: Vcpu, irq: IrqState) -> bool:
    """kvm_vcpu_block(): let virtual time pass until something wakes the vCPU. False: nothing ever will."""
    for _ in range(MAX_IDLE_DEADLINES):
        if can_wake(vcpu, irq):
            irq.check = True
            return True
        if not irq.clock.skip_to_next():
            return False
        irq.clock.run_due()
    return False
