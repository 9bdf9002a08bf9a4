"""What a fault came to, and what it took."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowvm.report.faults import KINDS, find_faults
from shadowvm.report.timeline import Timeline
from tests.report.traces import KSWAPD, LEAF, VCPU, E, fault, spte

Make = Callable[..., Timeline]
SET = E(0, VCPU, "kvm_mmu_set_spte", (5, 0x1E63, 0x8000, 1))
MM = E(0, VCPU, "handle_mm_fault", (0, 1))
READ = E(0, VCPU, "swap_readpage", (1, 7))


@pytest.mark.parametrize(
    ("between", "kind"),
    [
        ([MM, READ, SET], "major"),
        ([MM, SET], "minor"),
        ([SET], "spte only"),
        ([], "spurious, retried"),
        ([E(0, VCPU, "fast_page_fault", (0, 0, 3, 0, 0, 0, 5))], "fast_page_fault"),
        ([E(0, VCPU, "fast_page_fault", (0, 0, 3, 0, 0, 0, 6))], "spurious, retried"),
        ([MM, E(0, VCPU, "kvm_emulate_insn", (0, "mov", 0))], "emulated"),
        ([E(0, VCPU, "vcpu_match_mmio", (0, 0, 1, 0)), E(0, VCPU, "kvm_emulate_insn", (0, "mov", 0))], "mmio"),
        ([E(0, VCPU, "kvm_inj_exception", (14, 2, 0))], "guest #PF"),
        ([E(0, VCPU, "kvm_inj_exception", (13, 2, 0))], "spurious, retried"),
        ([E(0, VCPU, "kvm_try_async_get_page", (0, 5)), E(0, VCPU, "kvm_inj_exception", (14, 0, 0))], "async_pf"),
        ([E(0, KSWAPD, "swap_readpage", (1, 7)), SET], "spte only"),
    ],
)
def test_the_kind_is_told_by_what_its_task_does(between: list[E], kind: str, timeline_of: Make) -> None:
    after = [E(9, VCPU, "handle_mm_fault", (0, 0)), E(9, VCPU, "swap_readpage", (1, 7))]
    found = find_faults(timeline_of([*fault(0, 5, *between), *after]))
    assert [KINDS[each].name for each in found.kind] == [kind]
    assert found.gfn.tolist() == [5]


def test_a_present_spte_is_upgraded(timeline_of: Make) -> None:
    steps = fault(0, 5, SET)
    steps[0] = steps[0]._replace(args=(0, 0, 0x5000, 3))
    steps += [E(1, VCPU, "kvm_page_fault", (0, 0, 0x5000, 1)), SET, E(1, VCPU, "kvm_entry", (0, 0))]
    found = find_faults(timeline_of(steps))
    assert [KINDS[each].name for each in found.kind] == ["spte upgrade", "spte upgrade"]
    assert found.write.tolist() == [True, False]


def test_latency_is_events_points_and_instructions_until_the_entry(timeline_of: Make) -> None:
    other = E(40, "CPU 1/KVM", "handle_mm_fault", (0, 0))
    events = [
        *fault(10, 5, MM._replace(now=10), other, SET._replace(now=40))[:-1],
        E(45, VCPU, "kvm_entry", (0, 0)),
        *fault(50, 6, spte(50, 0x8000, 0, LEAF))[:-1],
    ]
    found = find_faults(timeline_of(events))
    assert found.events.tolist() == [3, -1]
    assert found.points.tolist() == [2, -1]
    assert found.instructions.tolist() == [35, -1]


def test_a_fault_ends_at_the_next_one_of_its_task(timeline_of: Make) -> None:
    found = find_faults(timeline_of([*fault(0, 5)[:-1], *fault(1, 6, MM, SET)]))
    assert found.events.tolist() == [-1, 3]
    assert [KINDS[each].name for each in found.kind] == ["spurious, retried", "minor"]


def test_with_tdp_the_address_tells_the_gfn(timeline_of: Make) -> None:
    events = [E(0, VCPU, "kvm_page_fault", (0, 0, 0xFEE00000, 2)), E(0, VCPU, "kvm_entry", (0, 0))]
    assert find_faults(timeline_of(events, mmu="tdp")).gfn.tolist() == [0xFEE00]
    assert find_faults(timeline_of(events)).gfn.tolist() == [-1]


def test_two_vcpus_fault_at_once(timeline_of: Make) -> None:
    one, two = fault(0, 5, MM), fault(0, 6, READ._replace(task="CPU 1/KVM"), task="CPU 1/KVM", vcpu=1)
    mixed = [step for pair in zip(one, two, strict=True) for step in pair]
    found = find_faults(timeline_of(mixed))
    assert found.vcpu.tolist() == [0, 1]
    assert found.gfn.tolist() == [5, 6]
    assert [KINDS[each].name for each in found.kind] == ["minor", "major"]
