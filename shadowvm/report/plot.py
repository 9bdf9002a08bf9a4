"""Charts: bars that stack and lines, as SVG that stretches between axes of HTML text, and what their script needs.

The drawing stretches with the page; text, which is HTML at positions in percent, does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, NamedTuple

from .bins import Axis
from .html import number

HEIGHT = 1000
STEP = 10
_UNITS = ((10_000, 1, "ns"), (10_000_000, 1000, "\N{MICRO SIGN}s"), (10_000_000_000, 1_000_000, "ms"))


class Series(NamedTuple):
    """One colour of a chart; a value for each bin. total: what the legend says of it."""

    name: str
    colour: str
    values: Sequence[float]
    total: str = ""
    explain: str = ""


class Scale(NamedTuple):
    """The x axis: ticks at fractions of its length, and the name of each bin for who points at it."""

    title: str
    ticks: list[tuple[float, str]]
    bins: list[str]


class Chart(NamedTuple):
    """id: of the figure. label: what the chart is, for who cannot see it. lines: not bars that stack."""

    id: str
    label: str
    y_title: str
    x: Scale
    series: list[Series]
    lines: bool = False

    def html(self) -> str:
        """The figure and its legend."""
        return self.figure() + legend(self.series)

    def figure(self) -> str:
        """Without a legend."""
        top, ticks = nice_ticks(self._greatest())
        draw = _lines if self.lines else _bars
        width = len(self.x.bins) * STEP
        svg = (
            f'<svg viewBox="0 0 {width} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
            f"{draw(self.series, top)}</svg>"
        )
        marks = [(tick / top, number(tick)) for tick in ticks]
        return frame(self.id, self.label, self.y_title, marks, self.x, svg)

    def data(self) -> dict[str, Any]:
        """For the script."""
        series = [
            {"name": each.name, "colour": each.colour, "values": [round(value, 3) for value in each.values]}
            for each in self.series
        ]
        return {"bins": self.x.bins, "series": series, "stack": not self.lines, "x": self.x.title, "y": self.y_title}

    def _greatest(self) -> float:
        columns = zip(*(each.values for each in self.series), strict=True)
        heights = [float(max(column) if self.lines else sum(column)) for column in columns]
        return max([0.0, *heights])


def frame(id_: str, label: str, y_title: str, marks: list[tuple[float, str]], x: Scale, inside: str) -> str:
    """A plot between its axes. marks: (height, text) of the ticks at the left."""
    left = "".join(f'<span style="bottom:{100 * at:.2f}%">{escape(text)}</span>' for at, text in marks)
    grid = "".join(f'<hr style="bottom:{100 * at:.2f}%">' for at, _ in marks)
    below = "".join(f'<span style="left:{100 * at:.2f}%">{escape(text)}</span>' for at, text in x.ticks)
    return (
        f'<figure class="plot" id="{id_}"><div class="ytitle">{escape(y_title)}</div><div class="y">{left}</div>'
        f'<div class="area" tabindex="0" role="img" aria-label="{escape(label)}">{grid}{inside}'
        f'<div class="guide" hidden></div></div><div class="x">{below}</div>'
        f'<div class="xtitle">{escape(x.title)}</div></figure>\n'
    )


def legend(series: Sequence[Series], layer: str = "") -> str:
    """Colours and names; of a layer of the heat map, which has one each."""
    items = "".join(
        f'<li title="{escape(each.explain)}"><i class="key {each.colour}"></i>{escape(each.name)}'
        + (f" <b>{escape(each.total)}</b>" if each.total else "")
        + "</li>"
        for each in series
    )
    attribute = f' data-layer="{layer}"' if layer else ""
    return f'<ul class="legend"{attribute}>{items}</ul>\n'


def _bars(series: Sequence[Series], top: float) -> str:
    """A path for each series, of one rectangle for each bin that has some."""
    base = [0.0] * len(series[0].values) if series else []
    paths = []
    for each in series:
        parts = []
        for at, value in enumerate(each.values):
            if value:
                low, high = (round(HEIGHT * (1 - level / top)) for level in (base[at], base[at] + value))
                # What is there shows, however little it is.
                high = min(high, low - 4)
                parts.append(f"M{at * STEP} {low}V{high}h{STEP}V{low}z")
                base[at] += value
        if parts:
            paths.append(f'<path class="bar {each.colour}" d="{"".join(parts)}"/>')
    return "".join(paths)


def _lines(series: Sequence[Series], top: float) -> str:
    """A line of steps for each series."""
    paths = []
    for each in series:
        steps = "".join(f"V{round(HEIGHT * (1 - value / top))}h{STEP}" for value in each.values)
        first = round(HEIGHT * (1 - each.values[0] / top)) if len(each.values) else HEIGHT
        paths.append(f'<path class="curve {each.colour}" d="M0 {first}{steps}"/>')
    return "".join(paths)


def nice_ticks(greatest: float, about: int = 4) -> tuple[float, list[float]]:
    """(end of the axis, its ticks, `about` so many) for values up to the greatest: steps of 1, 2 or 5 times 10**n."""
    if greatest <= 0:
        return 1, [0, 1]
    rough = greatest / about
    power = 10 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
    if greatest == int(greatest):
        step = max(step, 1)
    ticks = [0.0]
    while ticks[-1] < greatest * 0.999999:
        ticks.append(step * len(ticks))
    return ticks[-1], [int(tick) if tick == int(tick) else tick for tick in ticks]


def time_scale(axis: Axis) -> Scale:
    """Virtual time."""
    _, unit, name = next((each for each in _UNITS if axis.stop <= each[0]), (0, 1_000_000_000, "s"))
    length = axis.stop - axis.start
    _, steps = nice_ticks(length / unit, 10)
    step = steps[1] * unit
    first = -(-axis.start // step) * step
    ticks: list[tuple[float, str]] = []
    while first + step * len(ticks) <= axis.stop - 1 + (length == 1):
        at = first + step * len(ticks)
        ticks.append(((at - axis.start) / length, f"{at / unit:.10g}"))
    digits = max(0, 1 + ceil(-log10(axis.width / unit))) if unit > 1 else 0
    edges = [f"{axis.edge(each) / unit:.{digits}f}" for each in range(axis.bins + 1)]
    bins = [f"{low}-{high} {name}" for low, high in pairwise(edges)]
    return Scale(f"virtual time ({name}; an instruction is a nanosecond)", ticks, bins)
