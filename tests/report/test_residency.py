"""The heat map's cells, small enough to count."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shadowvm.report.analysis import Analysis, Options
from tests.report.traces import EXIT, HUGE, LEAF, PRESENT, SWAPPED, VCPU, E, fault, pte, spte

Make = Callable[..., Analysis]
END = E(7, VCPU, "kvm_entry", (0, 0))
FOUR = Options((4, 160))


def set_spte(now: int, gfn: int, sptep: int, bits: int = LEAF, level: int = 1) -> list[E]:
    value = gfn << 12 | bits
    return [spte(now, sptep, 0, value), E(now, VCPU, "kvm_mmu_set_spte", (gfn, value, sptep, level))]


def test_a_cell_has_the_share_of_its_time(analysis_of: Make) -> None:
    """Eight ns in four bins: gfn 5 is backed from 1, mapped from 2 to 5, in swap from 6."""
    start = E(0, VCPU, "kvm_entry", (0, 0))
    events = [start, pte(1, 5, 0, PRESENT), *set_spte(2, 5, 0x8000), spte(5, 0x8000, 5 << 12 | LEAF, 0)]
    events += [pte(6, 5, PRESENT, SWAPPED), END]
    found = analysis_of(events, FOUR).residency
    assert found.rows.gfns.tolist() == [5]
    assert found.backed.tolist() == [[0.5, 1, 1, 0]]
    assert found.mapped.tolist() == [[0, 1, 0.5, 0]]
    assert found.swapped.tolist() == [[0, 0, 0, 1]]
    assert analysis_of(events, FOUR).zap_cells.tolist() == [[0, 0, 1, 0]]


def test_what_was_there_before_the_trace_is_there_from_the_start(analysis_of: Make) -> None:
    events = [E(0, VCPU, "kvm_entry", (0, 0)), *set_spte(4, 5, 0x8000), END, pte(7, 5, PRESENT, 0, task=EXIT)]
    found = analysis_of(events, FOUR).residency
    assert found.backed.tolist() == [[1, 1, 1, 1]]
    assert found.mapped.tolist() == [[0, 0, 1, 1]]
    unknown = analysis_of(events[:-1], FOUR, cut=True).residency
    assert unknown.backed.tolist() == [[0, 0, 1, 1]], "an spte needs a frame"


def test_two_sptes_of_one_page_count_once(analysis_of: Make) -> None:
    events = [pte(0, 5, 0, PRESENT), *set_spte(0, 5, 0x8000), *set_spte(2, 5, 0x9000)]
    events += [spte(4, 0x8000, 5 << 12 | LEAF, 0), spte(6, 0x9000, 5 << 12 | LEAF, 0), END]
    assert analysis_of(events, FOUR).residency.mapped.tolist() == [[1, 1, 1, 0]]


def test_a_large_leaf_maps_512_pages(analysis_of: Make) -> None:
    events = [E(0, VCPU, "kvm_entry", (0, 0)), *set_spte(2, 512, 0x8000, HUGE, 2)]
    events += [spte(4, 0x8000, 512 << 12 | HUGE, 0), pte(4, 3, 0, PRESENT), END]
    found = analysis_of(events, Options((4, 3))).residency
    assert found.rows.sizes.tolist() == [171, 171, 171]
    assert found.mapped.tolist() == [[0, 170, 0, 0], [0, 171, 0, 0], [0, 171, 0, 0]]


def test_rows_are_of_touched_gfns_only(analysis_of: Make) -> None:
    events = [pte(0, gfn, 0, PRESENT) for gfn in (0, 1, 2, 3, 0xF00, 0xF01)]
    rows = analysis_of(events, Options((4, 3))).residency.rows
    assert [rows.span(each) for each in range(rows.number)] == [(0, 1), (2, 3), (0xF00, 0xF01)]
    assert rows.row_of(np.array([3, 4, 0xF01, 1 << 40, -1])).tolist() == [1, -1, 2, -1, -1]
    part = analysis_of(events, Options((4, 160), address_range=(0x2000, 0xF01000))).residency.rows
    assert part.gfns.tolist() == [2, 3, 0xF00]


def test_a_window_of_time_keeps_what_came_before_it(analysis_of: Make) -> None:
    events = [pte(0, 5, 0, PRESENT), *fault(3, 5), *fault(5, 5), *fault(6, 5), END]
    found = analysis_of(events, Options((2, 160), time_range=(4, 6)))
    assert found.residency.backed.tolist() == [[1, 1]]
    assert found.fault_cells.tolist() == [[0, 1]]
    assert found.faults.now.tolist() == [5]
    assert not len(found.lives.born)
