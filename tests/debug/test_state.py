"""The hash sees what the future depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shadowvm.addr import Gfn
from shadowvm.debug.state import state_hash
from shadowvm.debug.target import Target
from shadowvm.events import REGISTRY
from shadowvm.machine import Machine
from tests.debug.machines import target_of


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = target_of(smp=2, host_memory=2304 << 10, seed=3)
    target.go(until=700_000)
    yield target
    target.close()


def test_it_is_the_same_for_another_machine_that_came_there_in_other_steps(target: Target) -> None:
    listeners = [list(tracepoint.sinks) for tracepoint in REGISTRY.values()]
    other = target_of(smp=2, host_memory=2304 << 10, seed=3)
    for until in (1, 2, 3, 1000, 400_123, 700_000):
        other.go(until=until)
    assert other.position == target.position
    assert other.state_hash() == target.state_hash()
    other.close()
    assert [tracepoint.sinks for tracepoint in REGISTRY.values()] == listeners, "a closed one listens no more"


def _move_to_the_end(machine: Machine) -> None:
    pages = machine.host.lruvec.inactive
    pages.move_to_end(next(iter(pages)))


def _reference(machine: Machine) -> None:
    page = next(page for page in machine.host.zone.mem_map if page is not None and page.lru is not None)
    page.referenced = not page.referenced


def _write_to_a_frame(machine: Machine) -> None:
    machine.ram.b[-1] ^= 1


def _forget_an_rmap(machine: Machine) -> None:
    rmap = machine.kvm.memslots.slots[0].rmap
    rmap.pop(next(iter(rmap)))


def _write_track(machine: Machine) -> None:
    machine.kvm.memslots.slots[0].gfn_write_track[Gfn(5)] = 1


@pytest.mark.parametrize(
    "change",
    [
        _move_to_the_end,
        _reference,
        _write_to_a_frame,
        _forget_an_rmap,
        _write_track,
        lambda machine: setattr(machine.kvm, "mmu_invalidate_seq", machine.kvm.mmu_invalidate_seq + 1),
        lambda machine: setattr(machine.vcpus[1], "requests", machine.vcpus[1].requests ^ 1),
        lambda machine: machine.uart.__class__ and machine.pc.clock.at(1 << 50, print),
        lambda machine: machine.host.zone.free_list.reverse(),
    ],
)
def test_a_change_of_any_part_is_seen(target: Target, change: Callable[[Machine], object]) -> None:
    before = state_hash(target.machine, b"")
    assert state_hash(target.machine, b"x") != before
    assert state_hash(target.machine, b"") == before
    change(target.machine)
    assert state_hash(target.machine, b"") != before
