"""Keyboard controller 8042 at ports 0x60 and 0x64, as far as boot code uses it, with a keyboard nobody types on.

Self-test, command byte, output port (A20 and reset), and a keyboard that answers its commands; answers raise IRQ 1 if
the command byte says so. No mouse. Statuses and answers as QEMU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .a20 import A20Gate
from .irq import IrqLine
from .state import load_fields, save_fields

I8042_DATA, I8042_COMMAND = 0x60, 0x64

_STATUS_FULL, _STATUS_SYSTEM, _STATUS_IDLE = 0x01, 0x04, 0x18
_MODE_IRQ, _MODE_SYSTEM, _MODE_KEYBOARD_OFF = 0x01, 0x04, 0x10
_OUT_NO_RESET, _OUT_A20, _OUT_FULL = 0x01, 0x02, 0x10
_OUT_DEFAULT = 0xCF
_MAX_QUEUE = 16

_READ_MODE, _WRITE_MODE, _MOUSE_OFF, _MOUSE_ON, _TEST_MOUSE = 0x20, 0x60, 0xA7, 0xA8, 0xA9
_SELF_TEST, _TEST_KEYBOARD, _KEYBOARD_OFF, _KEYBOARD_ON = 0xAA, 0xAB, 0xAD, 0xAE
_READ_INPUT, _READ_OUTPUT, _WRITE_OUTPUT, _WRITE_KEYBOARD = 0xC0, 0xD0, 0xD1, 0xD2
_A20_OFF, _A20_ON, _PULSE = 0xDD, 0xDF, 0xF0

_ACK, _RESEND = 0xFA, 0xFE
_ANSWERS = {
    0xEE: (0xEE,),
    0xF2: (_ACK, 0xAB, 0x83),
    0xF4: (_ACK,),
    0xF5: (_ACK,),
    0xF6: (_ACK,),
    0xFF: (_ACK, 0xAA),
}
_WITH_ARGUMENT = (0xED, 0xF0, 0xF3)


class I8042:
    """queue: bytes for port 0x60. last: what it reads as when empty. expects: the command whose argument is due."""

    _STATE = ("mode", "queue", "last", "expects", "system", "keyboard_expects")
    __slots__ = ("a20", "irq", "reset", *_STATE)

    def __init__(self, irq: IrqLine, a20: A20Gate, reset: Callable[[], None]) -> None:
        self.irq, self.a20, self.reset = irq, a20, reset
        self.mode = 0x03
        self.queue: list[int] = []
        self.last = 0
        self.expects = 0
        self.keyboard_expects = False
        self.system = False

    def port_read(self, port: int, size: int) -> int:
        """The next byte, or the status."""
        if port == I8042_COMMAND:
            return _STATUS_IDLE | (_STATUS_SYSTEM if self.system else 0) | (_STATUS_FULL if self.queue else 0)
        if self.queue:
            self.last = self.queue.pop(0)
            self.irq.lower()
            self._update_irq()
        return self.last

    def port_write(self, port: int, size: int, value: int) -> None:
        """A byte for the keyboard or the argument of a command; or a command."""
        if port == I8042_COMMAND:
            self._command(value)
        elif self.expects:
            command, self.expects = self.expects, 0
            self._argument(command, value)
        else:
            self._keyboard(value)

    def _command(self, value: int) -> None:
        self.expects = 0
        if value in (_WRITE_MODE, _WRITE_OUTPUT, _WRITE_KEYBOARD):
            self.expects = value
        elif value == _SELF_TEST:
            self.system = True
            self.mode |= _MODE_SYSTEM
            self._put(0x55)
        elif value in (_KEYBOARD_OFF, _KEYBOARD_ON):
            off = value == _KEYBOARD_OFF
            self.mode = self.mode | _MODE_KEYBOARD_OFF if off else self.mode & ~_MODE_KEYBOARD_OFF
        elif value in (_A20_OFF, _A20_ON):
            self.a20.set(value == _A20_ON)
        elif value >= _PULSE:
            if not value & _OUT_NO_RESET:
                self.reset()
        else:
            self._query(value)

    def _query(self, value: int) -> None:
        output = _OUT_DEFAULT & ~_OUT_A20 | (_OUT_A20 if self.a20.enabled else 0)
        answer = {
            _READ_MODE: self.mode,
            _TEST_MOUSE: 0,
            _TEST_KEYBOARD: 0,
            _READ_INPUT: 0x80,
            _READ_OUTPUT: output | (_OUT_FULL if self.queue else 0),
        }.get(value)
        if answer is not None:
            self._put(answer)

    def _argument(self, command: int, value: int) -> None:
        if command == _WRITE_MODE:
            self.mode = value
            self.system = bool(value & _MODE_SYSTEM)
            self._update_irq()
        elif command == _WRITE_KEYBOARD:
            self._put(value)
        else:
            self.a20.set(bool(value & _OUT_A20))
            if not value & _OUT_NO_RESET:
                self.reset()

    def _keyboard(self, value: int) -> None:
        self.mode &= ~_MODE_KEYBOARD_OFF
        if self.keyboard_expects:
            self.keyboard_expects = False
            self._put(_ACK)
            return
        self.keyboard_expects = value in _WITH_ARGUMENT
        for answer in (_ACK,) if self.keyboard_expects else _ANSWERS.get(value, (_RESEND,)):
            self._put(answer)

    def _put(self, value: int) -> None:
        if len(self.queue) < _MAX_QUEUE:
            self.queue.append(value)
        self._update_irq()

    def _update_irq(self) -> None:
        self.irq.set(int(bool(self.queue) and bool(self.mode & _MODE_IRQ)))

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {**save_fields(self, self._STATE), "irq": self.irq.level}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state(); sinks of the line are not called."""
        load_fields(self, self._STATE, saved)
        self.irq.level = saved["irq"]
