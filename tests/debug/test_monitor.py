"""The command language: what a user does to look into a fault, and what is refused with one line."""

from __future__ import annotations

import re
from functools import partial

import pytest

from shadowvm.debug.commands.info import TOPICS
from shadowvm.debug.monitor import Monitor
from shadowvm.debug.timeline import Timeline
from shadowvm.errors import ShadowvmError
from tests.debug.machines import target_of


@pytest.fixture
def monitor(timeline: Timeline) -> Monitor:
    monitor = Monitor(timeline)
    monitor.execute("restart")
    return monitor


def said(monitor: Monitor, *commands: str) -> str:
    return "\n".join(line for command in commands for line in monitor.execute(command))


def test_phase_stays_in_the_fault_and_forward_does_not(monitor: Monitor) -> None:
    said(monitor, "break kvm_page_fault if fault_address >= 0x200000", "c", "delete")
    start = monitor.timeline.position.events
    points = [said(monitor, "phase") for _ in range(60)]
    end = next(at for at, text in enumerate(points) if "kvm_entry:" in text)
    assert all(text.startswith("vCPU 0") for text in points)
    assert "kvm_page_fault:" in points[end + 1]
    said(monitor, f"replay_seek event {start}")
    assert said(monitor, "phase 60") == points[end]
    said(monitor, 'break sched_switch if prev ~ "CPU*"', "c", "delete")
    assert said(monitor, "forward").startswith("kswapd0")
    assert said(monitor, "phase").startswith("vCPU 0")


def test_into_a_fault_through_it_and_back(monitor: Monitor) -> None:
    assert said(monitor, "break swap_readpage if slot >= 4", "c").startswith(
        "1: break swap_readpage if slot >= 4\nbreak 1"
    )
    inside = monitor.timeline.position
    assert "swap_readpage: slot" in said(monitor, "back", "phase")
    assert monitor.timeline.position == inside
    assert "kvm_entry" in said(monitor, "fin")
    story = said(monitor, "explain fault")
    for part in (
        "left the guest: no spte is there",
        "mmu_invalidate_seq is",
        "is read into frame",
        "the guest goes on",
    ):
        assert part in story
    assert len(story.splitlines()) < 60
    assert said(monitor, f"explain fault {re.findall('to (0x[0-9a-f]+) left', story)[0]}") == story
    assert said(monitor, "explain fault 1 << 40") == "no fault is in the history"
    assert "break 1" in said(monitor, "rc")
    assert monitor.timeline.position >= inside
    assert said(monitor, "replay_seek event " + str(inside.events)).startswith("vCPU 0 at")
    assert monitor.timeline.position == inside


def test_a_chain_from_gva_to_spte(monitor: Monitor) -> None:
    said(monitor, "until 400000")
    chain = said(monitor, "page -s rip")
    parts = (r"level 2: .* P W A D PS", r"memslot 0: gfns 0x0-", r"host pte 0x\w+ P", r"spte at 0x\w+: 0x\w+ P")
    for part in parts:
        assert re.search(part, chain), part
    hva = re.search(r"hva (0x\w+)", chain)
    sptep = re.search(r"spte at (0x\w+)", chain)
    assert hva is not None
    assert sptep is not None
    assert "host pte" in said(monitor, f"explain hva {hva[1]}")
    assert "memslot 0" in said(monitor, f"explain sptep {sptep[1]}")
    assert said(monitor, "gpa2hva 0x1000") == "hva: 0x7f0000001000"
    gpa = re.search(r"^gpa (0x\w+):", chain, re.MULTILINE)
    assert gpa is not None
    assert said(monitor, "gva2gpa rip") == f"gpa: {gpa[1]}"
    assert said(monitor, "gva2gpa 0xffff800000000000") == "Unmapped"
    assert "a device or nothing" in said(monitor, "explain gpa 0xfee00000")


def test_symbols_are_addresses_and_addresses_have_symbols(monitor: Monitor) -> None:
    assert said(monitor, "break main", "break *main+0x21") == "1: break *0x101b80 <main>\n2: break *0x101ba1 <main+33>"
    assert "0x101b80 <main>:  push rbp" in said(monitor, "c")
    assert "break 2" in said(monitor, "c")
    assert "<main+749>" in said(monitor, "until *main+749")
    rows = said(monitor, "x /300i main").splitlines()
    assert len(rows) == 300
    assert any("call 0x" in row and row.endswith(">") for row in rows)
    assert said(monitor, "break kvm_page_fault").endswith("break kvm_page_fault")


