"""The parts of the page on memory: residency, pages by state, reclaim, swap traffic."""

from __future__ import annotations

import numpy as np

from .analysis import Analysis
from .bins import Ints
from .heat import count_image, count_legend, heat_map, state_image
from .host import frames_in_use, time_within
from .html import Cell, Section, empty, number, share, subheading, table
from .plot import Chart, Series, legend, time_scale
from .theme import BACKED, MAPPED, SWAPPED

STATES = (
    Series("mapped by an spte", MAPPED, [], "", "the guest reaches it without an exit"),
    Series("frame, no spte", BACKED, [], "", "the host has it in RAM; the next access is a cheap fault"),
    Series("in swap", SWAPPED, [], "", "the next access reads it back"),
)
HEAT = "heat"


def residency(analysis: Analysis) -> Section:
    """gfn by time."""
    found = analysis.residency
    rows = found.rows
    lead = (
        "Each line is a piece of guest memory, each column a moment. The colour says where its pages are; where pages "
        "are neither in RAM nor in swap the background shows through, and where they differ colours mix. Only gfns "
        "that were ever backed have a line; a thin gap marks a jump over others."
    )
    if not rows.number:
        return Section("residency", "Residency", lead, empty("No page of guest memory was backed in this trace."))
    buttons = "".join(
        f'<button type="button" data-show="{name}" aria-pressed="{"false" if at else "true"}">{text}</button>'
        for at, (name, text) in enumerate((("state", "where pages are"), ("faults", "spte faults"), ("zaps", "zaps")))
    )
    layers = [
        ("state", state_image(found)),
        ("faults", count_image(analysis.fault_cells, "red")),
        ("zaps", count_image(analysis.zap_cells, "violet")),
    ]
    picture = heat_map(
        HEAT, "Residency of guest memory: gfn by time, coloured by state", found, time_scale(found.axis), layers
    )
    least, most = int(rows.sizes.min()), int(rows.sizes.max())
    each = str(least) if least == most else f"{least} to {most}"
    pages = f"{len(rows.gfns):,} gfns in {rows.number} lines, {each} in each."
    body = f'<div class="buttons" role="group" aria-label="Layer" hidden>{buttons}</div>' + picture
    body += legend(STATES, "state")
    body += count_legend(analysis.fault_cells, "red", "spte faults", "faults")
    body += count_legend(analysis.zap_cells, "violet", "zaps", "zaps") + f'<p class="note">{pages}</p>\n'
    return Section("residency", "Residency", lead, body)


def memory(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """Pages by state, frames in use, and who reclaims."""
    lead = (
        "Where guest memory is as a whole, how many of the host's frames are taken, and the work of kswapd and of "
        "direct reclaim."
    )
    charts = []
    body = ""
    if analysis.residency.rows.number:
        charts.append(_pages_by_state(analysis))
        body += subheading("Guest pages by state") + charts[-1].html()
    frames = frames_in_use(analysis.timeline, analysis.axis)
    text = "frames in use" if frames.absolute else "frames taken since the trace began"
    if frames.used.any():
        series = [Series(text, "teal", frames.used.tolist(), f"at most {number(int(frames.used.max()))}")]
        if frames.absolute:
            series.append(Series("all frames", "grey", [frames.total] * analysis.axis.bins, number(frames.total)))
        note = "In use is what is not free: guest pages, page tables of host and KVM, and the kernel's own."
        label = f"Host {text} over time"
        charts.append(Chart("frames", label, "frames", time_scale(analysis.axis), series, lines=True))
        body += subheading("Host frames", note) + charts[-1].html()
    reclaim, more = _reclaim(analysis)
    return Section("memory", "Memory and reclaim", lead, body + subheading("Reclaim") + reclaim), charts + more


def _pages_by_state(analysis: Analysis) -> Chart:
    found = analysis.residency
    sums = (found.mapped.sum(axis=0), (found.backed - found.mapped).sum(axis=0), found.swapped.sum(axis=0))
    series = [
        each._replace(values=np.round(values, 1).tolist(), total=f"{values[-1]:,.0f} at the end")
        for each, values in zip(STATES, sums, strict=True)
    ]
    return Chart("pages", "Guest pages by state over time", "pages", time_scale(found.axis), series)


def _reclaim(analysis: Analysis) -> tuple[str, list[Chart]]:
    timeline, axis = analysis.timeline, analysis.axis
    hits = timeline.hits["mm_vmscan_lru_shrink_inactive"]
    if not len(hits.event):
        return empty("Nothing was reclaimed in this trace."), []
    now = timeline.now[hits.event]
    shown = axis.inside(now)
    scanned, freed = (
        timeline.field("mm_vmscan_lru_shrink_inactive", f"nr_{what}") for what in ("scanned", "reclaimed")
    )
    rest = np.maximum(scanned - freed, 0)
    series = [
        Series("reclaimed", "green", axis.per_bin(now, freed).tolist(), number(int(freed[shown].sum()))),
        Series("scanned and kept", "faint", axis.per_bin(now, rest).tolist(), number(int(rest[shown].sum()))),
    ]
    chart = Chart("reclaim", "Pages scanned and reclaimed over time", "pages per bin", time_scale(axis), series)
    rows: list[list[Cell]] = []
    for who, begin, end in (
        ("kswapd", "mm_vmscan_kswapd_wake", "mm_vmscan_kswapd_sleep"),
        ("direct reclaim", "mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end"),
    ):
        low, high = time_within(timeline, begin, end, axis)
        rows.append([who, len(low), int((high - low).sum()), share(int((high - low).sum()), axis.stop - axis.start)])
    heads = ["who", "times", "instructions meanwhile", "share of the run"]
    return chart.html() + table("Reclaim, by who does it", heads, rows), [chart]


def swap(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """Pages out and in."""
    timeline, axis = analysis.timeline, analysis.axis
    lead = "Pages that go to swap and come back, with read-ahead, and with pages of zeros, which need no I/O."
    hits = [timeline.now[timeline.hits[name].event] for name in ("swap_writepage", "swap_readpage")]
    moments: list[Ints] = [now[axis.inside(now)] for now in hits]
    if not any(len(each) for each in moments):
        return Section("swap", "Swap traffic", lead, empty("No swap traffic in this trace.")), []
    series = [
        Series(text, colour, axis.per_bin(now).tolist(), number(len(now)), explain)
        for now, text, colour, explain in zip(
            moments, ("out", "in"), ("orange", "blue"), ("swap_writepage", "swap_readpage"), strict=True
        )
    ]
    chart = Chart("swap-io", "Pages written to swap and read back over time", "pages per bin", time_scale(axis), series)
    ptes, shown = analysis.ptes, axis.inside(analysis.ptes.now)
    unmapped, back = int((ptes.swapped_out & shown).sum()), int((ptes.swapped_in & shown).sum())
    clean = max(0, unmapped - len(moments[0]))
    note = (
        f"{unmapped:,} times a guest page was unmapped to swap, {clean:,} of them without writing, as a copy was there "
        f"still; {back:,} times one came back into the page tables."
    )
    return Section("swap", "Swap traffic", lead, chart.html() + f'<p class="note">{note}</p>\n'), [chart]
