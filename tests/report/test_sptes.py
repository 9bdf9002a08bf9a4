"""Lives of leaf sptes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shadowvm.report.host import find_ptes, memory_slots
from shadowvm.report.notifiers import find_batches
from shadowvm.report.sptes import Lives, find_lives, zaps
from shadowvm.report.timeline import Timeline
from tests.report.traces import HUGE, KSWAPD, LEAF, LINK, PRESENT, VCPU, E, invalidation, pte, spte

Make = Callable[..., Timeline]


def lives_of(make: Make, events: Sequence[E]) -> Lives:
    timeline = make(events)
    return find_lives(timeline, find_batches(timeline, zaps(timeline)), find_ptes(timeline, memory_slots(timeline)))


def set_spte(now: int, gfn: int, sptep: int, bits: int = LEAF, level: int = 1) -> list[E]:
    value = gfn << 12 | bits
    return [spte(now, sptep, 0, value), E(now, VCPU, "kvm_mmu_set_spte", (gfn, value, sptep, level))]


def test_a_life_is_from_set_to_zap(timeline_of: Make) -> None:
    zap = spte(70, 0x8008, 6 << 12 | LEAF, 0, task=KSWAPD)
    events = [
        spte(1, 0x9000, 0, 8 << 12 | LINK),
        *set_spte(10, 5, 0x8000),
        *set_spte(20, 6, 0x8008),
        spte(30, 0x8008, 6 << 12 | LEAF, 6 << 12 | LEAF & ~2),
        *invalidation(70, 6, 1, zap),
        *set_spte(80, 7, 0x8008),
        spte(90, 0x9000, 8 << 12 | LINK, 0),
    ]
    found = lives_of(timeline_of, events)
    assert found.gfn.tolist() == [5, 6, 7]
    assert found.set.tolist() == [10, 20, 80]
    assert found.zapped.tolist() == [91, 70, 91]
    assert found.ended.tolist() == [False, True, False]
    assert found.by.tolist() == ["", "CLEAR", ""]
    assert found.level.tolist() == [1, 1, 1]


def test_a_large_leaf_is_of_level_2(timeline_of: Make) -> None:
    found = lives_of(timeline_of, set_spte(0, 512, 0x8000, HUGE, 2))
    assert (found.level.tolist(), found.gfn.tolist()) == ([2], [512])


def test_a_leaf_of_a_split_has_the_gfn_of_its_frame(timeline_of: Make) -> None:
    """Splitting a large leaf fills a table without kvm_mmu_set_spte."""
    events = [
        pte(0, 3, 0, 0x30 << 12 | PRESENT),
        pte(1, 3, 0x30 << 12 | PRESENT, 0),
        pte(2, 9, 0, 0x30 << 12 | PRESENT),
        spte(3, 0x8000, 0, 0x30 << 12 | LEAF),
        pte(4, 4, 0, 0x30 << 12 | PRESENT),
        spte(5, 0x8008, 0, 0x31 << 12 | LEAF),
    ]
    assert lives_of(timeline_of, events).gfn.tolist() == [9, -1]


def test_the_same_entry_names_another_gfn_in_its_next_life(timeline_of: Make) -> None:
    first = 5 << 12 | LEAF
    events = [*set_spte(0, 5, 0x8000), spte(1, 0x8000, first, 0), spte(2, 0x8000, 0, first)]
    events += [spte(3, 0x8000, first, 0), *set_spte(4, 6, 0x8000), spte(5, 0x8008, first, 0)]
    found = lives_of(timeline_of, events)
    assert found.gfn.tolist() == [5, -1, 6]
    assert found.ended.tolist() == [True, True, False]


def test_no_store_no_life(timeline_of: Make) -> None:
    assert not len(lives_of(timeline_of, []).born)
    assert not len(lives_of(timeline_of, [spte(0, 0x8000, 5 << 12 | LEAF, 0)]).born)
