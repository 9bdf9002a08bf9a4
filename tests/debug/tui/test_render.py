"""Lines of the panes: short enough, and readable without colours."""

from __future__ import annotations

import pytest

from shadowvm.debug.panes import CodeRow, EventRow, Panes
from shadowvm.debug.position import Position, Stop
from shadowvm.debug.tui import render
from shadowvm.debug.walks import Row


@pytest.mark.parametrize("width", [20, 34, 60])
def test_long_rows_are_folded_and_lose_nothing(width: int) -> None:
    row = "L1[192] 0x4de63 P W A D host-w mmu-w and then some"
    lines = render.fold(row, width)
    assert all(len(line) <= width for line in lines)
    assert " ".join(line.strip() for line in lines) == row
    assert all(line.startswith(" " * 8) for line in lines[1:])


def test_details_give_way() -> None:
    rows = [Row("L4[  0] 0xa023 P W A"), Row("     at gpa 0x9000", detail=True)]
    assert [line.plain for line in render.rows_text(rows, 40, details=False)] == [rows[0].text]
    assert len(render.rows_text(rows, 40, details=True)) == 2
    spans = {str(span.style) for span in render.rows_text(rows, 40, details=False)[0].spans}
    assert {"cyan", "bold green"} <= spans


def test_code_has_marks_for_the_next_instruction_and_for_breakpoints() -> None:
    code = [CodeRow(0x10, "<main>", "push rbp"), CodeRow(0x11, "<+1>", "ret"), CodeRow(0x12, "<+2>", "nop")]
    panes = Panes(0, 0x11, "main", code, {}, "", [], [], False, [], [], [], b"")
    lines, at = render.code_text(panes, {0x10: True, 0x12: False}, False, 20)
    assert [line.plain.rstrip() for line in lines] == [
        "main:",
        " ●10       push rbp",
        "▶ 11 +1    ret",
        " ○12 +2    nop",
    ]
    assert at == 2
    assert render.code_text(panes, {}, True, 20)[0][2].plain.startswith("▷ 11")


def test_a_changed_register_is_marked() -> None:
    values = dict.fromkeys(("rip", "cr0", "cr2", "cr3", "cr4"), 0) | {f"r{n}": 1 for n in range(8, 16)}
    values |= dict.fromkeys("rax rbx rcx rdx rsi rdi rbp rsp".split(), (1 << 64) - 1) | {"fs_base": 5, "rflags": 0x246}
    lines = [line.plain for line in render.registers_text(values, frozenset({"rax"}), 2)]
    assert lines[0] == "rax*ffffffffffffffff rbx ffffffffffffffff"
    assert lines[-1].startswith(f"{'cr4':<4}{0:>16} fs_base ")
    assert max(map(len, lines)) == 41
    assert render.flags_text(0x246) == "PF ZF IF"


def test_the_event_that_the_machine_stands_in_is_marked() -> None:
    events = [EventRow(8, "kvm", "CPU 0/KVM", "kvm_exit", "a"), EventRow(9, "nosuch", "kswapd0", "x", "b")]
    inside = Stop("events", Position(5, 9, between=False))
    assert [line.plain[0] for line in render.events_text(events, inside, 40)] == [" ", "▶"]
    between = Stop("instructions", Position(5, 9))
    assert [line.plain[0] for line in render.events_text(events, between, 40)] == [" ", " "]


def test_every_system_of_tracepoints_has_a_style() -> None:
    from shadowvm.events import REGISTRY

    assert {point.system for point in REGISTRY.values()} <= set(render.SYSTEM_STYLES)


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (Stop("start", Position(0, 0)), " g  at the start, instruction 0, event 0"),
        (Stop("exit", Position(9, 8), "status 0"), " g  ended, instruction 9, event 8  status 0"),
        (Stop("point", Position(9, 8), "x: y", 1, "CPU 1/KVM", 3), " g  break 3, vCPU 1, instruction 9, event 8  x: y"),
        (Stop("events", Position(9, 8), "x: y", None, "kswapd0"), " g  kswapd0, instruction 9, event 8  x: y"),
    ],
)
def test_the_line_at_the_top_says_who_stands_where_and_why(stop: Stop, said: str) -> None:
    assert render.status_text("g", stop).plain == said
