"""COM1: a 16550A whose transmitter is always ready (hw/char/serial.c of QEMU; National PC16550D data sheet).

With an interrupt line, the empty transmitter interrupts as a driver expects: when it is enabled and after each byte,
until the identification register has been read or the next byte is there. Nothing else ever interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .irq import IrqLine
from .state import load_fields, save_fields

COM1 = 0x3F8
COM1_IRQ = 4
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)
_LCR_DLAB = 0x80
_FCR_ENABLE = 0x01
_IER_THR_EMPTY = 0x02
_IIR_NO_INTERRUPT = 0x01
_IIR_THR_EMPTY = 0x02
_IIR_FIFO = 0xC0
_LSR_THR_EMPTY = 0x20
_LSR_IDLE = 0x40
_MSR_LINE_UP = 0xB0
_MCR_LOOP = 0x10


class Uart:
    """Eight ports from `base`. Bytes that the guest sends go to `output` one at a time; nothing is ever received.

    irq: where interrupts go. OUT2 of the modem control register does not hold them back, as on QEMU's PC.
    """

    _STATE = ("_divisor", "_empty_event", "_fifo", "_ier", "_lcr", "_loop", "_mcr", "_scratch")
    __slots__ = (*_STATE, "base", "irq", "output")

    def __init__(self, output: Callable[[int], None], base: int = COM1, irq: IrqLine | None = None) -> None:
        self.base = base
        self.output = output
        self.irq = irq
        self._empty_event = False
        self._divisor = 12
        self._fifo = False
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._loop: list[int] = []

    def port_read(self, port: int, size: int) -> int:
        """A register; accesses wider than a byte read the first."""
        register = port - self.base
        if register == _DATA:
            if self._lcr & _LCR_DLAB:
                return self._divisor & 0xFF
            return self._loop.pop(0) if self._loop else 0
        if register == _IER:
            return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier
        if register == _IIR_FCR:
            return self._identify() | (_IIR_FIFO if self._fifo else 0)
        if register == _LSR:
            return _LSR_THR_EMPTY | _LSR_IDLE | bool(self._loop)
        return {_LCR: self._lcr, _MCR: self._mcr, _MSR: _MSR_LINE_UP, _SCR: self._scratch}[register]

    def _identify(self) -> int:
        """What interrupts; to read that it is the transmitter ends its interrupt."""
        if not (self._empty_event and self._ier & _IER_THR_EMPTY):
            return _IIR_NO_INTERRUPT
        self._empty_event = False
        self._update_irq()
        return _IIR_THR_EMPTY

    def port_write(self, port: int, size: int, value: int) -> None:
        """A register; of a wider access only the low byte counts."""
        register, value = port - self.base, value & 0xFF
        if register == _DATA and not self._lcr & _LCR_DLAB:
            self._transmit(value)
        elif register == _DATA:
            self._divisor = self._divisor & 0xFF00 | value
        elif register == _IER and self._lcr & _LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
        elif register == _IER:
            if value & ~self._ier & _IER_THR_EMPTY:
                self._empty_event = True
            self._ier = value & 0x0F
            self._update_irq()
        elif register == _IIR_FCR:
            self._fifo = bool(value & _FCR_ENABLE)
        elif register == _LCR:
            self._lcr = value
        elif register == _MCR:
            self._mcr = value & 0x1F
        elif register == _SCR:
            self._scratch = value

    def _transmit(self, value: int) -> None:
        self._empty_event = False
        self._update_irq()
        if self._mcr & _MCR_LOOP:
            self._loop.append(value)
            del self._loop[:-16]
        else:
            self.output(value)
        self._empty_event = True
        self._update_irq()

    def _update_irq(self) -> None:
        if self.irq is not None:
            self.irq.set(int(self._empty_event and bool(self._ier & _IER_THR_EMPTY)))

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE)

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(); the line is not driven."""
        load_fields(self, self._STATE, saved)
