"""The heat map: what colour a cell has, and what its script says of it.

A cell's state is the shares of its page-time that are mapped, have a frame alone, and are in swap, each in eighths: one
of 165 mixtures, which fit a PNG's palette. Pages that are in none of these states let the background through.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt

from .bins import Floats, Ints, magnitude
from .plot import Scale, frame
from .png import Colour, data_url, encode_png
from .residency import Residency, Rows
from .theme import BACKED, MAPPED, SWAPPED, rgb

PARTS = 8
MIXTURES = [
    (mapped, backed, swapped)
    for mapped in range(PARTS + 1)
    for backed in range(PARTS + 1 - mapped)
    for swapped in range(PARTS + 1 - mapped - backed)
]
_NUMBERS = np.zeros((PARTS + 1,) * 3, np.uint8)
for _number, _mixture in enumerate(MIXTURES):
    _NUMBERS[_mixture] = _number


def mixtures(residency: Residency) -> npt.NDArray[np.uint8]:
    """The number of each cell's mixture."""
    size = residency.rows.sizes[:, None]
    backed = residency.backed - residency.mapped
    mapped_part = _parts(residency.mapped / size)
    backed_part = np.minimum(_parts((residency.mapped + backed) / size), PARTS) - mapped_part
    swapped_part = np.minimum(_parts(residency.swapped / size), PARTS - mapped_part - backed_part)
    found: npt.NDArray[np.uint8] = _NUMBERS[mapped_part, backed_part, swapped_part]
    return found


def _parts(share: Floats) -> Ints:
    return np.rint(np.clip(share, 0, 1) * PARTS).astype(np.int64)


def palette() -> list[Colour]:
    """The colour of each mixture."""
    colours = [rgb(name) for name in (MAPPED, BACKED, SWAPPED)]
    mixed: list[Colour] = []
    for mixture in MIXTURES:
        whole = sum(mixture)
        channels = [sum(part * colour[at] for part, colour in zip(mixture, colours, strict=True)) for at in range(3)]
        red, green, blue = (round(channel / max(whole, 1)) for channel in channels)
        mixed.append((red, green, blue, round(255 * whole / PARTS)))
    return mixed


def state_image(residency: Residency) -> str:
    """URL of the picture of states; the lowest gfn is at the bottom."""
    return data_url(encode_png(mixtures(residency)[::-1], palette()))


def count_image(cells: Ints, colour: str) -> str:
    """URL of the picture of numbers of events: the more, the less transparent, by powers of two."""
    level = magnitude(cells)
    most = max(1, int(level.max(initial=0)))
    shades: list[Colour] = [(0, 0, 0, 0)]
    for each in range(1, most + 1):
        shades.append((*rgb(colour), round(90 + 165 * each / most)))
    return data_url(encode_png(level[::-1], shades))


def count_legend(cells: Ints, colour: str, what: str, layer: str) -> str:
    """What count_image() shows, hidden until it is shown."""
    most = int(cells.max(initial=0))
    text = f"1 to {most:,} {what} in a cell" if most > 1 else f"1 of {what} in a cell" if most else f"no {what}"
    ramp = f'<i class="key ramp {colour}"></i>' if most else ""
    return f'<ul class="legend" data-layer="{layer}" hidden><li>{ramp}{text}</li></ul>\n'


def heat_map(id_: str, label: str, residency: Residency, x: Scale, layers: list[tuple[str, str]]) -> str:
    """The figure. layers: (name, URL) of pictures of which one is shown."""
    pictures = "".join(
        f'<img alt="" src="{url}" data-layer="{name}"{" hidden" if at else ""}>'
        for at, (name, url) in enumerate(layers)
    )
    gaps = "".join(f'<b class="gap" style="bottom:{100 * at:.2f}%"></b>' for at in _gaps(residency.rows))
    cross = '<div class="guide across" hidden></div>'
    return frame(id_, label, "guest frame number (gfn)", _marks(residency.rows), x, pictures + gaps + cross)


def heat_data(residency: Residency, x: Scale, cells: dict[str, Ints]) -> dict[str, Any]:
    """For the script: row by row from the lowest gfn, a byte or two for each cell."""
    rows = residency.rows
    return {
        "bins": x.bins,
        "rows": [rows.span(row) for row in range(rows.number)],
        "pages": rows.sizes.tolist(),
        "mixtures": MIXTURES,
        "state": _packed(mixtures(residency)),
        "cells": {name: _packed(each) for name, each in cells.items()},
    }


def _packed(cells: npt.NDArray[Any]) -> dict[str, Any]:
    wide = int(cells.max(initial=0)) > 255
    data = np.minimum(cells.astype(np.int64), 0xFFFF).astype("<u2" if wide else np.uint8)
    return {"wide": wide, "data": b64encode(data.tobytes()).decode()}


def _marks(rows: Rows) -> list[tuple[float, str]]:
    """gfns at the left: of about eight rows."""
    every = max(1, -(-rows.number // 8))
    return [(row / rows.number, f"{rows.span(row)[0]:#x}") for row in range(0, rows.number, every)]


def _gaps(rows: Rows) -> list[float]:
    """Where the gfns of neighbouring rows are far from each other: more than a row's own pages."""
    if rows.number < 2:
        return []
    first, last = rows.gfns[rows.edges[:-1]], rows.gfns[rows.edges[1:] - 1]
    wide = first[1:] - last[:-1] - 1 > np.maximum(256, 4 * (last - first + 1)[:-1])
    return [(row + 1) / rows.number for row in np.flatnonzero(wide).tolist()]


def digit_grid(residency: Residency) -> str:
    """For a terminal: 0 to 9 of each cell's page-time that an spte maps; a dot where no page is anywhere."""
    size = residency.rows.sizes[:, None]
    digit = np.minimum(residency.mapped / size * 10, 9).astype(np.int64)
    there = residency.backed + residency.swapped > 0
    lines = []
    for row in range(residency.rows.number):
        cells = "".join(str(each) if some else "." for each, some in zip(digit[row], there[row], strict=True))
        lines.append(f"{residency.rows.span(row)[0]:>12x} {cells}\n")
    return "".join(lines)
