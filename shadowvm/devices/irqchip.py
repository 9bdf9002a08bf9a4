"""The interrupt controllers as one CPU sees them: its local APIC, and the 8259 pair that comes in through LINT0."""

from __future__ import annotations

from .irq import CASCADE_IRQ
from .lapic import Lapic
from .lapic_msr import is_apic_msr
from .pic import SPURIOUS_IRQ, Pic


class Irqchip:
    """What a vCPU asks for interrupts. The 8259's go before the local APIC's, as in KVM."""

    __slots__ = ("_external", "lapic", "pic")

    def __init__(self, lapic: Lapic, pic: Pic) -> None:
        self.lapic = lapic
        self.pic = pic
        self._external: int | None = None

    def pending_irq(self) -> int | None:
        """The vector of the maskable interrupt that would be taken now; changes nothing."""
        if self.lapic.extint_pending:
            self._external = peek(self.pic)
            return self._external
        return self.lapic.pending_vector()

    def accept_irq(self, vector: int) -> None:
        """The CPU has taken the vector that pending_irq() named."""
        if vector == self._external:
            self._external = None
            self.pic.acknowledge()
        else:
            self.lapic.accept(vector)

    @property
    def apic_enabled(self) -> bool:
        """CPUID shows the local APIC."""
        return self.lapic.enabled

    @property
    def apic_software_enabled(self) -> bool:
        """The local APIC takes interrupts."""
        return self.lapic.software_enabled

    def request_irq(self, vector: int) -> bool:
        """An edge-triggered interrupt for this CPU alone (kvm_apic_set_irq); whether the APIC takes it."""
        return self.lapic.request(vector, level=False)

    @property
    def cr8(self) -> int:
        """The task priority class."""
        return self.lapic.cr8

    @cr8.setter
    def cr8(self, value: int) -> None:
        """MOV to CR8. The vCPU looks for interrupts after it anyway, so nobody is told."""
        self.lapic.tpr = value << 4

    def owns_msr(self, index: int) -> bool:
        """The MSR is one of the local APIC's."""
        return is_apic_msr(index)

    def read_msr(self, index: int) -> int | None:
        """RDMSR; None is #GP(0)."""
        return self.lapic.read_msr(index)

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR; False is #GP(0)."""
        return self.lapic.write_msr(index, value)

    def take_nmi(self) -> bool:
        """Whether an NMI waits; it is taken."""
        return self.lapic.take_nmi()

    def take_init(self) -> bool:
        """Whether INIT waits; it is taken."""
        return self.lapic.take_init()

    def take_sipi(self) -> int | None:
        """The page of a start-up message for a CPU that waits for one."""
        return self.lapic.take_sipi()

    @property
    def waits_for_sipi(self) -> bool:
        """The CPU does not run."""
        return self.lapic.waiting

    @property
    def has_init_or_sipi(self) -> bool:
        """The APIC has something to say about whether the CPU runs."""
        return self.lapic.init_pending or (self.lapic.waiting and self.lapic.sipi is not None)


def peek(pic: Pic) -> int:
    """The vector that the pair would answer an INTA cycle with."""
    irq = pic.master.pending()
    if irq is None:
        return pic.master.base + SPURIOUS_IRQ
    if irq != CASCADE_IRQ:
        return pic.master.base + irq
    irq = pic.slave.pending()
    return pic.slave.base + (SPURIOUS_IRQ if irq is None else irq)
