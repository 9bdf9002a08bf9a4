"""Interrupt lines: a device's output, wired to inputs of interrupt controllers.

On a PC, ISA interrupt n reaches pin n of the 8259 pair and pin n of the IOAPIC, but IRQ 0 reaches pin 2 of the
IOAPIC. Pins 16 to 23 of the IOAPIC have no 8259 behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Pin: TypeAlias = Callable[[int, int], None]
"""An input of a controller: called with the pin and its new level, 0 or 1."""

NR_ISA_IRQS = 16
NR_GSIS = 24
CASCADE_IRQ = 2


class IrqLine:
    """One wire: `level` is what it carries, `sinks` are the pins that see each change of it."""

    __slots__ = ("level", "sinks")

    def __init__(self, sinks: Sequence[tuple[Pin, int]] = ()) -> None:
        self.level = 0
        self.sinks = tuple(sinks)

    def set(self, level: int) -> None:
        """Drive the line."""
        if self.level != level:
            self.level = level
            for sink, pin in self.sinks:
                sink(pin, level)

    def raise_(self) -> None:
        """Drive the line to 1 (qemu_irq_raise)."""
        self.set(1)

    def lower(self) -> None:
        """Drive the line to 0 (qemu_irq_lower)."""
        self.set(0)

    def pulse(self) -> None:
        """0 to 1 and back: one edge."""
        self.set(1)
        self.set(0)


def pc_irq_lines(pic: Pin, ioapic: Pin) -> list[IrqLine]:
    """The lines of a PC by interrupt number, NR_GSIS of them."""
    lines = [IrqLine([*_isa_sinks(irq, pic), (ioapic, 2 if irq == 0 else irq)]) for irq in range(NR_ISA_IRQS)]
    return lines + [IrqLine([(ioapic, pin)]) for pin in range(NR_ISA_IRQS, NR_GSIS)]


def _isa_sinks(irq: int, pic: Pin) -> list[tuple[Pin, int]]:
    return [] if irq == CASCADE_IRQ else [(pic, irq)]
