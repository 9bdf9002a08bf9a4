"""Some local APICs on one bus, and short ways to drive them."""

from __future__ import annotations

from shadowvm.devices.lapic import Lapic
from shadowvm.devices.lapic_bus import LapicBus
from tests.devices.fake import FakeClock

SVR, LVTT, LVT0, LVT1, LVTERR, TMICT, TMCCT, TDCR = 0xF0, 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
EOI, ICR, ICR2, TPR, PPR, LDR, DFR, ESR = 0xB0, 0x300, 0x310, 0x80, 0xA0, 0xD0, 0xE0, 0x280
BASE_MSR, DEADLINE_MSR, X2APIC_MSR = 0x1B, 0x6E0, 0x800


class Apics:
    """`count` enabled local APICs; index with [] for one of them."""

    def __init__(self, count=1, **options):
        self.clock = FakeClock()
        self.bus = LapicBus()
        self.events = []
        for cpu in range(count):
            lapic = Lapic(cpu, self.clock, self.bus, **options)
            lapic.on_event = lambda cpu=cpu: self.events.append(cpu)
            lapic.write(SVR, 0x1FF)

    def __getitem__(self, cpu):
        return self.bus.lapics[cpu]

    def enable_x2apic(self):
        for lapic in self.bus.lapics:
            assert lapic.write_msr(BASE_MSR, lapic.read_msr(BASE_MSR) | 1 << 10)

    def ipi(self, cpu, low, dest=0):
        if self[cpu].x2apic_mode:
            assert self[cpu].write_msr(X2APIC_MSR + 0x30, dest << 32 | low)
        else:
            self[cpu].write(ICR2, dest << 24)
            self[cpu].write(ICR, low)

    def take(self, cpu=0):
        """Interrupt the CPU and end the interrupt at once: the vector."""
        vector = self[cpu].pending_vector()
        if vector is not None:
            self[cpu].accept(vector)
            self[cpu].write(EOI, 0) if not self[cpu].x2apic_mode else self[cpu].write_msr(X2APIC_MSR + 0xB, 0)
        return vector

    def who_got(self, vector):
        """CPUs that have the vector pending; it is taken from them."""
        return [lapic.cpu for lapic in self.bus.lapics if lapic.pending_vector() == vector and self.take(lapic.cpu)]
