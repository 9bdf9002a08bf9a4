"""Axes, bars and lines."""

from __future__ import annotations

import pytest

from shadowvm.report.bins import time_axis
from shadowvm.report.plot import Chart, Scale, Series, nice_ticks, time_scale

X = Scale("x", [(0, "0")], ["a", "b"])


@pytest.mark.parametrize(
    ("greatest", "ticks"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (7, [0, 2, 4, 6, 8]),
        (100, [0, 50, 100]),
        (101, [0, 50, 100, 150]),
        (0.4, [0, 0.1, 0.2, 0.30000000000000004, 0.4]),
        (12345, [0, 5000, 10000, 15000]),
    ],
)
def test_ticks_are_round_and_reach_the_greatest(greatest: float, ticks: list[float]) -> None:
    assert nice_ticks(greatest) == (ticks[-1], ticks)


def test_time_has_the_unit_of_its_length() -> None:
    short, long = time_scale(time_axis(0, 4151, 160)), time_scale(time_axis(1_000_000, 40_325_827, 160))
    assert short.title.startswith("virtual time (ns;")
    assert [text for _, text in short.ticks] == ["0", "500", "1000", "1500", "2000", "2500", "3000", "3500", "4000"]
    assert short.bins[:2] == ["0-26 ns", "26-52 ns"]
    assert long.title.startswith("virtual time (ms;")
    assert [text for _, text in long.ticks][:2] == ["5", "10"]
    assert long.ticks[0][0] == pytest.approx(4_000_000 / 39_325_827)
    assert long.bins[0] == "1.00-1.25 ms"


def test_bars_stand_on_each_other() -> None:
    chart = Chart("id", "label", "y", X, [Series("one", "blue", [1, 0]), Series("two", "red", [3, 2])])
    html = chart.html()
    assert 'class="bar blue" d="M0 1000V750h10V1000z"' in html
    assert 'class="bar red" d="M0 750V0h10V750zM10 1000V500h10V1000z"' in html
    assert chart.data()["stack"] is True


def test_little_is_not_nothing() -> None:
    html = Chart("id", "label", "y", X, [Series("one", "blue", [1, 1_000_000])]).html()
    assert "M0 1000V996h10V1000z" in html


def test_lines_go_in_steps() -> None:
    chart = Chart("id", "label", "y", X, [Series("one", "blue", [2, 1]), Series("two", "red", [0, 2])], lines=True)
    assert 'class="curve blue" d="M0 0V0h10V500h10"' in chart.html()


def test_names_are_escaped() -> None:
    html = Chart("id", 'a "label"', "y", X, [Series("<b>", "blue", [1, 1], "<i>")]).html()
    assert "<b>" not in html.replace("<b>&lt;i&gt;</b>", "")
    assert "&lt;b&gt;" in html
    assert 'aria-label="a &quot;label&quot;"' in html
