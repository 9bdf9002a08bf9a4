"""kvm_stat's tables over virtual time: `Event  Total %Total CurAvg/s`, or a line for each interval.

A sample is (now, totals by name). The rate is per virtual second, which is 10**9 retired instructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ..events import Tracepoint
from .chunk import Chunk
from .reader import Trace

SECOND = 1_000_000_000
BANNER_EVERY = 20
EXIT = "kvm_exit"


class View(Protocol):
    """A way to show samples, which come in order of time."""

    def show(self, now: int, totals: Mapping[str, int]) -> str:
        """Text for one sample."""


class Table:
    """kvm_stat's screen: everything that is not 0, the most frequent in the interval first."""

    def __init__(self) -> None:
        self._then, self._before = 0, dict[str, int]()

    def show(self, now: int, totals: Mapping[str, int]) -> str:
        """The table; rates are those since the sample before, or since the start."""
        seconds = (now - self._then) / SECOND
        changes = {name: total - self._before.get(name, 0) for name, total in totals.items()}
        whole = sum(total for name, total in totals.items() if "(" not in name)
        lines = [
            f"virtual time {now / SECOND:.9f} s, one instruction a nanosecond",
            f"{'Event':<42} {'Total':>10} {'%Total':>7} {'CurAvg/s':>11}",
        ]
        for name in sorted(totals, key=lambda name: (-changes[name], -totals[name], name)):
            if totals[name]:
                share = 100 * totals[name] / whole if whole else 0.0
                lines.append(f"{name:<42} {totals[name]:>10} {share:>7.1f} {_rate(changes[name], seconds):>11}")
        change = sum(each for name, each in changes.items() if "(" not in name)
        lines.append(f"{'Total':<42} {whole:>10} {'':>7} {_rate(change, seconds):>11}")
        self._then, self._before = now, dict(totals)
        return "\n".join(lines) + "\n"


class Batch:
    """kvm_stat -1: name, total, and the change since the sample before."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def show(self, _now: int, totals: Mapping[str, int]) -> str:
        """A line for each name, sorted."""
        before, self._before = self._before, dict(totals)
        return "".join(
            f"{name:<42}{totals[name]:>10}{totals[name] - before.get(name, 0):>10}\n" for name in sorted(totals)
        )


class Log:
    """kvm_stat -l: a line for each sample, with the changes since the one before. What appears later has no column."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows = 0
        self._before: dict[str, int] = {}

    def show(self, now: int, totals: Mapping[str, int]) -> str:
        """The line, and the names above every twentieth."""
        banner = ""
        if self._rows % BANNER_EVERY == 0:
            self._names = [name for name in sorted(totals) if totals[name]]
            banner = f"{'time/ms':>12}" + "".join(f" {name:>9}" for name in self._names) + "\n"
        changes = (totals.get(name, 0) - self._before.get(name, 0) for name in self._names)
        line = "".join(f" {change:>{max(9, len(name))}}" for name, change in zip(self._names, changes, strict=True))
        self._before = dict(totals)
        self._rows += 1
        return f"{banner}{now / 1_000_000:>12.3f}{line}\n"


def _rate(change: int, seconds: float) -> str:
    return str(round(change / seconds)) if seconds else "-"


def chosen(totals: Mapping[str, int], fields: str) -> dict[str, int]:
    """Those whose name the regular expression matches at its start, as kvm_stat's -f; all if it is empty."""
    return {name: total for name, total in totals.items() if not fields or re.match(fields, name)}


class Counter:
    """Counts hits of tracepoints, and exits by their reason too, as kvm_stat -t."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        """One hit."""
        self.add(tracepoint.name)
        if tracepoint.name == EXIT:
            self.add(f"{EXIT}({args[1]})")

    def add(self, name: str, hits: int = 1) -> None:
        """So many more."""
        self.totals[name] = self.totals.get(name, 0) + hits


def trace_samples(trace: Trace, interval: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Hits of the tracepoints in a trace, at the end of each interval (in instructions; 0: none) and of the trace."""
    counter = Counter()
    now, end_of_interval = 0, interval
    for part in trace.each(_Part):
        at = 0
        while interval and at < len(part.now) and part.now[-1] >= end_of_interval:
            end = int(np.searchsorted(part.now, end_of_interval))
            part.count(counter, at, end)
            yield end_of_interval, dict(counter.totals)
            at = end
            end_of_interval = (int(part.now[at]) // interval + 1) * interval
        part.count(counter, at, len(part.now))
        now = int(part.now[-1])
    yield now, dict(counter.totals)


class _Part:
    """What counts of one chunk."""

    def __init__(self, chunk: Chunk) -> None:
        self.order = chunk.order
        # A port access may be stamped a few instructions late.
        self.now = np.maximum.accumulate(chunk.spread(chunk.now))
        tables = chunk.tables
        self.names = {number: tables.tracepoints[number].name for number in chunk.columns}
        self.exit = tables.numbers.get(EXIT, -1)
        columns = chunk.columns.get(self.exit, [])
        self.reasons = columns[1].values(tables.strings) if len(columns) > 1 else []

    def count(self, counter: Counter, start: int, end: int) -> None:
        """Add the events [start, end)."""
        for number, hits in zip(
            *(each.tolist() for each in np.unique(self.order[start:end], return_counts=True)), strict=True
        ):
            counter.add(self.names[number], hits)
        if self.reasons:
            first, last = (int(np.count_nonzero(self.order[:at] == self.exit)) for at in (start, end))
            for reason in self.reasons[first:last]:
                counter.add(f"{EXIT}({reason})")
