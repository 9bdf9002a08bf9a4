"""Pieces of the page: text that is escaped, numbers, tables, sections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple, TypeAlias

Cell: TypeAlias = "str | int | float | Markup"


class Markup(NamedTuple):
    """HTML that is inserted as it is."""

    html: str


class Section(NamedTuple):
    """id: what links name. lead: the sentence that says what one sees. body: HTML."""

    id: str
    title: str
    lead: str
    body: str

    def html(self) -> str:
        """With its heading."""
        return (
            f'<section id="{self.id}" aria-labelledby="{self.id}-h"><h2 id="{self.id}-h">{escape(self.title)}</h2>\n'
            f'<p class="lead">{escape(self.lead)}</p>\n{self.body}</section>\n'
        )


def number(value: float) -> str:
    """With separators; fractions to three digits that matter."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(value: int) -> str:
    """Bytes as -m would have them, such as 64 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or value % 1024:
            return f"{value:,} {unit}"
        value //= 1024
    return f"{value:,} TiB"


def share(part: int, whole: int) -> str:
    """In percent."""
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%" if whole else "-"


def empty(text: str) -> str:
    """Instead of a chart that would have nothing in it."""
    return f'<p class="empty">{escape(text)}</p>\n'


def subheading(text: str, note: str = "") -> str:
    """Over one of several charts."""
    return f"<h3>{escape(text)}</h3>\n" + (f'<p class="note">{escape(note)}</p>\n' if note else "")


def key(colour: str, name: str) -> Markup:
    """A series' colour and name."""
    return Markup(f'<i class="key {colour}"></i>{escape(name)}')


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Numbers are on the right; the first column names the row."""
    lines = [f"<tr>{_head(row[0])}{''.join(map(_cell, row[1:]))}</tr>\n" for row in rows]
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>"
        "</table></div>\n"
    )


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
    """(what, value, note) of each."""
    items = "".join(
        f'<div class="tile"><dt>{escape(what)}</dt><dd>{escape(value)}{_small(note)}</dd></div>\n'
        for what, value, note in facts
    )
    return f'<dl class="tiles">\n{items}</dl>\n'


def _small(note: str) -> str:
    return f" <small>{escape(note)}</small>" if note else ""


def _head(cell: Cell) -> str:
    return f'<th scope="row">{_text(cell)}</th>'


def _cell(cell: Cell) -> str:
    return f"<td>{_text(cell)}</td>" if isinstance(cell, (str, Markup)) else f'<td class="n">{_text(cell)}</td>'


def _text(cell: Cell) -> str:
    if isinstance(cell, Markup):
        return cell.html
    return escape(cell) if isinstance(cell, str) else number(cell)
