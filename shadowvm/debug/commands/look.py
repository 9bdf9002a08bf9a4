"""Commands that look at memory and translations."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..explain import KINDS
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import Monitor

_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_LONGEST_STRING = 200


def _explain(monitor: Monitor, text: str) -> Lines:
    """explain [KIND] ADDRESS | explain fault [GVA]: everything about an address, or the last fault as a story

    KIND is gva (the default), gpa, gfn, hva, pfn, spte (its address), or swap (a slot): the guest's entries, memslot,
    VMA, host pte, frame or swap slot, sptes and their shadow pages, and what the TLBs may hold. The story has the
    events that matter in sentences, of the last fault at all or on the page of GVA.
    """
    kind, _, rest = text.partition(" ")
    if kind == "fault":
        about = [monitor.number(rest)] if rest.strip() else []
        found: Lines = monitor.timeline.call("view", "story", *about)
        return found
    if kind not in KINDS:
        kind, rest = "gva", text
    lines: Lines = monitor.timeline.call("view", "explain", kind, monitor.number(rest), monitor.vcpu)
    return lines


def _page(monitor: Monitor, text: str) -> Lines:
    """page [-s] GVA: the guest's walk; with -s the whole chain to frame and spte"""
    whole = text.startswith("-s")
    lines = _explain(monitor, f"gva {text.removeprefix('-s')}")
    end = next((at for at, line in enumerate(lines) if line.startswith("gpa")), len(lines))
    return lines if whole else lines[: end + 1]


def _x(monitor: Monitor, text: str) -> Lines:
    """x /NFS GVA: memory of the guest, N items in format F (x d u o c s i) of size S (b h w g)

    i disassembles, s is a string up to its zero byte. `x /4xg rsp`, `x /8i main`. What is in swap is read there.
    """
    return _dump(monitor, text, "memory")


def _xp(monitor: Monitor, text: str) -> Lines:
    """xp /NFS GPA: the same of guest-physical memory"""
    return _dump(monitor, text, "physical")


def _dump(monitor: Monitor, text: str, view: str) -> Lines:
    match = re.fullmatch(r"(?:/([0-9]{0,9})([xduocsi]?)([bhwg]?)\s+)?(.+)", text)
    if match is None or match[4].startswith("/"):
        raise ConfigError("x: the form is x /NFS ADDRESS, such as x /4xg rsp")
    count, form, size = int(match[1] or 1), match[2] or "x", _SIZES[match[3] or ("b" if match[2] == "c" else "w")]
    address = monitor.number(match[4])
    if not 0 < count <= 4096:
        raise ConfigError(f"x: {count} is out of range (1 to 4096)")
    if form == "i":
        if view == "physical":
            raise ConfigError("xp: instructions are disassembled by x /i")
        lines: Lines = monitor.timeline.call("view", "disassembly", count, address, monitor.vcpu)
        return lines
    if form == "s":
        return _strings(monitor, address, count, view)
    data = _read(monitor, address, count * size, view)
    if data is None:
        raise ConfigError(f"{address:#x}: no memory is there")
    return [_row(data[at : at + 16], address + at, size, form) for at in range(0, len(data), 16)]


def _read(monitor: Monitor, address: int, size: int, view: str) -> bytes | None:
    arguments = (address, size, monitor.vcpu) if view == "memory" else (address, size)
    data: bytes | None = monitor.timeline.call("view", view, *arguments)
    return data


def _strings(monitor: Monitor, address: int, count: int, view: str) -> Lines:
    lines: Lines = []
    for _ in range(count):
        data, at = b"", address
        while b"\0" not in data and len(data) < _LONGEST_STRING:
            more = _read(monitor, at, -at % 64 or 64, view)
            if more is None:
                break
            data, at = data + more, at + len(more)
        if not data:
            raise ConfigError(f"{address:#x}: no memory is there")
        string = data[:_LONGEST_STRING].partition(b"\0")[0]
        lines.append(f"{address:016x}: {json.dumps(string.decode('latin-1'))}")
        address += len(string) + 1
    return lines


def _row(data: bytes, address: int, size: int, form: str) -> str:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return f"{address:016x}: {' '.join(number_text(int.from_bytes(part, 'little'), size, form) for part in parts)}"


def number_text(value: int, size: int, form: str) -> str:
    """A number of `size` bytes as one of the formats of x and print shows it."""
    if form == "c":
        return repr(chr(value & 0xFF))
    if form == "d":
        return str(value - (value >> 8 * size - 1 << 8 * size))
    return {"x": f"{value:#0{2 + 2 * size}x}", "o": f"{value:#o}", "u": str(value)}[form]


def _print(monitor: Monitor, text: str) -> Lines:
    """print, p [/F] EXPR: the value of an expression over registers and symbols, in format F (x d u o c a)

    Operators are C's: `p /x $rsp + 8 * 3`, `p main & ~0xfff`. a shows which symbol the address is in.
    """
    match = re.fullmatch(r"(?:/([xduoca])\s+)?(.+)", text)
    if match is None or match[2].startswith("/"):
        raise ConfigError("print: the form is print /F EXPR, with one of x d u o c a for F")
    value, form = monitor.number(match[2]), match[1] or "x"
    if form == "a":
        symbol: str = monitor.timeline.call("view", "symbol_text", value)
        return [f"{value:#x}{symbol}"]
    return [f"{value:#x}" if form == "x" else number_text(value, 8, form)]


def _translate(monitor: Monitor, text: str, view: str) -> Lines:
    arguments = (monitor.number(text), monitor.vcpu) if view == "gva2gpa" else (monitor.number(text),)
    found: int | None = monitor.timeline.call("view", view, *arguments)
    return ["Unmapped" if found is None else f"{view[-3:]}: {found:#x}"]


def _gva2gpa(monitor: Monitor, text: str) -> Lines:
    """gva2gpa GVA: translate through the guest's tables"""
    return _translate(monitor, text, "gva2gpa")


def _gpa2hva(monitor: Monitor, text: str) -> Lines:
    """gpa2hva GPA: translate through the memslots"""
    return _translate(monitor, text, "gpa2hva")


def _gva2hva(monitor: Monitor, text: str) -> Lines:
    """gva2hva GVA: translate through the guest's tables and the memslots"""
    gpa: int | None = monitor.timeline.call("view", "gva2gpa", monitor.number(text), monitor.vcpu)
    return ["Unmapped"] if gpa is None else _translate(monitor, str(gpa), "gpa2hva")


def _cpu(monitor: Monitor, text: str) -> Lines:
    """cpu N: look at vCPU N"""
    number = monitor.number(text)
    monitor.timeline.call("view", "registers", number)
    monitor.vcpu = number
    return []


COMMANDS: dict[str, Command] = {
    "explain": _explain,
    "page": _page,
    "x": _x,
    "xp": _xp,
    **dict.fromkeys(("print", "p"), _print),
    "gva2gpa": _gva2gpa,
    "gpa2hva": _gpa2hva,
    "gva2hva": _gva2hva,
    "cpu": _cpu,
}
