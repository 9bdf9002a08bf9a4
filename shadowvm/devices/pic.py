"""The two 8259A interrupt controllers of a PC (Intel 8259A data sheet; ELCR: Intel 82371 data sheet).

    lines 0-7 -> master -> output -> LINT0 of the boot CPU's local APIC
    lines 8-15 -> slave -> line 2 of the master

`set_irq` is the Pin for interrupt lines. While `level` (the master's INT) is up, the CPU that takes the interrupt
calls acknowledge() for its vector, which peek() tells; without a request left it gets a spurious 7. Where the data
sheet and QEMU differ, QEMU: an edge stays latched when its line falls before it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..events import kvm_pic_set_irq
from .irq import CASCADE_IRQ
from .state import load_fields, save_fields

PIC_MASTER, PIC_SLAVE, PIC_ELCR = 0x20, 0xA0, 0x4D0
SPURIOUS_IRQ = 7

_ICW1, _ICW1_IC4, _ICW1_SINGLE, _ICW1_LTIM = 0x10, 0x01, 0x02, 0x08
_ICW4_AUTO_EOI, _ICW4_SFNM = 0x02, 0x10
_OCW3, _OCW3_POLL, _OCW3_SMM, _OCW3_ESMM, _OCW3_READ, _OCW3_RIS = 0x08, 0x04, 0x20, 0x40, 0x02, 0x01
_ELCR_MASKS = (0xF8, 0xDE)
"""Lines that may be level-triggered: not the timer, keyboard, cascade, clock and coprocessor."""


class Pic8259:
    """One chip. Masks are of its eight lines.

    irr, isr, imr: request, in-service and mask registers. lines: input levels. lowest: the line of lowest priority.
    init_step: the ICW that is expected next, 0 outside of initialization.
    """

    _STATE = (
        *(
            "irr",
            "isr",
            "imr",
            "lines",
            "elcr",
            "ltim",
            "base",
            "lowest",
            "init_step",
            "needs_icw4",
            "single",
        ),
        *("auto_eoi", "rotate_on_auto_eoi", "special_mask", "special_nested", "poll", "read_isr"),
    )
    __slots__ = ("chip", *_STATE)

    def __init__(self, chip: int) -> None:
        self.chip = chip
        self.lines = self.elcr = self.base = self.irr = self.isr = self.imr = 0
        self.reset()

    def reset(self) -> None:
        """What ICW1 clears, and the latched requests of level-triggered lines stay."""
        self.irr = self.isr = self.imr = self.init_step = 0
        self.lowest = 7
        self.ltim = self.needs_icw4 = self.single = False
        self.auto_eoi = self.rotate_on_auto_eoi = self.special_mask = self.special_nested = False
        self.poll = self.read_isr = False

    def set_line(self, pin: int, level: int) -> None:
        """Drive an input."""
        bit = 1 << pin
        if self.ltim or self.elcr & bit:
            self.irr = self.irr | bit if level else self.irr & ~bit
        elif level and not self.lines & bit:
            self.irr |= bit
        self.lines = self.lines | bit if level else self.lines & ~bit

    def _first(self, mask: int) -> int | None:
        """Distance from the top priority to the first line of `mask`."""
        top = self.lowest + 1 & 7
        return next((i for i in range(8) if mask >> (top + i & 7) & 1), None)

    def pending(self) -> int | None:
        """The line whose request goes out, None if none may."""
        request = self._first(self.irr & ~self.imr)
        if request is None:
            return None
        in_service = self.isr & ~self.imr if self.special_mask else self.isr
        if self.special_nested and self.chip == 0:
            in_service &= ~(1 << CASCADE_IRQ)
        current = self._first(in_service)
        if current is not None and current <= request:
            return None
        return self.lowest + 1 + request & 7

    def acknowledge(self, irq: int) -> None:
        """INTA: the request of line `irq` goes into service."""
        bit = 1 << irq
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_on_auto_eoi:
            self.lowest = irq
        if not (self.ltim or self.elcr & bit):
            self.irr &= ~bit

    def command(self, value: int) -> None:
        """A write to the even port: ICW1, OCW2 or OCW3."""
        if value & _ICW1:
            self.reset()
            self.irr = self.lines & self.elcr
            self.ltim = bool(value & _ICW1_LTIM)
            self.single = bool(value & _ICW1_SINGLE)
            self.needs_icw4 = bool(value & _ICW1_IC4)
            self.init_step = 2
        elif value & _OCW3:
            self._ocw3(value)
        else:
            self._ocw2(value >> 5, value & 7)

    def _ocw3(self, value: int) -> None:
        self.poll = bool(value & _OCW3_POLL)
        if value & _OCW3_READ:
            self.read_isr = bool(value & _OCW3_RIS)
        if value & _OCW3_ESMM:
            self.special_mask = bool(value & _OCW3_SMM)

    def _ocw2(self, operation: int, line: int) -> None:
        if operation in (0, 4):
            self.rotate_on_auto_eoi = operation == 4
        elif operation == 6:
            self.lowest = line
        elif operation != 2:
            self._end_of_interrupt(line if operation in (3, 7) else None, rotate=operation in (5, 7))

    def _end_of_interrupt(self, line: int | None, *, rotate: bool) -> None:
        """Specific for `line`, else for the line in service of highest priority."""
        if line is None:
            first = self._first(self.isr & ~self.imr if self.special_mask else self.isr)
            if first is None:
                return
            line = self.lowest + 1 + first & 7
        self.isr &= ~(1 << line)
        if rotate:
            self.lowest = line

    def data(self, value: int) -> None:
        """A write to the odd port: OCW1, or the ICW that is due."""
        if self.init_step == 0:
            self.imr = value
        elif self.init_step == 2:
            self.base = value & 0xF8
            self.init_step = 3 if not self.single else 4 if self.needs_icw4 else 0
        elif self.init_step == 3:
            self.init_step = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & _ICW4_AUTO_EOI)
            self.special_nested = bool(value & _ICW4_SFNM)
            self.init_step = 0

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        load_fields(self, self._STATE, saved)


class Pic:
    """Both chips, cascaded. `output` is called with `level`, the master's INT, when that or peek() changes."""

    __slots__ = ("_vector", "level", "master", "output", "slave")

    def __init__(self, output: Callable[[int], None]) -> None:
        self.output = output
        self.level = 0
        self._vector: int | None = None
        self.master, self.slave = Pic8259(0), Pic8259(1)

    def set_irq(self, irq: int, level: int) -> None:
        """Drive line 0 to 15 (a Pin)."""
        chip, pin = self.slave if irq >= 8 else self.master, irq & 7
        if level and kvm_pic_set_irq.on:
            kvm_pic_set_irq(chip.chip, pin, chip.elcr, chip.imr, chip.irr >> pin & 1)
        chip.set_line(pin, level)
        self._update()

    def _update(self) -> None:
        self.master.set_line(CASCADE_IRQ, int(self.slave.pending() is not None))
        vector = self.peek() if self.master.pending() is not None else None
        if vector != self._vector:
            self._vector = vector
            self.level = int(vector is not None)
            self.output(self.level)

    def peek(self) -> int:
        """The vector that acknowledge() would give now."""
        irq = self.master.pending()
        if irq == CASCADE_IRQ:
            irq = self.slave.pending()
            return self.slave.base + (SPURIOUS_IRQ if irq is None else irq)
        return self.master.base + (SPURIOUS_IRQ if irq is None else irq)

    def _acknowledge(self, chip: Pic8259, irq: int) -> None:
        """INTA of one chip. The slave's INT falls with it, so that a further request is a new edge at the master."""
        chip.acknowledge(irq)
        if chip is self.slave:
            self.master.set_line(CASCADE_IRQ, 0)

    def acknowledge(self) -> int:
        """INTA cycle of the CPU: the vector; spurious 7 (or 15) if the request has gone."""
        vector = self._take(self.master)
        self._update()
        return vector

    def _take(self, chip: Pic8259) -> int:
        irq = chip.pending()
        if irq is None:
            return chip.base + SPURIOUS_IRQ
        self._acknowledge(chip, irq)
        if chip is self.master and irq == CASCADE_IRQ:
            return self._take(self.slave)
        return chip.base + irq

    def _poll(self, chip: Pic8259) -> int:
        """A read after OCW3's P bit takes the place of INTA."""
        chip.poll = False
        irq = chip.pending()
        if irq is None:
            return 0
        self._acknowledge(chip, irq)
        self._update()
        return 0x80 | irq

    def port_read(self, port: int, size: int) -> int:
        """A byte register."""
        if port & ~1 == PIC_ELCR:
            return (self.slave if port & 1 else self.master).elcr
        chip = self.slave if port & PIC_SLAVE == PIC_SLAVE else self.master
        if chip.poll:
            return self._poll(chip)
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def port_write(self, port: int, size: int, value: int) -> None:
        """A byte register."""
        if port & ~1 == PIC_ELCR:
            (self.slave if port & 1 else self.master).elcr = value & _ELCR_MASKS[port & 1]
            return
        chip = self.slave if port & PIC_SLAVE == PIC_SLAVE else self.master
        if port & 1:
            chip.data(value)
        else:
            chip.command(value)
        self._update()

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "level": self.level,
            "vector": self._vector,
            "master": self.master.state(),
            "slave": self.slave.state(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(); `output` is not called."""
        self.level, self._vector = saved["level"], saved["vector"]
        self.master.load(saved["master"])
        self.slave.load(saved["slave"])
