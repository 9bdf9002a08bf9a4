"""Events of the CPU against QEMU's TCG running the same image: interrupts, system calls, exits, page faults, CR3.

Both run the same image in turns, QEMU with more events in a round, since it is timed from outside. Here instructions
are counted, as is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from shadowvm.config import MIB, MachineConfig
from shadowvm.guests import find_image
from shadowvm.machine import Machine

from . import qemu
from .marks import MARK_PORT, Marks
from .table import Row

ROUNDS, QUICK_ROUNDS = 8, 3
AGAINST = "QEMU TCG"
MEMORY = 64 * MIB


class Event(NamedTuple):
    """One loop of a guest: the mark of its rounds, the parameter that holds how many events a round has.

    goal: the largest good ratio, or None. cpus: of the machine that it needs. qemu: how many times more events QEMU
    gets in a round, so that its rounds are long beside a tick of 4 ms, which is as fine as its CPU time may be told.
    """

    name: str
    letter: str
    parameter: str
    count: int
    goal: float | None = None
    guest: str = "bench"
    cpus: int = 1
    qemu: int = 5


EVENTS = (
    Event("self-ipi", "i", "ipis", 1000, qemu=50),
    Event("apic-timer", "a", "timers", 500),
    Event("syscall", "y", "syscalls", 100_000),
    Event("port-in", "p", "inputs", 4000, qemu=200),
    Event("cpuid", "x", "cpuids", 4000, qemu=500),
    Event("cr3-tcg", "s", "switches", 1500),
    Event("pf-tcg", "f", "faults", 3000, qemu=20),
    Event("ipi-pair", "w", "rounds", 500, guest="smp-ipi", cpus=2, qemu=50),
)
IPI_MARKS = 8
"""The guest smp-ipi marks so many parts of its round trips, each of two IPIs that wake a halted CPU."""
NAMES = tuple(event.name for event in EVENTS)
OTHER_LOOPS = ("mixed", "copy", "touch", "chase")
QUICK_SHARE = 20


def _append(events: list[Event], guest: str, rounds: int, count: Callable[[Event], int]) -> str:
    """The command line of one guest: what is not measured is left out."""
    if guest == "smp-ipi":
        return f"modes=0 ticks=0 restarts=0 rounds={IPI_MARKS * count(events[0])}"
    counts = [f"{e.parameter}={count(e) if e in events else 0}" for e in EVENTS if e.guest == guest]
    if guest == "bench":
        counts += [f"{parameter}=0" for parameter in OTHER_LOOPS]
    return " ".join([f"rounds={rounds}", *counts])


def _run_shadow(guest: str, append: str, cpus: int) -> dict[str, float]:
    name, image = find_image(guest)
    config = MachineConfig(image, name, memory=MEMORY, host_memory=2 * MEMORY, append=append, smp=cpus)
    machine = Machine(config, lambda byte: None)
    marks = Marks()
    machine.bus.register(marks, MARK_PORT, 1)
    outcome = machine.run()
    machine.close()
    assert outcome.status == 0, outcome
    return {letter: sum(rounds) / len(rounds) for letter, rounds in marks.rounds.items()}


def _best(times: list[dict[str, float]], event: Event, count: int) -> float:
    """Microseconds for one event in the fastest run."""
    return min(each[event.letter] for each in times) / count * 1e6 if times else float("nan")


def rows(names: set[str], repeat: int, quick: bool) -> Iterator[Row]:
    """The rows among `names`, one guest after the other."""
    for guest, cpus in dict.fromkeys((event.guest, event.cpus) for event in EVENTS):
        events = [e for e in EVENTS if e.name in names and (e.guest, e.cpus) == (guest, cpus)]
        if not events:
            continue
        rounds, share = (QUICK_ROUNDS, QUICK_SHARE) if quick else (ROUNDS, 1)
        append = _append(events, guest, rounds, lambda event, share=share: event.count // share)
        more = _append(events, guest, rounds, lambda event: event.count * event.qemu)
        ours, theirs = [], []
        for _ in range(repeat):
            if qemu.is_installed():
                theirs.append(qemu.time_loops(find_image(guest)[1], MEMORY, more, cpus))
            ours.append(_run_shadow(guest, append, cpus))
        for event in events:
            base = _best(theirs, event, event.count * event.qemu)
            value = _best(ours, event, event.count // share)
            yield Row(event.name, AGAINST, "us/event", base, value, event.goal if theirs else None)