def test_what_is_said_of_a_break(monitor: Monitor) -> None:
    said(monitor, "break kvm_page_fault if error_code & 2", "c")
    first = monitor.timeline.position
    assert said(monitor, "info breaks") == "1: break kvm_page_fault if error_code & 2, hit 1 time"
    said(monitor, "c", "c")
    third = monitor.timeline.position
    said(monitor, "replay_seek event " + str(first.events), "ignore 1 1", "c")
    assert monitor.timeline.position == third
    assert "ignores" not in said(monitor, "info breaks")
    said(monitor, "disable", "tbreak kvm_page_fault error_code & 2", "replay_seek event " + str(first.events), "c", "c")
    assert said(monitor, "info breaks").count("\n") == 0
    assert "the guest has ended" in said(monitor, "info breaks", "c")
    with pytest.raises(ShadowvmError, match=r"'zork' is no field of kvm_page_fault \(vcpu_id"):
        monitor.execute("condition 1 zork > 1")
    said(monitor, "restart", "enable 1", "condition 1 fault_address == 0x113000", "replay_break 9000", "c")
    assert monitor.timeline.position.instructions == 9000
    assert "0x0000000000113000" in said(monitor, "c")
    said(monitor, "replay_delete_break")


def test_over_calls_and_out_of_them_both_ways(monitor: Monitor) -> None:
    said(monitor, "break main", "c", "delete")
    seen = []
    while "call" not in said(monitor, "x /1i rip"):
        said(monitor, "next")
    at = monitor.timeline.position
    before = said(monitor, "x /2i rip").splitlines()
    seen.append(said(monitor, "next"))
    assert monitor.timeline.position.instructions > at.instructions + 1
    assert before[1] in seen[0]
    said(monitor, "reverse-next")
    assert (monitor.timeline.position, said(monitor, "x /1i rip")) == (at, before[0])
    said(monitor, "stepi 2", "finish")
    assert before[1] in said(monitor, "x /1i rip")
    said(monitor, "rsi")
    assert "ret" in said(monitor, "x /1i rip")


def test_looking_changes_nothing(monitor: Monitor) -> None:
    said(monitor, "until 700000")
    before = said(monitor, "hash")
    for command in (
        "page -s 0x2b3000",
        "x /64xg 0x200000",
        "xp /8xb 0x9000",
        *(f"info {topic}" for topic in TOPICS if topic not in ("breaks", "breakpoints", "spte", "rmap")),
        "info spte 0x101",
        "info rmap 0x101",
        "creg",
        "print /a rip",
        "gva2hva rip",
        "x /2s main",
        "x /9i rip",
        "explain fault",
    ):
        assert said(monitor, command), command
    assert said(monitor, "hash") == before


