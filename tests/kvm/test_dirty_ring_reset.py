"""Harvest and reset: what was harvested is protected again before the reset returns, in the right slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.addr import Gfn
from shadowvm.errors import KvmError
from shadowvm.kvm import dirty_ring_reset
from shadowvm.kvm.dirty_ring import kvm_enable_dirty_log_ring, push_dirty_gfn
from shadowvm.kvm.dirty_ring_reset import dirty_ring_entries, reset_dirty_rings
from shadowvm.machine import Machine
from tests.kvm.test_dirty import ITERATE, ROUNDS, expected, follow_rounds, log_on
from tests.kvm.test_memory_region import EXTRA, SLOT, add, machine_for, run_with
from tests.tiny import EXIT


@pytest.mark.parametrize("host_memory", [64 << 20, 2 << 20])
def test_each_harvest_has_the_pages_of_its_round(host_memory: int, tmp_path: Path) -> None:
    machine = machine_for(tmp_path, ITERATE, host_memory=host_memory)
    kvm_enable_dirty_log_ring(machine.kvm, 8192)
    hva = add(machine)
    found: list[set[int]] = []

    def take() -> set[int]:
        entries = dirty_ring_entries(machine.vcpu)
        assert dirty_ring_entries(machine.vcpu) == []
        assert reset_dirty_rings(machine.kvm) == len(entries)
        return {entry.offset for entry in entries if entry.slot == SLOT}

    def vmm() -> None:
        log_on(machine, hva)
        found.extend(follow_rounds(machine, take))

    assert run_with(machine, vmm) == 0
    assert found == [expected(number) for number in range(1, ROUNDS + 1)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = machine_for(tmp_path, EXIT)
    kvm_enable_dirty_log_ring(machine.kvm, 4096)
    log_on(machine, add(machine))
    return machine


@pytest.mark.parametrize(
    ("pages", "batches"),
    [
        ([7], [(7, 1)]),
        (range(130), [(0, (1 << 64) - 1), (64, (1 << 64) - 1), (128, 3)]),
        ([10, 9, 11, 8], [(8, 15)]),
        ([0, 63, 64], [(0, 1 << 63 | 1), (64, 1)]),
        ([63, 0], [(0, 1 << 63 | 1)]),
        ([64, 0], [(64, 1), (0, 1)]),
        ([100, 150, 90], [(90, 1 | 1 << 10 | 1 << 60)]),
        ([100, 163, 90], [(100, 1 | 1 << 63), (90, 1)]),
    ],
)
def test_neighbours_are_reset_together(
    machine: Machine, pages: list[int], batches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 64 pages at a time, forwards and backwards."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        dirty_ring_reset, "_kvm_reset_dirty_gfn", lambda kvm, slot, at, mask, out: seen.append((at, mask))
    )
    for page in pages:
        push_dirty_gfn(machine.vcpu, SLOT, page)
    dirty_ring_entries(machine.vcpu)
    assert reset_dirty_rings(machine.kvm) == len(pages)
    assert seen == batches


def test_only_what_was_harvested_is_reset(machine: Machine) -> None:
    slot = machine.kvm.id_to_memslot(SLOT)
    assert slot is not None
    assert slot.dirty_bitmap is not None
    for page in (1, 2):
        slot.dirty_bitmap.add(Gfn(slot.base_gfn + page))
    assert reset_dirty_rings(machine.kvm) == 0
    dirty_ring_entries(machine.vcpu)
    slot.dirty_bitmap.add(Gfn(slot.base_gfn + 3))
    with events.attached(lambda tracepoint, args: traced.append(args), (events.kvm_dirty_ring_reset,)):
        traced: list[tuple[int, ...]] = []
        assert reset_dirty_rings(machine.kvm) == 2
    assert traced == [(0, 3, 2)]
    assert slot.dirty_bitmap == {slot.base_gfn + 3}


def test_entries_of_a_slot_that_has_gone_are_dropped(machine: Machine) -> None:
    for page in (1, 200):
        push_dirty_gfn(machine.vcpu, SLOT, page)
    dirty_ring_entries(machine.vcpu)
    slot = machine.kvm.id_to_memslot(SLOT)
    assert slot is not None
    machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, slot.userspace_addr)  # type: ignore[arg-type]
    assert reset_dirty_rings(machine.kvm) == 2


def test_without_rings_there_is_nothing_to_harvest(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, EXIT)
    with pytest.raises(KvmError, match="not enabled"):
        dirty_ring_entries(machine.vcpu)
    with pytest.raises(KvmError, match="not enabled"):
        reset_dirty_rings(machine.kvm)
    machine.close()
