"""The gallery: every mutation, by family.

To add one: a Mutation in the file of its family, which says what to change (patch.py; best one place of one function),
the run in which it shows (scenario.py: a tiny guest of guest.py and actions of host.py, a few milliseconds) and the law
that it breaks. A new family: its module in FAMILIES. tests/lab/mutate runs each of them both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from . import (
    ageing,
    async_pf,
    coherence,
    dirty,
    lpage,
    memslot,
    notifier,
    pfnmap,
    rmap,
    shadow,
    slots,
    tdp,
    tdp_tables,
    unsync,
)
from .mutation import Mutation, Result

FAMILIES = (
    notifier,
    ageing,
    shadow,
    rmap,
    memslot,
    slots,
    dirty,
    coherence,
    tdp,
    tdp_tables,
    unsync,
    async_pf,
    lpage,
    pfnmap,
)

GALLERY: dict[str, Mutation] = {mutation.name: mutation for family in FAMILIES for mutation in family.MUTATIONS}
"""Every mutation by its name."""


def find_mutations(text: str) -> list[Mutation]:
    """Those in a comma-separated list of names, or `all`. ConfigError for a name that is none."""
    if text == "all":
        return list(GALLERY.values())
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GALLERY:
            raise ConfigError(f"--run: '{name}' is no mutation (shadowvm mutate --list shows them)")
    return [GALLERY[name] for name in names]


def list_text() -> str:
    """One line for each: name, commit, law and what it breaks."""
    widths = [max(len(each) for each in column) for column in zip(*map(_columns, GALLERY.values()), strict=True)]
    rows = ["  ".join(map(str.ljust, _columns(each), widths)) + f"  {each.breaks}" for each in GALLERY.values()]
    return "\n".join(rows)


def _columns(mutation: Mutation) -> tuple[str, ...]:
    return mutation.name, mutation.commit or "-", mutation.laws[0]


def result_text(result: Result) -> str:
    """One line: what was found, and whether the run without the bug is clean."""
    name, broken, clean = result.mutation.name, result.broken, result.clean
    if not result.found:
        expected = " or ".join(result.mutation.laws)
        what = f"not found: {broken.law or 'nothing'} instead of {expected}"
    else:
        what = f"found under {broken.law} after {broken.events} events"
    return f"{name}: {what}" + ("" if result.clean_without else f"; without it: {clean.law}: {_first_line(clean.text)}")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def as_dict(results: Sequence[Result]) -> dict[str, Any]:
    """As in --json."""
    return {"mutations": [result.as_dict() for result in results]}
