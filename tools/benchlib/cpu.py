"""Guest code with plenty of memory, against bare Unicorn doing the same: compute, TLB misses, CR3 switches, #PF.

Each repetition runs the bench guest once on bare Unicorn, once here without and once with counting of instructions,
on a new engine every time, since the place of translated code alone makes a difference. Rounds take some 10 ms, and
the best one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import find_image
from shadowvm.machine import Machine

from .marks import MARK_PORT, WITHOUT_EVENTS, Marks
from .table import Row

BARE_EXITS = 2000
ROUNDS, QUICK_ROUNDS = 16, 3
BARE, PLAIN, COUNTED = "bare", "plain", "counted"


class Loop(NamedTuple):
    """One loop of the guest. goal: of the engine that does not count; counted_goal: of the one that does."""

    name: str
    letter: str
    parameter: str
    full_count: int
    quick_count: int
    per_count: int
    unit: str
    goal: float | None
    counted_goal: float | None = None


LOOPS = (
    Loop("mixed", "m", "mixed", 500_000, 50_000, 1, "ns/step", 1.1, 1.4),
    Loop("copy", "c", "copy", 24, 4, 32 * 1024, "ns/word", 1.1),
    Loop("touch", "t", "touch", 4, 1, 0, "ns/page", 1.25),
    Loop("chase", "r", "chase", 65_536, 4096, 1, "ns/page", 1.25),
    Loop("cr3", "s", "switches", 1500, 200, 1, "ns/switch", 1.25),
    Loop("user-pf", "f", "faults", 1000, 200, 1, "ns/fault", 6),
)
NAMES = tuple(name for loop in LOOPS for name in (loop.name, f"{loop.name}-icount"))


def _append(loops: list[Loop], size: int, quick: bool, *, bare: bool) -> str:
    """The guest's command line; bare Unicorn delivers no exceptions, so it takes no faults."""
    chosen = {loop.parameter: loop.quick_count if quick else loop.full_count for loop in loops}
    if bare:
        chosen["faults"] = 0
    counts = [f"{loop.parameter}={chosen.get(loop.parameter, 0)}" for loop in LOOPS]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    return " ".join([f"size={size}", f"rounds={rounds}", *counts, WITHOUT_EVENTS])


def _run_bare(memory: int, append: str, marks: Marks, exits: list[float]) -> None:
    from .bare import BareMachine  # noqa: PLC0415  numba takes a second to load

    machine = BareMachine(find_image("bench")[1], memory, append, marks)
    machine.run()
    exits += [machine.time_exits(BARE_EXITS) for _ in range(QUICK_ROUNDS)]
    machine.close()


def _run_shadow(memory: int, append: str, marks: Marks, *, icount: bool) -> None:
    name, image = find_image("bench")
    config = MachineConfig(image, name, memory=memory, host_memory=2 * memory, append=append, icount=icount)
    machine = Machine(config, lambda byte: None)
    machine.bus.register(marks, MARK_PORT, 1)
    outcome = machine.run()
    machine.close()
    assert outcome.status == 0, outcome


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The rows among `names`."""
    loops = [loop for loop in LOOPS if {loop.name, f"{loop.name}-icount"} & names]
    if not loops:
        return
    memory, size = (24 * MIB, 8 * MIB) if quick else (96 * MIB, 64 * MIB)
    marks = {side: Marks() for side in (BARE, PLAIN, COUNTED)}
    exits: list[float] = []
    for _ in range(repeat):
        bare = _append(loops, size, quick, bare=True)
        _run_bare(memory, bare, marks[BARE], exits)
        append = _append(loops, size, quick, bare=False)
        _run_shadow(memory, append, marks[PLAIN], icount=False)
        _run_shadow(memory, append, marks[COUNTED], icount=True)
    for loop in loops:
        times = (loop.quick_count if quick else loop.full_count) * (loop.per_count or size // 4096)
        base = min(exits) if loop.letter == "f" else marks[BARE].best(loop.letter) / times
        against = "bare exit" if loop.letter == "f" else "bare Unicorn"
        for side, name, goal in ((PLAIN, loop.name, loop.goal), (COUNTED, f"{loop.name}-icount", loop.counted_goal)):
            if name in names:
                value = marks[side].best(loop.letter) / times
                yield Row(name, against, loop.unit, base * 1e9, value * 1e9, goal)
