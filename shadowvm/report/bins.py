"""Time and magnitudes cut into bins."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = "npt.NDArray[np.int64]"
Floats: TypeAlias = "npt.NDArray[np.float64]"
Flags: TypeAlias = "npt.NDArray[np.bool_]"
Words: TypeAlias = "npt.NDArray[np.object_]"


_LIMIT = 1 << 62
"""A damaged trace may hold any numbers."""


class Axis(NamedTuple):
    """[start, stop) of virtual time, ns, cut into equal bins."""

    start: int
    stop: int
    bins: int

    @property
    def width(self) -> float:
        """Of a bin, in ns."""
        return (self.stop - self.start) / self.bins

    def inside(self, now: Ints) -> Flags:
        """Which moments are on the axis."""
        return (now >= self.start) & (now < self.stop)

    def place(self, now: Ints) -> Floats:
        """Moments in bins, from 0 to `bins`: what is before or after is at the ends."""
        return np.clip((now - self.start) / self.width, 0, self.bins)

    def bin(self, now: Ints) -> Ints:
        """The bin of each moment, which is on the axis."""
        return np.minimum(self.place(now).astype(np.int64), self.bins - 1)

    def per_bin(self, now: Ints, weights: Ints | None = None) -> Ints:
        """Moments in each bin, or the sum of their weights."""
        inside = self.inside(now)
        where = self.bin(now[inside])
        if weights is None:
            return np.bincount(where, minlength=self.bins)
        sums = np.bincount(where, weights[inside], self.bins)
        return np.rint(np.clip(sums, -_LIMIT, _LIMIT)).astype(np.int64)

    def edge(self, number: int) -> int:
        """Where a bin begins, ns."""
        return self.start + round(self.width * number)


def time_axis(start: int, stop: int, bins: int) -> Axis:
    """At least one ns, and no bin shorter than one."""
    stop = max(stop, start + 1)
    return Axis(start, stop, max(1, min(bins, stop - start)))


def distinct(values: Ints) -> Ints:
    """Each value once, in order; of millions that differ this is faster than numpy.unique."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def magnitude(values: Ints) -> Ints:
    """The bin of each value >= 0, of 0, 1, 2-3, 4-7, 8-15, ...: its length in bits."""
    return np.frexp(np.maximum(values, 0).astype(np.float64))[1].astype(np.int64)


def magnitude_label(number: int) -> str:
    """What is in a bin of magnitude()."""
    return str(number) if number < 2 else f"{1 << number - 1:,}-{(1 << number) - 1:,}"


def magnitude_tick(number: int) -> str:
    """Where a bin of magnitude() begins, in K, M and G, which are powers of 1024."""
    low = 1 << number >> 1
    shift = max(0, number - 1) // 10
    return f"{low >> 10 * shift}{' KMGTPE'[shift]}".strip()


def percentile(values: Ints, percent: float) -> int:
    """The least value that so many percent of all do not exceed; -1 of nothing."""
    if not len(values):
        return -1
    rank = max(1, ceil(len(values) * percent / 100))
    return int(np.partition(values, rank - 1)[rank - 1])
