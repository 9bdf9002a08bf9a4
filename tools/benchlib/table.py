"""A result: what something costs here and in what it is compared with, and the ratio that was aimed at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """`base` and `value` are in `unit`; `against` says what base is. goal: the largest good ratio, or None."""

    name: str
    against: str
    unit: str
    base: float
    value: float
    goal: float | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """NaN where the clock was too coarse for the base."""
        return self.value / self.base if self.base else math.nan

    @property
    def verdict(self) -> str:
        """ok, miss, or - where nothing was aimed at."""
        if self.goal is None:
            return "-"
        return "ok" if self.ratio <= self.goal else "miss"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "ratio": self.ratio, "verdict": self.verdict}


def format_table(rows: Iterable[Row]) -> str:
    """The rows as aligned text with a head."""
    head = ("name", "compared with", "unit", "theirs", "ours", "ratio", "goal", "")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(_align(line, widths) for line in cells)


def _cells(row: Row) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"{row.goal:g}"
    verdict = f"{row.verdict}  {row.note}" if row.note else row.verdict
    return row.name, row.against, row.unit, f"{row.base:.3g}", f"{row.value:.3g}", f"{row.ratio:.2f}", goal, verdict


def _align(line: tuple[str, ...], widths: list[int]) -> str:
    left = [f"{line[i]:<{widths[i]}}" for i in (0, 1, 2)]
    right = [f"{line[i]:>{widths[i]}}" for i in (3, 4, 5, 6)]
    return "  ".join([*left, *right, line[7]]).rstrip()
