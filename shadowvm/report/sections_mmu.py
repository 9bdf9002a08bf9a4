"""The parts of the page on the MMU: faults, their latency, sptes, notifiers, hottest gfns."""

from __future__ import annotations

import numpy as np

from .analysis import Analysis
from .bins import Flags, Ints, magnitude, magnitude_label, magnitude_tick, percentile
from .faults import KINDS
from .html import Cell, Section, empty, key, number, share, subheading, table
from .plot import Chart, Scale, Series, legend, time_scale
from .theme import FAULTS, MANY

_PERCENTS = (50, 90, 99, 100)
LEVELS = ((1, "4 KiB", "blue"), (2, "2 MiB", "violet"))


def faults(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """By kind over time."""
    found, axis = analysis.faults, analysis.axis
    lead = (
        "Every kvm_page_fault, by what became of it until its vCPU entered the guest again. A fault counts once, under "
        "the first kind of the list that it fits."
    )
    if not len(found.event):
        return Section("faults", "Faults by kind", lead, empty("No spte fault in this trace.")), []
    kinds = [kind for kind in range(len(KINDS)) if (found.kind == kind).any()]
    series = []
    rows: list[list[Cell]] = []
    for kind in kinds:
        now = found.now[found.kind == kind]
        name, explain = KINDS[kind]
        series.append(Series(name, FAULTS[kind], axis.per_bin(now).tolist(), number(len(now)), explain))
        rows.append([key(FAULTS[kind], name), len(now), share(len(now), len(found.event)), explain])
    chart = Chart("fault-kinds", "spte faults by kind over time", "faults per bin", time_scale(axis), series)
    body = chart.html() + table("Kinds of faults", ["kind", "faults", "share", "what it means"], rows)
    return Section("faults", "Faults by kind", lead, body), [chart]


def latency(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """From fault to entry, in three measures."""
    found = analysis.faults
    lead = (
        "How much happens between a kvm_page_fault and the kvm_entry of its vCPU: events that its task traces, "
        "scheduling points that it passes (where another task may come in), and instructions that are retired "
        "meanwhile, by other vCPUs or by emulation, which is virtual time."
    )
    ended = found.events >= 0
    if not ended.any():
        return Section("latency", "Fault latency", lead, empty("No fault of this trace was seen to its end.")), []
    charts, body = [], ""
    for id_, title, unit, values in (
        ("latency-events", "In events", "events", found.events),
        ("latency-points", "In scheduling points", "points", found.points),
        ("latency-instructions", "In virtual time", "instructions", found.instructions),
    ):
        note = _standing_still(analysis) if not (values[ended] > 0).any() else ""
        if not note:
            charts.append(_by_kind(id_, f"Fault latency in {unit}, by kind", unit, values, ended, found.kind))
        body += f"<div>{subheading(title, note)}{'' if note else charts[-1].figure()}</div>"
    body = f'<div class="columns">{body}</div>' + (legend(charts[0].series) if charts else "")
    unfinished = int((~ended).sum())
    if unfinished:
        body += f'<p class="note">{unfinished:,} faults without an entry behind them are left out.</p>\n'
    return Section("latency", "Fault latency", lead, body + _percentiles(analysis, ended)), charts


def _standing_still(analysis: Analysis) -> str:
    smp = analysis.timeline.config.get("smp", 1)
    waits = " A wait for swap (--swap-latency) retires none." if analysis.timeline.config.get("swap_latency") else ""
    if smp == 1:
        return f"Every fault took 0 instructions: nobody else executes while the only vCPU waits.{waits}"
    return f"Every fault took 0 instructions: no other vCPU ran before the entry.{waits}"


def _by_kind(id_: str, label: str, unit: str, values: Ints, chosen: Flags, kind: Ints) -> Chart:
    bins = magnitude(values)
    scale = _magnitudes(unit, int(bins[chosen].min()), int(bins[chosen].max()))
    first = int(bins[chosen].min())
    series = []
    for each in range(len(KINDS)):
        mine = bins[chosen & (kind == each)] - first
        if len(mine):
            counts = np.bincount(mine, minlength=len(scale.bins)).tolist()
            series.append(Series(KINDS[each].name, FAULTS[each], counts, number(len(mine))))
    return Chart(id_, label, "faults", scale, series)


def _magnitudes(unit: str, first: int, last: int) -> Scale:
    """Powers of two, and some room beside a single bar."""
    last = max(last, first + 5)
    count = last - first + 1
    every = max(1, -(-count // 12))
    labels = [magnitude_label(each) for each in range(first, last + 1)]
    ticks = [(at / count, magnitude_tick(first + at)) for at in range(0, count, every)]
    return Scale(f"{unit}, from a power of two to the next", ticks, [f"{each} {unit}" for each in labels])


def _percentiles(analysis: Analysis, ended: Flags) -> str:
    found = analysis.faults
    heads = ["kind", "faults"]
    heads += [f"{unit} {_percent_name(each)}" for unit in ("events", "points", "instr.") for each in _PERCENTS]
    rows: list[list[Cell]] = []
    for kind in range(len(KINDS)):
        mine = ended & (found.kind == kind)
        if mine.any():
            cells = [
                percentile(values[mine], each)
                for values in (found.events, found.points, found.instructions)
                for each in _PERCENTS
            ]
            rows.append([key(FAULTS[kind], KINDS[kind].name), int(mine.sum()), *cells])
    return table("Latency by kind: percentiles", heads, rows)


def _percent_name(percent: int) -> str:
    return "max" if percent == 100 else f"p{percent}"


def lifetimes(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """From set to zap."""
    lives = analysis.lives
    lead = "How long leaf sptes live, in instructions, from the store that sets one to the store that zaps it."
    if not len(lives.born):
        return Section("sptes", "spte lifetimes", lead, empty("No leaf spte was set in this trace.")), []
    charts, body = [], ""
    if lives.ended.any():
        charts.append(_lifetime_chart(analysis))
        body += charts[-1].html()
    else:
        body += empty("No spte was zapped before the end of this trace.")
    rows: list[list[Cell]] = []
    for level, name, colour in LEVELS:
        mine = lives.level == level
        if mine.any():
            length = (lives.zapped - lives.set)[mine & lives.ended]
            percentiles = [percentile(length, each) if len(length) else "-" for each in _PERCENTS]
            rows.append([key(colour, name), int(mine.sum()), len(length), int(mine.sum()) - len(length), *percentiles])
    heads = ["level", "set", "zapped", "alive at the end", *(f"life {_percent_name(each)}" for each in _PERCENTS)]
    body += table("Leaf sptes by level", heads, rows)
    if lives.ended.any():
        body += _zapped_by(analysis)
    return Section("sptes", "spte lifetimes", lead, body), charts


def _lifetime_chart(analysis: Analysis) -> Chart:
    lives = analysis.lives
    bins = magnitude(lives.zapped - lives.set)
    first, last = int(bins[lives.ended].min()), int(bins[lives.ended].max())
    scale = _magnitudes("instructions", first, last)
    series = []
    for level, name, colour in LEVELS:
        mine = bins[lives.ended & (lives.level == level)] - first
        if len(mine):
            series.append(
                Series(name, colour, np.bincount(mine, minlength=len(scale.bins)).tolist(), number(len(mine)))
            )
    return Chart("lifetimes", "Lifetime of leaf sptes, by level", "sptes", scale, series)


def _zapped_by(analysis: Analysis) -> str:
    lives = analysis.lives
    counts: dict[str, int] = {}
    for event in lives.by[lives.ended].tolist():
        why = f"mmu notifier, {event}" if event else "KVM itself"
        counts[why] = counts.get(why, 0) + 1
    total = sum(counts.values())
    explain = {"KVM itself": "the guest changed its tables, another page took the place, or a whole table was zapped"}
    rows: list[list[Cell]] = [
        [why, count, share(count, total), explain.get(why, "the host took the page or its rights away")]
        for why, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    ]
    return table("Why they were zapped", ["by", "sptes", "share", "what it means"], rows)


def notifiers(analysis: Analysis) -> tuple[Section, list[Chart]]:
    """What one invalidation comes to."""
    batches = analysis.batches
    lead = (
        "A batch is what lies between mmu_notifier_invalidate_range_start and _end: how long its range is, how many "
        "leaf sptes it zaps, and how many TLB flushes it asks for."
    )
    if not len(batches.start):
        return Section("notifiers", "Notifier batches", lead, empty("No range was invalidated in this trace.")), []
    names = batches.name.tolist()
    events = sorted(set(names))
    which = np.array([events.index(name) for name in names])
    charts, body = [], ""
    for id_, title, unit, values in (
        ("batch-pages", "Size of the range", "pages", batches.pages),
        ("batch-zapped", "sptes zapped in a batch", "sptes", batches.zapped),
        ("batch-flushes", "TLB flushes in a batch", "flushes", batches.flushes),
    ):
        bins = magnitude(values)
        first = int(bins.min())
        scale = _magnitudes(unit, first, int(bins.max()))
        series = [
            Series(name, MANY[at], np.bincount(bins[which == at] - first, minlength=len(scale.bins)).tolist())
            for at, name in enumerate(events)
        ]
        charts.append(Chart(id_, f"Notifier batches by {unit}", "batches", scale, series))
        body += f"<div>{subheading(title)}{charts[-1].html()}</div>"
    rows: list[list[Cell]] = []
    for at, name in enumerate(events):
        mine = which == at
        row = [int(each[mine].sum()) for each in (batches.pages, batches.zapped, batches.flushes)]
        idle = int((batches.zapped[mine] == 0).sum())
        rows.append([key(MANY[at], name), int(mine.sum()), *row, idle, f"{row[2] / mine.sum():.2f}"])
    heads = ["event", "batches", "pages", "sptes zapped", "flushes", "batches without an spte", "flushes per batch"]
    body = f'<div class="columns">{body}</div>' + table("Batches by event", heads, rows)
    return Section("notifiers", "Notifier batches", lead, body), charts


def hottest(analysis: Analysis) -> Section:
    """The gfns with most faults."""
    lead = "The guest frames with most faults: what the host did to each, and how long some spte mapped it."
    if not analysis.hottest:
        return Section("hottest", "Hottest gfns", lead, empty("No event of this trace is about a gfn."))
    rows: list[list[Cell]] = [
        [f"{each.gfn:#x}", f"{each.gfn << 12:#x}", *each[1:-1], f"{100 * each.mapped:.1f}\N{NO-BREAK SPACE}%"]
        for each in analysis.hottest
    ]
    heads = [
        "gfn",
        "gpa",
        "faults",
        "of stores",
        "major",
        "minor",
        "swapped in",
        "swapped out",
        "sptes set",
        "zapped",
        "time mapped",
    ]
    return Section("hottest", "Hottest gfns", lead, table(f"The {len(rows)} gfns with most faults", heads, rows))
