"""The parts of the page on the run as a whole: summary, vCPUs, exits and tracepoints."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..events import REGISTRY
from .analysis import Analysis
from .bins import percentile
from .faults import GUEST, KINDS
from .html import Cell, Markup, Section, empty, number, share, size, subheading, table, tiles
from .plot import Chart, Series, time_scale
from .theme import MANY

_BAR = 160

SHADOW_NAMES = (
    "This VM has shadow page tables: a miss exits as EXCEPTION_NMI with a gva, writes to CR3 and INVLPG exit too "
    "(CR_ACCESS, INVLPG), kvm_mmu_pagetable_walk reads the guest's tables, and stores to those are emulated or make "
    "their shadow page unsync."
)
TDP_NAMES = (
    "This VM has two-dimensional paging: a miss exits as EPT_VIOLATION with a gpa, registers of devices as "
    "EPT_MISCONFIG; the guest's own page faults, CR3 and INVLPG do not exit, and sptes change with "
    "kvm_tdp_mmu_spte_changed."
)


def summary(analysis: Analysis) -> Section:
    """What ran, and the counts."""
    timeline, lives = analysis.timeline, analysis.lives
    zapped = int(lives.ended.sum())
    pages_in, pages_out = (timeline.counts.get(name, 0) for name in ("swap_readpage", "swap_writepage"))
    made = int((timeline.field("kvm_mmu_get_page", "created") != 0).sum())
    gone = timeline.counts.get("kvm_mmu_prepare_zap_page", 0)
    facts = [
        ("run length", number(instructions(analysis)), "instructions"),
        ("events", number(timeline.total), ""),
        ("exits", number(timeline.counts.get("kvm_exit", 0)), ""),
        ("spte faults", number(len(analysis.faults.event)), ""),
        ("guest #PF", number(int((analysis.faults.kind == GUEST).sum())), "injected"),
        ("host faults", number(timeline.counts.get("handle_mm_fault", 0)), ""),
        ("sptes set", number(len(lives.born)), f"{zapped:,} zapped"),
        ("shadow pages", number(made), f"{gone:,} zapped"),
        ("TLB flushes", number(timeline.counts.get("kvm_flush_remote_tlbs", 0)), "requests"),
        ("notifier batches", number(len(analysis.batches.start)), ""),
        ("swap", number(pages_out), f"pages out, {pages_in:,} in"),
        ("guest memory touched", number(len(analysis.residency.rows.gfns)), "pages"),
    ]
    lead = "What ran, how it ended, and what it came to; every count is of events in the trace."
    return Section(
        "summary", "Summary", lead, f'<div class="split"><div>{tiles(facts)}</div>{_configuration(analysis)}</div>'
    )


def instructions(analysis: Analysis) -> int:
    """That the run retired, as the trace's end says, or as far as the trace goes."""
    told = analysis.timeline.tail.get("instructions")
    return told if isinstance(told, int) else analysis.timeline.stop - analysis.timeline.start - 1


