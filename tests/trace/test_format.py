"""Columns hold any values, in the width that they need."""

from __future__ import annotations

import pytest

from shadowvm.trace.format import encode_column, find_column


@pytest.mark.parametrize(
    "values",
    [
        [0, 0, 0],
        [1, 255, 256, 70000],
        [(1 << 64) - 1, 0],
        [(1 << 63) + 5, (1 << 63) + 6],
        [-1, 5, 1 << 40],
        [-(1 << 63), (1 << 63) - 1],
        [-1, 1 << 63],
        [1 << 70],
        ["a", "b", "a"],
        [[1, 2], []],
        [None, 1, "x"],
        [1.5],
    ],
)
def test_columns_keep_their_values(values: list[object]) -> None:
    strings: list[str] = []

    def number_of(text: str) -> int:
        strings.append(text)
        return len(strings) - 1

    data = encode_column(values, number_of) + b"more"
    column = find_column(memoryview(data), 0, len(values))
    assert column.values(strings) == values
    assert column.size == len(data) - 4
