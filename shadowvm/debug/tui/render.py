"""Panes as coloured lines. Colours are the terminal's sixteen, and never all that tells two things apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from ..panes import CodeRow, EventRow, Panes
    from ..position import Stop
    from ..walks import Row

SYSTEM_STYLES = {
    "kvm": "cyan",
    "kvmmmu": "green",
    "mm": "yellow",
    "vmscan": "magenta",
    "kmem": "blue",
    "lock": "dim",
    "sched": "dim",
    "ras": "red",
}
CHANGED = "bold yellow"
_CURRENT = "reverse"
_HANG = 8
_STYLES = (
    (r"\b0x[0-9a-f]+\b", "cyan"),
    (r"(?<= )(?:P|W|U|A|D|PS|NX|host-w|mmu-w)(?= |$)", "bold green"),
    (r"not present|nothing|never touched|no spte maps it|below min|BROKEN|frozen", "bold red"),
    (r"\bswap (?:slot|file|cache)\b|in swap|below low|in progress: .*|held .*", "bold magenta"),
    (r"^L\d\[ *\d+\]", "bold"),
    (r"^->.*", "bold"),
    (r"#+$", "green"),
)
_FIRST = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip cr0 cr2 cr3 cr4".split()
_FLAGS = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 16: "RF", 17: "VM"}


def fold(text: str, width: int, hang: int = _HANG) -> list[str]:
    """Lines of at most `width`, cut at spaces where that is possible; those after the first are indented."""
    lines: list[str] = []
    while len(text) > width > hang + 8:
        at = text.rfind(" ", hang + 1, width + 1)
        lines.append(text[: at if at > 0 else width].rstrip())
        text = " " * hang + text[at if at > 0 else width :].lstrip()
    return [*lines, text]


def rows_text(rows: Iterable[Row], width: int, *, details: bool) -> list[Text]:
    """Of a pane of walks or numbers."""
    lines = []
    for row in rows:
        if row.detail and not details:
            continue
        for line in fold(row.text, width):
            text = Text(line, style="dim" if row.detail else "", no_wrap=True)
            if not row.detail:
                for pattern, style in _STYLES:
                    text.highlight_regex(pattern, style)
            lines.append(text)
    return lines


def code_text(panes: Panes, breaks: dict[int, bool], inside: bool, width: int) -> tuple[list[Text], int]:
    """(lines, which one is the next instruction).

    inside: that one has left the guest, and will be executed again. width: of its mark.
    """
    lines, current = [], 0
    for row in panes.code:
        if row.label.startswith("<") and not row.label.startswith("<+") and row.label[1:-1] != "":
            lines.append(Text(f"{row.label[1:-1]}:", style="bold green", no_wrap=True))
        if row.address == panes.rip:
            current = len(lines)
        lines.append(_code_line(row, row.address == panes.rip, breaks.get(row.address), inside, width))
    return lines or [Text(f"{panes.rip:#x}: no memory is there")], current


def _code_line(row: CodeRow, current: bool, enabled: bool | None, inside: bool, width: int) -> Text:
    arrow = ("▷" if inside else "▶") if current else " "
    text = Text(no_wrap=True)
    text.append(arrow, "bold yellow")
    text.append(" " if enabled is None else "●" if enabled else "○", "bold red")
    offset = row.label[1:-1] if row.label.startswith("<+") else ""
    text.append(f"{row.address:x} ", _CURRENT if current else "cyan")
    text.append(f"{offset:<5} ", _CURRENT if current else "dim")
    text.append(row.text.ljust(width - len(text)) if current else row.text, _CURRENT if current else "")
    return text


def registers_text(values: dict[str, int], changed: frozenset[str], columns: int) -> list[Text]:
    """In columns, the general ones first; a changed one has a `*`."""
    cells = [_cell(f"{name:<3}", values[name], 16, name in changed) for name in _FIRST]
    rest = [name for name in values if name not in (*_FIRST, "rflags")]
    cells += [_cell(name, values[name], 19 - len(name), name in changed) for name in rest]
    return [Text(" ").join(cells[at : at + columns]) for at in range(0, len(cells), columns)]


def flags_text(value: int) -> str:
    """RFLAGS by name: `PF ZF IF`."""
    return " ".join(name for bit, name in _FLAGS.items() if value >> bit & 1)


def _cell(name: str, value: int, width: int, changed: bool) -> Text:
    text = Text(no_wrap=True)
    text.append(name, "bold" if not changed else CHANGED)
    text.append("*" if changed else " ", CHANGED)
    text.append(f"{value:x}".rjust(width), CHANGED if changed else "")
    return text


def events_text(events: Iterable[EventRow], stop: Stop, width: int) -> list[Text]:
    """One line each; the last one is marked if the machine stands inside it."""
    lines = []
    for row in events:
        current = not stop.position.between and row.number == stop.position.events
        text = Text(no_wrap=True)
        text.append("▶" if current else " ", "bold yellow")
        parts = (
            (f"{row.number:>8} ", "dim"),
            (f"{row.task:<9} ", ""),
            (f"{row.name}: ", SYSTEM_STYLES.get(row.system, "")),
            (row.text, ""),
        )
        for part, style in parts:
            text.append(part, _CURRENT if current else style)
        if current:
            text.append(" " * (width - len(text)), _CURRENT)
        lines.append(text)
    return lines


def output_text(line: str, *, refused: bool) -> Text:
    """A line that a command printed."""
    if refused:
        return Text(line, style="bold red")
    if line.startswith("guest: "):
        return Text(line, style="bold")
    text = Text(line)
    text.highlight_regex(re.compile(r"\b0x[0-9a-f]+\b"), "cyan")
    return text


def status_text(name: str, stop: Stop) -> Text:
    """The line at the top."""
    text = Text(f" {name} ", style="bold", no_wrap=True)
    words = [f"vCPU {stop.vcpu}"] if stop.vcpu is not None else [stop.task] if stop.task else []
    if stop.kind in ("start", "exit", "interrupt"):
        words.insert(0, {"start": "at the start", "exit": "ended", "interrupt": "interrupted"}[stop.kind])
    elif stop.number:
        words.insert(0, f"break {stop.number}")
    text.append(f" {', '.join([*words, str(stop.position)])}", "not bold")
    if stop.text:
        text.append(f"  {stop.text}", "bold")
    return text