def _configuration(analysis: Analysis) -> str:
    timeline, config = analysis.timeline, analysis.timeline.config
    rows: list[list[Cell]] = [["guest", _text(timeline.header.get("guest"))]]
    outcome = timeline.tail.get("outcome")
    if isinstance(outcome, dict):
        ended = [_text(outcome.get("reason")), f"status {_text(outcome.get('status'))}"]
        rows.append(["ended by", ", ".join(ended + ([_text(outcome["text"])] if outcome.get("text") else []))])
    for name in ("memory", "host_memory", "swap"):
        value = config.get(name)
        rows.append([name.replace("_", " "), size(value) if isinstance(value, int) else _text(value)])
    for name in ("smp", "mmu", "thp", "seed", "quantum", "swap_latency", "append", "kvm_params", "cpu"):
        if name in config:
            unit = " ns" if name == "swap_latency" else ""
            rows.append([name.replace("_", " "), _text(config[name]) + unit])
    told = timeline.tail.get("virtual_ns")
    if isinstance(told, int) and told > instructions(analysis):
        idle = told - instructions(analysis)
        rows.append(["virtual time", f"{told:,} ns, {idle:,} of them while no vCPU executed; charts leave these out"])
    violations = timeline.tail.get("violations")
    if isinstance(violations, list) and violations:
        rows.append(["violations", "; ".join(map(_text, violations))])
    return table("Configuration", ["setting", "value"], rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or "defaults"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None or value == "" else str(value)


def vcpus(analysis: Analysis) -> tuple[Section | None, list[Chart]]:
    """Faults of each vCPU over time, where there are several."""
    faults, timeline = analysis.faults, analysis.timeline
    numbers = sorted({task.vcpu for task in timeline.tasks if task.vcpu is not None})
    if len(numbers) < 2:
        return None, []
    exits, exit_vcpus = timeline.hits["kvm_exit"], timeline.field("kvm_exit", "vcpu_id")
    present = np.unique(faults.kind).tolist()
    series = []
    rows: list[list[Cell]] = []
    for at, vcpu in enumerate(numbers):
        mine = faults.vcpu == vcpu
        taken = faults.now[mine & analysis.axis.inside(faults.now)]
        series.append(
            Series(f"vCPU {vcpu}", _line_style(at), analysis.axis.per_bin(taken).tolist(), number(len(taken)))
        )
        exited = int((exit_vcpus[: len(exits.event)] == vcpu).sum())
        kinds = [int((mine & (faults.kind == kind)).sum()) for kind in present]
        rows.append([f"vCPU {vcpu}", exited, len(taken), *kinds, percentile(faults.events[mine], 50)])
    chart = Chart(
        "vcpu-faults",
        "Faults of each vCPU over time",
        "spte faults per bin",
        time_scale(analysis.axis),
        series,
        lines=True,
    )
    heads = ["", "exits", "spte faults", *(KINDS[kind].name for kind in present), "events in a fault, median"]
    lead = "Who faults when: one line for each vCPU. Below, what became of the faults of each."
    return Section("vcpus", "vCPUs", lead, chart.html() + table("Faults by vCPU and kind", heads, rows)), [chart]


def _line_style(at: int) -> str:
    """When there are no more colours, lines are dashed."""
    return MANY[at % len(MANY)] + (" dash" if at >= len(MANY) else "")


def names(analysis: Analysis) -> Section:
    """Exits by reason and hits by tracepoint."""
    timeline = analysis.timeline
    reasons = Counter(timeline.words("kvm_exit", "exit_reason"))
    exits = sum(reasons.values())
    body = subheading("Exits by reason", TDP_NAMES if timeline.tdp else SHADOW_NAMES)
    ordered = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    rows: list[list[Cell]] = [[name, count, share(count, exits), _bar(count, exits)] for name, count in ordered]
    body += table("kvm_exit", ["reason", "exits", "share", ""], rows) if rows else empty("No exit in this trace.")
    hits = sorted(timeline.counts.items(), key=lambda each: (-each[1], each[0]))
    most = hits[0][1] if hits else 1
    lines: list[list[Cell]] = [
        [name, count, REGISTRY[name].system if name in REGISTRY else "-", _bar(count, most)] for name, count in hits
    ]
    body += subheading("Tracepoints")
    body += table("Hits", ["tracepoint", "hits", "system", ""], lines) if lines else empty("No event in this trace.")
    lead = "Why the guest exited, and how often each tracepoint was hit, in the kernel's names."
    return Section("names", "Exits and tracepoints", lead, body)


def _bar(part: int, whole: int) -> Markup:
    return Markup(f'<i class="bar blue" style="width:{_BAR * part / max(whole, 1):.1f}px"></i>')


def warnings(analysis: Analysis) -> list[str]:
    """What the reader must know before all else."""
    timeline = analysis.timeline
    found = []
    if timeline.truncated:
        found.append(
            f"The trace was cut short: this is what {timeline.total:,} events in its whole chunks show, "
            "and how the run ended is not known."
        )
    if analysis.axis.start > timeline.start or analysis.axis.stop < timeline.stop:
        found.append(
            f"What began from {analysis.axis.start:,} ns to {analysis.axis.stop:,} ns is shown; exits, and what the "
            "summary and the last section count by tracepoint, are of the whole trace."
        )
    unknown = sorted(name for name in timeline.counts if name not in REGISTRY)
    if unknown:
        found.append(f"Tracepoints that this version does not know: {', '.join(unknown)}.")
    if np.any(timeline.now < 0):
        found.append("Time is negative in this trace.")
    return found
