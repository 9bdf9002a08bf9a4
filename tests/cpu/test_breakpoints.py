"""Breakpoints stop before an instruction, wherever it is in a block, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowvm.debug.breaks import AddressBreak
from shadowvm.debug.target import Target
from shadowvm.debug.timeline import Timeline
from tests.debug.machines import target_of
from tests.tiny import EXIT, ORIGIN, write_tiny

LOOP = f"""
xor eax, eax
xor ebx, ebx
mov ecx, 1000
again: inc rax
nop
inc rbx
loop again
mov rsi, 0x200000
mov rdi, 0x300000
mov ecx, 3
rep movsb
lea eax, [rbx]
and eax, 0x7f
{EXIT}
"""
AGAIN, NOP, INC_RBX, MOVSB = ORIGIN + 9, ORIGIN + 12, ORIGIN + 13, ORIGIN + 33


@pytest.fixture
def timeline(tmp_path: Path) -> Iterator[Timeline]:
    image = write_tiny(tmp_path, LOOP)

    def make() -> Target:
        return target_of(image, "")

    timeline = Timeline(make)
    yield timeline
    timeline.close()


def test_each_pass_through_the_middle_of_a_block_is_a_stop(timeline: Timeline) -> None:
    breaks = [AddressBreak(1, NOP), AddressBreak(2, INC_RBX)]
    for number in range(1, 40):
        for each in breaks:
            stop = timeline.go(breaks=breaks)
            assert (stop.kind, stop.number) == ("breakpoint", each.number)
            registers = timeline.call("view", "registers")
            assert (registers["rip"], registers["rax"], registers["rbx"]) == (each.address, number, number - 1)
    assert timeline.position.instructions == 3 + 38 * 4 + 2


def test_a_string_instruction_is_a_stop_each_time_round(timeline: Timeline) -> None:
    stops = [timeline.go(breaks=[AddressBreak(1, MOVSB)]) for _ in range(3)]
    assert [stop.kind for stop in stops] == ["breakpoint"] * 3
    assert timeline.call("view", "registers")["rcx"] == 1


def test_a_run_with_breakpoints_is_the_same_run(timeline: Timeline) -> None:
    end = timeline.go().position
    state = timeline.call("state_hash")
    timeline.back(10**9)
    breaks = [AddressBreak(1, AGAIN)]
    stops = 0
    while timeline.go(breaks=breaks).kind == "breakpoint":
        stops += 1
    assert stops == 1000
    assert (timeline.position, timeline.call("state_hash")) == (end, state)


def test_stepping_over_a_breakpoint_and_back_to_it(timeline: Timeline) -> None:
    breaks = [AddressBreak(1, INC_RBX)]
    timeline.go(breaks=breaks)
    here = timeline.position
    timeline.go(until=here.instructions + 1)
    assert timeline.call("view", "registers")["rbx"] == 1
    stop = timeline.back_to_break(breaks)
    assert stop is not None
    assert stop.position == here
    assert timeline.call("view", "registers")["rip"] == INC_RBX
