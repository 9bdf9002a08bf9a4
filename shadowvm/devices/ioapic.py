"""The I/O APIC (Intel 82093AA data sheet), with the EOI register of version 0x20 as QEMU's has.

24 pins at 0xfec00000. `set_irq` is the Pin for interrupt lines. An edge on a masked pin is lost. A level-triggered
pin sends once and then waits, with Remote IRR set, for the EOI of its vector, which the LapicBus passes on.
Polarity is kept and ignored: lines carry "asserted".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..addr import Gpa
from ..events import kvm_ioapic_set_irq
from .lapic_bus import ApicMessage, DeliveryMode, LapicBus
from .state import load_fields, save_fields

IOAPIC_BASE, IOAPIC_SIZE = Gpa(0xFEC0_0000), 0x1000
NR_PINS = 24
IOAPIC_VERSION = 0x20 | NR_PINS - 1 << 16

RTE_LOGICAL, RTE_REMOTE_IRR, RTE_LEVEL, RTE_MASKED = 1 << 11, 1 << 14, 1 << 15, 1 << 16
_RTE_READ_ONLY = 1 << 12 | RTE_REMOTE_IRR
_REGSEL, _WINDOW, _EOI = 0x00, 0x10, 0x40
_ID, _VERSION, _ARBITRATION, _FIRST_RTE = 0x00, 0x01, 0x02, 0x10


class Ioapic:
    """lines: asserted pins as a mask. redirection: 64-bit entries. extint: INTA cycle of the 8259 pair."""

    _STATE = ("lines", "redirection", "id", "select")
    __slots__ = ("bus", "extint", *_STATE)

    def __init__(self, bus: LapicBus, extint: Callable[[], int]) -> None:
        self.bus = bus
        self.extint = extint
        bus.on_eoi.append(self.end_of_interrupt)
        self.lines = 0
        self.reset()

    def reset(self) -> None:
        """All pins masked. The lines stay as their devices drive them."""
        self.redirection = [RTE_MASKED] * NR_PINS
        self.id = self.select = 0

    def set_irq(self, pin: int, level: int) -> None:
        """Drive a pin (a Pin)."""
        bit, entry = 1 << pin, self.redirection[pin]
        rising = level and not self.lines & bit
        self.lines = self.lines | bit if level else self.lines & ~bit
        if rising:
            coalesced = bool(entry & RTE_REMOTE_IRR and entry & RTE_LEVEL)
            if kvm_ioapic_set_irq.on:
                kvm_ioapic_set_irq(entry, pin, coalesced)
            self._service(pin)

    def _service(self, pin: int) -> None:
        """Send what the pin's entry says, unless it is masked or waits for EOI."""
        entry = self.redirection[pin]
        level = bool(entry & RTE_LEVEL)
        if entry & RTE_MASKED or (level and entry & RTE_REMOTE_IRR):
            return
        mode, vector = entry >> 8 & 7, entry & 0xFF
        if mode == DeliveryMode.EXTINT:
            vector = self.extint()
        if mode not in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
            level = False
        message = ApicMessage(entry >> 56, bool(entry & RTE_LOGICAL), mode, vector, level)
        if self.bus.deliver(message) and level:
            self.redirection[pin] |= RTE_REMOTE_IRR

    def end_of_interrupt(self, vector: int) -> None:
        """EOI of a level-triggered vector: pins that are still asserted send again."""
        for pin, entry in enumerate(self.redirection):
            if entry & 0xFF == vector and entry & RTE_LEVEL and entry & RTE_REMOTE_IRR:
                self.redirection[pin] &= ~RTE_REMOTE_IRR
                if self.lines >> pin & 1:
                    self._service(pin)

    def mmio_read(self, offset: int, size: int) -> int:
        """The selector, or the selected register."""
        if offset == _REGSEL:
            return self.select
        if offset == _WINDOW and size == 4:
            return self._read(self.select)
        return 0

    def _read(self, register: int) -> int:
        if register in (_ID, _ARBITRATION):
            return self.id << 24
        if register == _VERSION:
            return IOAPIC_VERSION
        pin, high = divmod(register - _FIRST_RTE, 2)
        if not 0 <= pin < NR_PINS:
            return 0
        return self.redirection[pin] >> 32 if high else self.redirection[pin] & 0xFFFF_FFFF

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """The selector, the selected register, or EOI."""
        if offset == _REGSEL:
            self.select = value & 0xFF
        elif offset == _WINDOW and size == 4:
            self._write(self.select, value)
        elif offset == _EOI and size == 4:
            self.end_of_interrupt(value & 0xFF)

    def _write(self, register: int, value: int) -> None:
        if register == _ID:
            self.id = value >> 24 & 15
        pin, high = divmod(register - _FIRST_RTE, 2)
        if not 0 <= pin < NR_PINS:
            return
        entry = self.redirection[pin]
        if high:
            self.redirection[pin] = entry & 0xFFFF_FFFF | value << 32
            return
        read_only = entry & _RTE_READ_ONLY if value & RTE_LEVEL else 0
        self.redirection[pin] = entry & ~0xFFFF_FFFF | value & ~_RTE_READ_ONLY | read_only
        if value & RTE_LEVEL and self.lines >> pin & 1:
            self._service(pin)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        load_fields(self, self._STATE, saved)
