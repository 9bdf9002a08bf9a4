"""What a full-screen debugger reads: right, and without a trace in the run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from shadowvm.addr import PAGE_SHIFT
from shadowvm.debug.breaks import PointBreak
from shadowvm.debug.panes import Look, Panes
from shadowvm.debug.position import Position
from shadowvm.debug.timeline import Timeline
from shadowvm.debug.walks import Row
from tests.debug.machines import target_of

FAULT, DONE = PointBreak(1, "kvm_page_fault"), PointBreak(2, "kvm_entry")
LOOKS = (Look(), Look("gva", 0x2C0000), Look("gpa", 0x300000), Look("gva", 1 << 47), Look("gpa", 1 << 40))


@pytest.fixture(scope="module", params=["shadow", "tdp"])
def timeline(request: pytest.FixtureRequest) -> Iterator[Timeline]:
    timeline = Timeline(partial(target_of, mmu=request.param))
    yield timeline
    timeline.close()


def panes(timeline: Timeline, look: Look = LOOKS[0]) -> Panes:
    found: Panes = timeline.call("view", "panes", look)
    return found


def text(rows: list[Row]) -> str:
    return "\n".join(row.text for row in rows)


def test_looking_changes_nothing(timeline: Timeline) -> None:
    def run(looks: tuple[Look, ...]) -> str:
        timeline.go_to(Position(0, 0))
        for event in (0, 200, 15_001, 15_040, 15_400):
            timeline.seek_event(event)
            for look in looks:
                assert panes(timeline, look) == panes(timeline, look)
        timeline.go(until=700_000)
        return f"{timeline.position} {timeline.call('state_hash')}"

    assert run(LOOKS) == run(())


def test_both_walks_and_the_frame_of_a_fault_as_it_is_handled(timeline: Timeline) -> None:
    timeline.go_to(Position(400_000, 0))
    stop = timeline.go(breaks=[FAULT])
    address = int(stop.text.partition("address ")[2].split()[0], 16)
    at = panes(timeline)
    assert re.fullmatch(rf"fault W(\|U)?, event {stop.position.events}", at.why)
    assert at.guest[0].text.startswith(f"gva {address:#x}, cr3 ")
    assert text(at.guest).endswith(f"-> gpa {address:#x}, a page of 2 MiB")
    assert at.shadow[0].text.startswith(f"{'gpa' if at.nested else 'gva'} {address:#x}, root 0x")
    assert "not present" in text(at.shadow)
    assert at.shadow[-1].text == "-> nothing: the next access faults"
    assert "direct" in text(at.shadow)
    assert "never touched" in text(at.host)
    assert at.events[-1].name == "kvm_page_fault"
    assert any(row.address == at.rip for row in at.code)
    timeline.go(breaks=[DONE])
    at = panes(timeline)
    spte = re.search(r"L1\[ *(\d+)\] (0x\w+) P W (?:U )?A D host-w mmu-w", text(at.shadow))
    frame = re.search(r"host pte (0x\w+) P W U A D\npfn (0x\w+): refcount 1, mapcount 1", text(at.host))
    assert spte is not None
    assert frame is not None
    assert int(spte[1]) == address >> PAGE_SHIFT & 511
    assert int(spte[2], 16) >> PAGE_SHIFT == int(frame[1], 16) >> PAGE_SHIFT == int(frame[2], 16)
    assert at.shadow[-1].text == f"-> pfn {frame[2]}"
    assert "spte at 0x" in text(at.host)
    assert re.search(r"LRU inactive_anon: (\d+) of \1$", text(at.host), re.MULTILINE)


def test_a_page_in_swap_and_the_host_short_of_memory(timeline: Timeline) -> None:
    timeline.go_to(Position(500_000, 0))
    stop = timeline.go(breaks=[PointBreak(1, "host_pte_change", "!(new_pte & 1)")])
    gpa = (int(stop.text.partition("vpn ")[2].split()[0], 16) << PAGE_SHIFT) - 0x7F0000000000
    timeline.go(until_event=stop.position.events + 1)
    at = panes(timeline, Look("gpa", gpa))
    assert re.search(r"host pte 0x\w+ -> swap slot \d+", text(at.host))
    assert "and in the swap cache:" in text(at.host)
    assert "no spte maps it" in text(at.host)
    assert at.guest[0].text == f"gpa {gpa:#x}: no gva is known for it"
    assert re.search(r"^swap +\d+ #", text(at.memory), re.MULTILINE)
    assert re.search(r"^free +\d+ #+$", text(at.memory), re.MULTILINE)
    assert re.search(r"kswapd0: (runs|is runnable)", text(at.memory))


@pytest.mark.parametrize(("guest", "levels"), [("pae32", "L3 L2 L1"), ("pm32", "L2 L1"), ("real16", "")])
def test_every_paging_mode_has_its_walks(guest: str, levels: str) -> None:
    timeline = Timeline(partial(target_of, guest, "", 4 << 20))
    for _ in range(60):
        timeline.go(breaks=[DONE])
        at = panes(timeline)
        if levels == " ".join(row.text[:2] for row in at.guest if row.text[:1] == "L"):
            break
    else:
        pytest.fail("never seen")
    timeline.close()


def test_a_table_of_the_guest_that_is_in_swap_is_named() -> None:
    timeline = Timeline(target_of)
    timeline.go(breaks=[PointBreak(1, "swap_readpage", "slot < 10")])
    rows = panes(timeline).guest
    assert any(row.text.endswith(" in swap") for row in rows), text(rows)
    timeline.close()
