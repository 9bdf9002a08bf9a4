"""The table of gfns."""

from __future__ import annotations

from collections.abc import Callable

from shadowvm.report.analysis import Analysis, Options
from tests.report.traces import LEAF, PRESENT, SWAPPED, VCPU, E, fault, pte, spte

Make = Callable[..., Analysis]


def life(now: int, until: int, gfn: int, sptep: int) -> list[E]:
    value = gfn << 12 | LEAF
    named = E(now, VCPU, "kvm_mmu_set_spte", (gfn, value, sptep, 1))
    return [spte(now, sptep, 0, value), named, spte(until, sptep, value, 0)]


def test_the_hottest_come_first_with_what_happened_to_them(analysis_of: Make) -> None:
    events = [
        *fault(0, 7, E(0, VCPU, "handle_mm_fault", (0, 0)), E(0, VCPU, "swap_readpage", (0, 0))),
        pte(0, 7, SWAPPED, PRESENT),
        *fault(1, 7),
        *life(2, 5, 7, 0x8000),
        pte(5, 7, PRESENT, SWAPPED),
        *fault(6, 9),
        *sorted([*life(6, 8, 8, 0x8008), *life(7, 9, 8, 0x8010)], key=lambda event: event.now),
        E(9, VCPU, "kvm_entry", (0, 0)),
    ]
    found = analysis_of(events).hottest
    assert [each.gfn for each in found] == [7, 9, 8]
    assert found[0] == (7, 2, 2, 1, 0, 1, 1, 1, 1, 0.3)
    assert found[2] == (8, 0, 0, 0, 0, 0, 0, 2, 2, 0.3)


def test_nothing_happened_nothing_is_hot(analysis_of: Make) -> None:
    assert analysis_of([]).hottest == []
    assert [
        each.gfn for each in analysis_of([*fault(0, 7), *fault(1, 9)], Options(address_range=(0x8000, 0xA000))).hottest
    ] == [9]
