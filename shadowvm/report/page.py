"""The page: one HTML file that needs no other. The same trace gives the same bytes."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from . import sections_memory, sections_mmu, sections_overview, theme
from .analysis import Analysis
from .heat import heat_data
from .html import Section
from .plot import Chart, time_scale

TEMPLATE = Path(__file__).parent / "template"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser holds what the page promises: nothing from a network."""


def render(analysis: Analysis) -> str:
    """The whole page."""
    sections, charts = _sections(analysis)
    guest = str(analysis.timeline.header.get("guest", "guest"))
    links = "".join(f'<a href="#{each.id}">{escape(each.title)}</a>' for each in sections)
    warned = "".join(
        f'<p class="warning" role="alert">{escape(each)}</p>\n' for each in sections_overview.warnings(analysis)
    )
    style = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    script = (TEMPLATE / "page.js").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(guest)}: shadowvm report</title>\n<style>\n{theme.style()}{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(guest)}</h1><p>{escape(_subtitle(analysis))}</p>"
        '<button type="button" id="theme" hidden>dark</button></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{warned}'
        f"{''.join(each.html() for each in sections)}</main>\n"
        '<div id="tip" role="status" hidden></div>\n'
        f'<script type="application/json" id="data">{_json(analysis, charts)}</script>\n<script>\n{script}</script>\n'
        "</body>\n</html>\n"
    )


def _subtitle(analysis: Analysis) -> str:
    timeline, config = analysis.timeline, analysis.timeline.config
    mmu = "two-dimensional paging" if timeline.tdp else "shadow page tables"
    smp = config.get("smp", 1)
    return (
        f"shadowvm report: {smp} vCPU{'' if smp == 1 else 's'}, {mmu}, {timeline.total:,} events, "
        f"{sections_overview.instructions(analysis):,} instructions"
    )


def _sections(analysis: Analysis) -> tuple[list[Section], list[Chart]]:
    sections = [sections_overview.summary(analysis), sections_memory.residency(analysis)]
    charts: list[Chart] = []
    for make in (
        sections_memory.memory,
        sections_mmu.faults,
        sections_mmu.latency,
        sections_memory.swap,
        sections_mmu.lifetimes,
        sections_mmu.notifiers,
    ):
        section, drawn = make(analysis)
        sections.append(section)
        charts += drawn
    sections.append(sections_mmu.hottest(analysis))
    by_vcpu, drawn = sections_overview.vcpus(analysis)
    if by_vcpu is not None:
        sections.append(by_vcpu)
    sections.append(sections_overview.names(analysis))
    return sections, charts + drawn


def _json(analysis: Analysis, charts: list[Chart]) -> str:
    data: dict[str, object] = {"charts": {each.id: each.data() for each in charts}}
    if analysis.residency.rows.number:
        cells = {"spte faults": analysis.fault_cells, "zaps": analysis.zap_cells}
        data["heat"] = heat_data(analysis.residency, time_scale(analysis.residency.axis), cells)
    # Inside of a script element nothing is escaped: no `<` may be there.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