def test_what_the_guest_maps_is_what_its_walk_finds() -> None:
    for guest, until in (("ptchurn", 130_000), ("pae32", 60_000), ("pm32", 60_000)):
        timeline = Timeline(partial(target_of, guest=guest, append="", host_memory=4 << 20))
        monitor = Monitor(timeline)
        said(monitor, f"until {until}")
        rows = [line.split() for line in monitor.execute("info tlb") if not line.startswith("...")]
        assert rows
        for gva, gpa, flags in rows[:: len(rows) // 10 + 1]:
            assert len(flags) == 9
            assert said(monitor, f"gva2gpa 0x{gva[:-1]}+1") == f"gpa: {int(gpa, 16) + 1:#x}"
        last = said(monitor, "info tlb").splitlines()[-1]
        if last.startswith("... and more: "):
            assert said(monitor, last.removeprefix("... and more: ")).startswith(f"{int(last.split()[-1], 16):016x}")
        ranges = [line.split() for line in monitor.execute("info mem")]
        assert all(
            int(each[0].split("-")[1], 16) - int(each[0].split("-")[0], 16) == int(each[1], 16) for each in ranges
        )
        assert {each[2] for each in ranges} <= {"-rw", "-r-", "urw", "ur-"}
        assert " -> " in said(monitor, "info tab")
        timeline.close()


def test_numbers_memory_and_registers_in_every_form(monitor: Monitor) -> None:
    said(monitor, "until *main")
    assert said(monitor, "p /d -2", "p /x -2", "p /o 8", "p /u 3*4", "p /c 65", "p /a main+3").splitlines() == [
        "-2",
        "0xfffffffffffffffe",
        "0o10",
        "12",
        "'A'",
        "0x101b83 <main+3>",
    ]
    assert said(monitor, "x /4xb main") == "0000000000101b80: 0x55 0x41 0x57 0x41"
    assert said(monitor, "x /2xh main") == "0000000000101b80: 0x4155 0x4157"
    assert said(monitor, "xp /1xg main") == said(monitor, "x /1xg main") == "0000000000101b80: 0x4155415641574155"
    assert said(monitor, "x /1db main+1") == "0000000000101b81: 65"
    assert "CR0=80050033" in said(monitor, "info registers")
    assert "PG cd nw AC WP NE ET ts em MP PE" in said(monitor, "creg")
    assert "(prio 0, ram): ram" in said(monitor, "info mtree")
    assert "<main>" not in said(monitor, "info symbols mai")
    assert "main" in said(monitor, "info symbols mai")


def test_memory_is_read_from_swap_and_stays_there(monitor: Monitor) -> None:
    said(monitor, "break mm_vmscan_write_folio", "c", "delete 1")
    said(monitor, "fin")
    swapped = re.search(r"hva 0x7f00(\w+)-.* is about to be unmapped", said(monitor, "explain fault"))
    assert swapped is not None
    gpa = int(swapped[1], 16)
    assert "swap slot" in said(monitor, f"explain gpa {gpa}")
    slot = re.search(r"swap slot (\d+)", said(monitor, f"explain gpa {gpa}"))
    assert slot is not None
    assert f"gfn {gpa >> 12:#x}" in said(monitor, f"explain swap {slot[1]}")
    assert "there are" in said(monitor, "explain swap 99999999")
    assert re.search(r"on (in)?active_anon, .*\d+ of \d+ from the oldest", said(monitor, "explain rip"))
    before = said(monitor, "hash")
    row = said(monitor, f"xp /2xg {gpa}")
    assert said(monitor, "hash") == before
    assert row.startswith(f"{gpa:016x}: 0x")


def test_steps_and_checkpoints(monitor: Monitor) -> None:
    said(monitor, "until 1000", "checkpoint", "stepi 5")
    assert said(monitor, "when").startswith("instruction 1005, event")
    said(monitor, "reverse-stepi 3")
    assert said(monitor, "when").startswith("instruction 1002,")
    assert said(monitor, "restart 1").splitlines()[0].startswith("vCPU 0 at instruction 1000,")
    assert "1: instruction 1000" in said(monitor, "info checkpoints")
    assert "the guest has ended: debug-exit, status 0" in said(monitor, "c")
    assert "ended" in said(monitor, "stepi")
    said(monitor, "rsi")
    assert "ended" not in said(monitor, "when")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("frobnicate", "no command"),
        ("re", "is one of replay_break, replay_delete_break, replay_seek, restart, reverse-continue"),
        ("break", "name a tracepoint"),
        ("break kvm_exits", "no tracepoint 'kvm_exits'"),
        ("break kvm_exit if rip == 1", "'rip' is no field"),
        ("watch gfn 1", "none of spte"),
        ("delete 7", "no break 7"),
        ("x /9z rip", "the form is"),
        ("x /4xg 0xffff800000000000", "no memory is there"),
        ("x /0xg 0", "out of range"),
        ("stepi many", "'many' is no register and no symbol"),
        ("stepi 1x", "'1x' is no number"),
        ("restart 9", "no checkpoint 9"),
        ("info nothing", "info: 'nothing' is unknown"),
        ("cpu 4", "no vCPU 4"),
        ("explain", "a number is missing"),
        ("until 0", "not ahead"),
        ("until event 0", "not ahead"),
        ("break *main if rip == 1", "only tracepoints"),
        ("condition 9 rip", "no break 9"),
        ("enable 9", "no break 9"),
        ("ignore 9 1", "no break 9"),
        ("delete checkpoint 9", "no checkpoint 9"),
        ("replay_delete_break", "has set none"),
        ("stepi " + "1" * 3000, "too long"),
    ],
)
def test_what_cannot_be_is_refused(monitor: Monitor, command: str, complaint: str) -> None:
    with pytest.raises(ShadowvmError, match=re.escape(complaint)):
        monitor.execute(command)


def test_help_names_every_command(monitor: Monitor) -> None:
    text = said(monitor, "help")
    for word in ("break", "explain", "reverse-continue", "replay_seek", "phase", "fin", "xp"):
        assert word in text
    assert said(monitor, "help stepi").startswith("stepi")
    assert said(monitor, "# a comment", "") == ""
