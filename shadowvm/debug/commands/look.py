"""Commands that look at memory and translations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..explain import KINDS
from . import Command, Lines

if TYPE_CHECKING:
    from ..monitor import Monitor


def _explain(monitor: Monitor, text: str) -> Lines:
    """explain [KIND] ADDRESS | explain fault: everything about a gva, gpa, gfn, hva, pfn or sptep; the last fault"""
    kind, _, rest = text.partition(" ")
    if kind == "fault":
        found: Lines = monitor.timeline.call("view", "story")
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
    """x /NFS GVA, xp /NFS GPA: memory; i as format disassembles"""
    return _dump(monitor, text, "memory")


def _xp(monitor: Monitor, text: str) -> Lines:
    """xp /NFS GPA: guest-physical memory"""
    return _dump(monitor, text, "physical")


def _dump(monitor: Monitor, text: str, view: str) -> Lines:
    match = re.fullmatch(r"(?:/(\d*)([xduci]?)([bhwg]?)\s+)?(.+)", text)
    if match is None or match[4].startswith("/"):
        raise ConfigError("x: the form is x /NFS ADDRESS, such as x /4xg rsp")
    count, form, size = int(match[1] or 1), match[2] or "x", {"b": 1, "h": 2, "w": 4, "g": 8, "": 4}[match[3] or ""]
    address = monitor.number(match[4])
    if not 0 < count <= 4096:
        raise ConfigError(f"x: {count} is out of range (1 to 4096)")
    if form == "i":
        lines: Lines = monitor.timeline.call("view", "disassembly", count, address, monitor.vcpu)
        return lines
    arguments = (address, count * size, monitor.vcpu) if view == "memory" else (address, count * size)
    data: bytes | None = monitor.timeline.call("view", view, *arguments)
    if data is None:
        raise ConfigError(f"{address:#x}: no memory is there")
    return [_row(data[at : at + 16], address + at, size, form) for at in range(0, len(data), 16)]


def _row(data: bytes, address: int, size: int, form: str) -> str:
    values = [int.from_bytes(data[at : at + size], "little", signed=form == "d") for at in range(0, len(data), size)]
    if form == "c":
        texts = [repr(chr(value & 0xFF)) for value in values]
    else:
        texts = [f"{value:#0{2 + 2 * size}x}" if form == "x" else str(value) for value in values]
    return f"{address:016x}: {' '.join(texts)}"


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
    "gva2gpa": _gva2gpa,
    "gpa2hva": _gpa2hva,
    "cpu": _cpu,
}
