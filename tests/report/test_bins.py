"""Bins of time and of magnitude."""

from __future__ import annotations

import numpy as np
import pytest

from shadowvm.report.bins import distinct, magnitude, magnitude_label, magnitude_tick, percentile, time_axis


def test_moments_fall_into_equal_bins() -> None:
    axis = time_axis(100, 200, 4)
    now = np.array([99, 100, 124, 125, 199, 200])
    assert axis.per_bin(now).tolist() == [2, 1, 0, 1]
    assert axis.per_bin(now, np.array([9, 1, 2, 3, 4, 9])).tolist() == [3, 3, 0, 4]
    assert axis.place(now).tolist() == [0, 0, 0.96, 1, 3.96, 4]
    assert [axis.edge(each) for each in range(5)] == [100, 125, 150, 175, 200]


@pytest.mark.parametrize(("start", "stop", "bins"), [(0, 0, 1), (5, 5, 1), (0, 1, 1), (0, 3, 3), (0, 1 << 62, 160)])
def test_no_bin_is_shorter_than_a_nanosecond(start: int, stop: int, bins: int) -> None:
    axis = time_axis(start, stop, 160)
    assert axis.bins == bins
    assert axis.per_bin(np.array([start, max(start, stop - 1)])).sum() == 2


def test_distinct_values_come_in_order() -> None:
    assert distinct(np.array([3, 1, 3, -1, 1])).tolist() == [-1, 1, 3]
    assert distinct(np.array([], np.int64)).tolist() == []


def test_magnitudes_are_powers_of_two() -> None:
    values = np.array([-1, 0, 1, 2, 3, 4, 7, 8, 1023, 1024, 1 << 40])
    assert magnitude(values).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 10, 11, 41]
    assert [magnitude_label(each) for each in (0, 1, 2, 11)] == ["0", "1", "2-3", "1,024-2,047"]
    assert [magnitude_tick(each) for each in (0, 1, 2, 10, 11, 16, 41)] == ["0", "1", "2", "512", "1K", "32K", "1T"]


def test_percentiles_are_values_that_occur() -> None:
    values = np.arange(1, 101)
    assert [percentile(values, each) for each in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert [percentile(np.array([9, 7, 8]), each) for each in (0, 33, 34, 50, 67)] == [7, 7, 8, 8, 9]
    assert percentile(np.array([], np.int64), 50) == -1
