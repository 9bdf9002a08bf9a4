"""The command that writes. What it writes is an input of the run (poke.py): going back and forth repeats it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import Monitor

_SIZES = {"char": 1, "short": 2, "int": 4, "long": 8}
_LEFT = re.compile(r"(?:var(?:iable)?\s+)?(?:(\$\w+)|\{(?:unsigned\s+)?(\w+)\}(.+))\s*", re.ASCII)


def _set(monitor: Monitor, text: str) -> Lines:
    """set $REG = EXPR | set {TYPE} GVA = EXPR: write a register, or memory of the guest

    TYPE is char, short, int or long, of 1, 2, 4 or 8 bytes; of EXPR as many are written. What the run did after here
    is forgotten; going back and forward again repeats the write, and savevm keeps it. Writable are the general
    registers, rip, the flags, fs_base, gs_base, cr2; cr0, cr3, cr4, cr8 and efer as MOV and WRMSR take them; and
    selectors in real mode.
    """
    left, equals, right = text.partition("=")
    match = _LEFT.fullmatch(left)
    if not equals or match is None or (match[2] and match[2] not in _SIZES):
        raise ConfigError("set: the form is set $REG = EXPR or set {char|short|int|long} GVA = EXPR")
    value = monitor.number(right)
    if match[1]:
        monitor.write_register(match[1], value)
        return []
    size, address = _SIZES[match[2]], monitor.number(match[3])
    data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    monitor.timeline.write("memory", monitor.vcpu, address, data.hex())
    return []


COMMANDS: dict[str, Command] = {"set": _set}
