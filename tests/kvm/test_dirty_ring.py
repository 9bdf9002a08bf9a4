"""The dirty ring: what is pushed, when a vCPU has to stop, and what may be enabled."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.addr import Gfn, Gpa
from shadowvm.errors import KvmError, ModelBug
from shadowvm.kvm.dirty import kvm_clear_dirty_log, kvm_get_dirty_log
from shadowvm.kvm.dirty_ring import (
    KVM_DIRTY_RING_RSVD_ENTRIES,
    KVM_REQ_DIRTY_RING_SOFT_FULL,
    KvmDirtyRing,
    kvm_enable_dirty_log_ring,
    push_dirty_gfn,
)
from shadowvm.kvm.exit import ExitReason
from shadowvm.machine import Machine
from tests.kvm.test_dirty import log_on
from tests.kvm.test_memory_region import EXTRA, SLOT, TOUCH, add, machine_for
from tests.tiny import EXIT


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return machine_for(tmp_path, f"{TOUCH}xor eax, eax\n{EXIT}")


@pytest.mark.parametrize(("size", "number"), [(0, 22), (2048, 22), (4097, 22), (12288, 22), (1 << 21, errno.E2BIG)])
def test_sizes_that_no_ring_has(machine: Machine, size: int, number: int) -> None:
    with pytest.raises(KvmError, match="dirty ring") as refused:
        kvm_enable_dirty_log_ring(machine.kvm, size)
    assert refused.value.errno == number
    assert machine.vcpu.dirty_ring is None


def test_rings_and_bitmaps_exclude_each_other(machine: Machine) -> None:
    hva = add(machine)
    log_on(machine, hva)
    with pytest.raises(KvmError, match="bitmap"):
        kvm_enable_dirty_log_ring(machine.kvm, 4096)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, 1 << 20, hva)
    kvm_enable_dirty_log_ring(machine.kvm, 4096)
    with pytest.raises(KvmError, match="one already"):
        kvm_enable_dirty_log_ring(machine.kvm, 4096)
    log_on(machine, hva)
    for ask in (
        lambda: kvm_get_dirty_log(machine.kvm, SLOT),
        lambda: kvm_clear_dirty_log(machine.kvm, SLOT, 0, 64, b""),
    ):
        with pytest.raises(KvmError, match="in the rings") as refused:
            ask()
        assert refused.value.errno == errno.ENXIO


def test_what_is_pushed_is_there_in_order_and_the_reserve_is_kept(machine: Machine) -> None:
    kvm_enable_dirty_log_ring(machine.kvm, 4096)
    vcpu = machine.vcpu
    ring = vcpu.dirty_ring
    assert isinstance(ring, KvmDirtyRing)
    for page in range(ring.size):
        assert bool(vcpu.requests & KVM_REQ_DIRTY_RING_SOFT_FULL) == (page >= ring.size - KVM_DIRTY_RING_RSVD_ENTRIES)
        push_dirty_gfn(vcpu, 5, page)
    assert [(entry.slot, entry.offset, entry.flags) for entry in ring.dirty_gfns] == [(5, n, 1) for n in range(256)]
    with pytest.raises(ModelBug, match="overflows"):
        push_dirty_gfn(vcpu, 5, 0)


def test_a_vcpu_whose_ring_is_full_stops_before_it_stores_more(machine: Machine) -> None:
    kvm_enable_dirty_log_ring(machine.kvm, 4096)
    hva = add(machine)
    log_on(machine, hva)
    vcpu = machine.vcpu
    runs = []
    seen: list[tuple[int, ...]] = []
    machine.sched.spawn("vcpu", lambda: runs.extend((vcpu.run(), vcpu.run())))
    with events.attached(
        lambda tracepoint, args: seen.append(args), (events.kvm_dirty_ring_push, events.kvm_dirty_ring_exit)
    ):
        machine.sched.run()
    assert [run.exit_reason for run in runs] == [ExitReason.DIRTY_RING_FULL] * 2
    pushed = [args for args in seen if len(args) == 5]
    assert [args[4] for args in pushed] == list(range(256 - KVM_DIRTY_RING_RSVD_ENTRIES))
    assert seen[-2:] == [(0,), (0,)]
    slot = machine.kvm.id_to_memslot(SLOT)
    assert slot is not None
    assert slot.dirty_bitmap == set(map(Gfn, range(EXTRA >> 12, (EXTRA >> 12) + 192)))
    assert machine.read_guest(Gpa(EXTRA + 192 * 4096), 4) == bytes(4)
