"""Colours of cells."""

from __future__ import annotations

import numpy as np

from shadowvm.report.bins import time_axis
from shadowvm.report.heat import MIXTURES, digit_grid, heat_data, mixtures, palette
from shadowvm.report.plot import time_scale
from shadowvm.report.residency import Residency, Rows
from shadowvm.report.theme import BACKED, MAPPED, SWAPPED, rgb


def residency() -> Residency:
    """Two rows of two pages each: (mapped, frame alone, swapped) are 2,0,0 and 0,1,1; 1,0,0 and nothing."""
    rows = Rows(np.array([4, 5, 0x900, 0x901]), np.array([0, 2, 4]))
    mapped = np.array([[2.0, 0], [1, 0]])
    backed = np.array([[2.0, 1], [1, 0]])
    swapped = np.array([[0.0, 1], [0, 0]])
    return Residency(rows, time_axis(0, 10, 2), mapped, backed, swapped)


def test_a_mixture_is_the_shares_in_eighths() -> None:
    found = [[MIXTURES[number] for number in row] for row in mixtures(residency())]
    assert found == [[(8, 0, 0), (0, 4, 4)], [(4, 0, 0), (0, 0, 0)]]


def test_colours_mix_and_absence_is_transparent() -> None:
    colours = dict(zip(MIXTURES, palette(), strict=True))
    assert len(colours) == 165
    assert colours[8, 0, 0] == (*rgb(MAPPED), 255)
    assert colours[0, 8, 0] == (*rgb(BACKED), 255)
    assert colours[0, 0, 4] == (*rgb(SWAPPED), 128)
    assert colours[0, 0, 0][3] == 0
    assert colours[4, 0, 4][0] == round((rgb(MAPPED)[0] + rgb(SWAPPED)[0]) / 2)


def test_the_script_gets_every_cell() -> None:
    found = residency()
    data = heat_data(found, time_scale(found.axis), {"zaps": np.array([[0, 300], [1, 2]])})
    assert data["rows"] == [(4, 5), (0x900, 0x901)]
    assert data["bins"] == ["0-5 ns", "5-10 ns"]
    assert data["cells"]["zaps"] == {"wide": True, "data": "AAAsAQEAAgA="}
    assert data["state"]["wide"] is False


def test_a_terminal_gets_digits() -> None:
    assert digit_grid(residency()) == "           4 90\n         900 5.\n"
