"""Everything that the page shows, found once."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError
from ..trace.reader import Trace
from .bins import Axis, Ints, time_axis
from .faults import Faults, find_faults
from .host import HostPtes, find_ptes, memory_slots
from .hot import Gfn, hottest
from .notifiers import Batches, find_batches
from .residency import Residency, count_cells, find_residency, touched_rows
from .sptes import Lives, find_lives, zaps
from .timeline import Timeline, load

CHART_BINS = 160
TOP = 20
EVERYWHERE = (0, 1 << 62)


class Options(NamedTuple):
    """resol: bins of time and of addresses. time_range: [from, to) in ns; address_range: [from, to) of gpas."""

    resol: tuple[int, int] = (320, 160)
    time_range: tuple[int, int] | None = None
    address_range: tuple[int, int] | None = None


class Analysis(NamedTuple):
    """axis: of the charts; that of the heat map is residency.axis. fault_cells, zap_cells: events in its cells.

    faults, lives, batches: those that begin in the range of time.
    """

    timeline: Timeline
    axis: Axis
    faults: Faults
    lives: Lives
    batches: Batches
    ptes: HostPtes
    residency: Residency
    fault_cells: Ints
    zap_cells: Ints
    hottest: list[Gfn]


def analyse(trace: Trace, options: Options) -> Analysis:
    """ConfigError: the trace is damaged, or nothing of it is in the range of time."""
    timeline = load(trace)
    start, stop = _range(timeline, options)
    batches = find_batches(timeline, zaps(timeline))
    ptes = find_ptes(timeline, memory_slots(timeline))
    lives = find_lives(timeline, batches, ptes)
    faults = find_faults(timeline)
    low, high = options.address_range or (0, EVERYWHERE[1])
    limits = (low >> 12, (high + 0xFFF) >> 12)
    rows = touched_rows(ptes, lives, limits, options.resol[1])
    fine = time_axis(start, stop, options.resol[0])
    coarse = time_axis(start, stop, min(CHART_BINS, options.resol[0]))
    ended = lives.ended
    return Analysis(
        timeline=timeline,
        axis=coarse,
        faults=Faults._make(column[coarse.inside(faults.now)] for column in faults),
        lives=Lives._make(column[coarse.inside(lives.set)] for column in lives),
        batches=Batches._make(column[coarse.inside(batches.now)] for column in batches),
        ptes=ptes,
        residency=find_residency(rows, fine, ptes, lives),
        fault_cells=count_cells(rows, fine, faults.gfn, faults.now),
        zap_cells=count_cells(rows, fine, lives.gfn[ended], lives.zapped[ended]),
        hottest=hottest(coarse, faults, ptes, lives, limits, TOP),
    )


def _range(timeline: Timeline, options: Options) -> tuple[int, int]:
    if options.time_range is None:
        return timeline.start, timeline.stop
    start, stop = max(options.time_range[0], timeline.start), min(options.time_range[1], timeline.stop)
    if start >= stop:
        raise ConfigError(
            f"--time_range: nothing there; the trace is from {timeline.start} ns to {timeline.stop - 1} ns"
        )
    return start, stop
