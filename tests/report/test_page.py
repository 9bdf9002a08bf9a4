"""The page as a whole: it says what the trace says, whatever is or is not in it, and a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import find_image
from shadowvm.machine import Machine
from shadowvm.report.analysis import Analysis, Options, analyse
from shadowvm.report.page import render
from shadowvm.trace.reader import open_trace
from shadowvm.trace.writer import TraceWriter
from tests.report.traces import LEAF, PRESENT, VCPU, E, fault, invalidation, pte, spte

Make = Callable[..., Analysis]
SECTIONS = ("summary residency memory faults latency swap sptes notifiers hottest names").split()


class Outline(HTMLParser):
    """Ids, and the text of each section; complains about elements that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.section = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs).get("id")
        self.ids += [named] if named else []
        if tag == "section":
            self.section = str(named)
        if tag not in ("meta", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, dict[str, Any]]:
    """(analysis, what the machine counted) of a short run with swapping."""
    path = tmp_path_factory.mktemp("report") / "trace"
    config = MachineConfig(find_image("memtouch")[1], "memtouch", 4 * MIB, 2 * MIB, append="size=1792K passes=1")
    machine = Machine(config, lambda byte: None)
    with path.open("wb", buffering=0) as file, TraceWriter(machine, file).watching():
        machine.run()
        counted = {
            "faults": machine.vcpus[0].stat.pf_taken,
            "sptes": machine.kvm.stat.pages_4k,
            "zapped": machine.kvm.notifier.stat.as_dict()["sptes_zapped"],
            "swapped out": machine.host.vmstat.pswpout + machine.host.vmstat.swpout_zero,
        }
        machine.close()
    return analyse(open_trace(str(path)), Options()), counted


def test_the_page_counts_what_the_machine_counted(recorded: tuple[Analysis, dict[str, Any]]) -> None:
    analysis, counted = recorded
    assert len(analysis.faults.event) == counted["faults"]
    assert int((~analysis.lives.ended).sum()) == counted["sptes"]
    assert int(analysis.batches.zapped.sum()) == counted["zapped"] > 0
    assert 0 < len(analysis.timeline.hits["swap_writepage"].event) == counted["swapped out"]
    page = render(analysis)
    outline = Outline(page)
    assert [each for each in outline.ids if each in SECTIONS] == SECTIONS
    assert f"{counted['faults']:,}" in outline.text["summary"]
    charts = data_of(page)["charts"]
    for name, total in (("fault-kinds", "faults"), ("latency-events", "faults"), ("lifetimes", "zapped")):
        assert sum(map(sum, (each["values"] for each in charts[name]["series"]))) == counted[total], name
    assert set(charts) < set(outline.ids)
    assert len(page) < 500_000


def test_the_same_trace_gives_the_same_page_that_needs_no_other(recorded: tuple[Analysis, dict[str, Any]]) -> None:
    page = render(recorded[0])
    assert page == render(recorded[0])
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"> ]*)', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "://" not in page.replace("xmlns", "")


def test_an_empty_trace_says_so_everywhere(analysis_of: Make) -> None:
    page = render(analysis_of([], cut=True))
    text = Outline(page).text
    assert "cut short" in text[""]
    for section, sentence in {
        "residency": "No page of guest memory was backed",
        "memory": "Nothing was reclaimed",
        "faults": "No spte fault",
        "latency": "No fault of this trace was seen to its end",
        "swap": "No swap traffic",
        "sptes": "No leaf spte was set",
        "notifiers": "No range was invalidated",
        "hottest": "No event of this trace is about a gfn",
        "names": "No event in this trace",
    }.items():
        assert sentence in text[section]
    assert data_of(page) == {"charts": {}}


def test_five_events_make_a_page(analysis_of: Make) -> None:
    page = render(analysis_of(fault(0, 5, spte(0, 0x8000, 0, 5 << 12 | LEAF), pte(0, 5, 0, PRESENT))))
    outline = Outline(page)
    assert "No spte was zapped before the end" in outline.text["sptes"]
    assert "Every fault took 0 instructions" in outline.text["latency"]
    assert data_of(page)["heat"]["rows"] == [[5, 5]]


def test_what_the_trace_says_is_escaped(analysis_of: Make) -> None:
    nasty = "</script><img src=x>"
    page = render(analysis_of(invalidation(0, 5, 1, why=nasty), append=nasty))
    assert nasty not in page
    assert {each["name"] for each in data_of(page)["charts"]["batch-pages"]["series"]} == {nasty}
    Outline(page)


def test_a_window_of_time_is_told(analysis_of: Make) -> None:
    swapped = [E(now, VCPU, "swap_writepage", (now, now)) for now in range(9)]
    page = render(analysis_of(swapped, Options(time_range=(4, 6))))
    assert "What began from 4 ns to 6 ns is shown" in Outline(page).text[""]
    assert data_of(page)["charts"]["swap-io"]["series"][0]["values"] == [1, 1]
    assert "<b>2</b>" in page


def test_every_vcpu_has_a_line(analysis_of: Make) -> None:
    events: list[E] = []
    for vcpu in range(16):
        task = f"CPU {vcpu}/KVM"
        events += [E(vcpu, task, "kvm_exit", (vcpu, "EXCEPTION_NMI", 0, 0, 0)), *fault(vcpu, 5, task=task, vcpu=vcpu)]
    page = render(analysis_of(events, smp=16))
    series = data_of(page)["charts"]["vcpu-faults"]["series"]
    assert [each["name"] for each in series] == [f"vCPU {vcpu}" for vcpu in range(16)]
    assert len({each["colour"] for each in series}) == 16
    assert "vcpus" in Outline(page).ids
    assert "vcpus" not in Outline(render(analysis_of([E(0, VCPU, "kvm_entry", (0, 0))]))).ids


PROBE = """<script>
addEventListener("load", () => {
  const area = document.querySelector("ID .area"), box = area.getBoundingClientRect();
  const at = {clientX: box.left + 1, clientY: box.bottom - 1};
  area.dispatchEvent(new PointerEvent("pointermove", at));
  document.title = document.getElementById("tip").innerText.replaceAll("\\n", "|");
});
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_a_browser_shows_it_and_what_one_points_at(recorded: tuple[Analysis, dict[str, Any]], tmp_path: Path) -> None:
    page = render(recorded[0])
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", PROBE.replace("ID", "#heat")))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size=1280,9000 --dump-dom"
    ).split()
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert re.match(r"gfn 0x0-0x\w+ \(\d+ pages\)\|0\.0-\S+ \S+\|mapped by an spte\|", title[1]), title[1]
    assert done.stdout.count("<summary>data</summary>") == len(data_of(page)["charts"])
