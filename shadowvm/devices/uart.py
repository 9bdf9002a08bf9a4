"""COM1: a 16550A whose transmitter is always ready (hw/char/serial.c of QEMU; National PC16550D data sheet).

The empty transmitter interrupts as a driver expects: when that is enabled and after each byte, until the
identification register has been read or the next byte is there. What is received: see uart_rx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import VirtualClock
from .irq import IrqLine
from .state import load_fields, save_fields
from .uart_rx import Receiver

COM1 = 0x3F8
COM1_IRQ = 4
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)
_LCR_DLAB = 0x80
_FCR_ENABLE, _FCR_RESET_RX, _FCR_RESET_TX = 0x01, 0x02, 0x04
_TRIGGERS = (1, 4, 8, 14)
"""By bits 6 and 7 of the FIFO control register."""
_IER_RECEIVED, _IER_THR_EMPTY, _IER_LINE_STATUS = 0x01, 0x02, 0x04
_IIR_NO_INTERRUPT, _IIR_THR_EMPTY, _IIR_RECEIVED, _IIR_LINE_STATUS, _IIR_TIMEOUT = 0x01, 0x02, 0x04, 0x06, 0x0C
_IIR_FIFO = 0xC0
_LSR_READY, _LSR_OVERRUN, _LSR_THR_EMPTY, _LSR_IDLE = 0x01, 0x02, 0x20, 0x40
_MSR_LINE_UP = 0xB0
_MCR_DTR, _MCR_RTS, _MCR_OUTS, _MCR_OUT2, _MCR_LOOP = 0x01, 0x02, 0x0C, 0x08, 0x10


class Uart:
    """Eight ports from `base`. Bytes that the guest sends go to `output` one at a time; `line` is what it receives.

    irq: where interrupts go. OUT2 of the modem control register does not hold them back, as on QEMU's PC.
    """

    _STATE = ("_divisor", "_empty_event", "_fcr", "_ier", "_lcr", "_mcr", "_scratch")
    __slots__ = (*_STATE, "base", "irq", "output", "receiver")

    def __init__(
        self, output: Callable[[int], None], clock: VirtualClock, irq: IrqLine, line: bytes = b"", base: int = COM1
    ) -> None:
        self.base = base
        self.output = output
        self.irq = irq
        self.receiver = Receiver(clock, line, self._update_irq)
        self._empty_event = False
        self._divisor = 12
        self._mcr = _MCR_OUT2
        self._fcr = self._ier = self._lcr = self._scratch = 0

    def port_read(self, port: int, size: int) -> int:
        """A register; accesses wider than a byte read the first."""
        register = port - self.base
        if register == _DATA:
            return self._divisor & 0xFF if self._lcr & _LCR_DLAB else self._receive()
        if register == _IER:
            return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier
        if register == _IIR_FCR:
            return self._identify() | (_IIR_FIFO if self._fcr & _FCR_ENABLE else 0)
        if register == _LSR:
            return self._line_status()
        return {_LCR: self._lcr, _MCR: self._mcr, _MSR: self._modem_status(), _SCR: self._scratch}[register]

    def _receive(self) -> int:
        value = self.receiver.read()
        self._update_irq()
        return value

    def _line_status(self) -> int:
        """An overrun is told once."""
        overrun, self.receiver.overrun = self.receiver.overrun, False
        self.receiver.open()
        self._update_irq()
        ready = _LSR_READY if self.receiver.waiting else 0
        return _LSR_THR_EMPTY | _LSR_IDLE | ready | (_LSR_OVERRUN if overrun else 0)

    def _modem_status(self) -> int:
        """The other side is there; in the loop, what the guest says itself: OUT2, OUT1, DTR, RTS."""
        if not self._mcr & _MCR_LOOP:
            return _MSR_LINE_UP
        return (self._mcr & _MCR_OUTS) << 4 | (self._mcr & _MCR_DTR) << 5 | (self._mcr & _MCR_RTS) << 3

    def _pending(self) -> int:
        """What interrupts, the most urgent first."""
        if self._ier & _IER_LINE_STATUS and self.receiver.overrun:
            return _IIR_LINE_STATUS
        if self._ier & _IER_RECEIVED and self.receiver.timed_out:
            return _IIR_TIMEOUT
        if self._ier & _IER_RECEIVED and self.receiver.ready:
            return _IIR_RECEIVED
        return _IIR_THR_EMPTY if self._ier & _IER_THR_EMPTY and self._empty_event else _IIR_NO_INTERRUPT

    def _identify(self) -> int:
        """What interrupts; to read that it is the transmitter ends its interrupt."""
        pending = self._pending()
        if pending == _IIR_THR_EMPTY:
            self._empty_event = False
            self._update_irq()
        return pending

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
            self._enable_interrupts(value & 0x0F)
        elif register == _IIR_FCR:
            self._control_fifo(value)
        elif register == _LCR:
            self._lcr = value
        elif register == _MCR:
            self._mcr = value & 0x1F
            self._configure_receiver()
        elif register == _SCR:
            self._scratch = value

    def _enable_interrupts(self, value: int) -> None:
        if value & ~self._ier & _IER_THR_EMPTY:
            self._empty_event = True
        self._ier = value
        if value & _IER_RECEIVED:
            self.receiver.open()
        self._update_irq()

    def _control_fifo(self, value: int) -> None:
        """A transmitter that is emptied tells so. To turn the FIFO on or off empties both sides."""
        if (value ^ self._fcr) & _FCR_ENABLE:
            value |= _FCR_RESET_RX | _FCR_RESET_TX
        if value & _FCR_RESET_TX:
            self._empty_event = True
        self._fcr = value
        self._configure_receiver(reset=bool(value & _FCR_RESET_RX))

    def _configure_receiver(self, *, reset: bool = False) -> None:
        trigger = _TRIGGERS[self._fcr >> 6] if self._fcr & _FCR_ENABLE else 0
        self.receiver.configure(loop=bool(self._mcr & _MCR_LOOP), trigger=trigger, reset=reset)
        self._update_irq()

    def _transmit(self, value: int) -> None:
        self._empty_event = False
        self._update_irq()
        if self._mcr & _MCR_LOOP:
            self.receiver.put(value)
        else:
            self.output(value)
        self._empty_event = True
        self._update_irq()

    def _update_irq(self) -> None:
        self.irq.set(int(self._pending() != _IIR_NO_INTERRUPT))

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return save_fields(self, self._STATE) | {"receiver": self.receiver.state()}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(), after the clock's; the line is not driven."""
        load_fields(self, self._STATE, saved)
        self.receiver.load(saved["receiver"])
