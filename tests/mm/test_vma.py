from __future__ import annotations

import pytest

from shadowvm.errors import ModelBug
from shadowvm.mm.vma import VM_READ, VM_WRITE, Vma, find_vma, isolate_vmas, merge_vmas, unmapped_area

RW = VM_READ | VM_WRITE


def layout(mm):
    return [(vma.start, vma.end, vma.flags) for vma in mm.vmas.areas]


def test_lookup_knows_the_bounds(mm):
    low, high = Vma(0x2000, 0x4000, RW), Vma(0x6000, 0x7000, RW)
    mm.vmas.insert(high)
    mm.vmas.insert(low)
    expected = {0x1FFF: None, 0x2000: low, 0x3FFF: low, 0x4000: None, 0x5FFF: None, 0x6000: high, 0x7000: None}
    for address, vma in expected.items():
        assert find_vma(mm, address) is vma
    for address, vma in reversed(expected.items()):
        assert find_vma(mm, address) is vma


def test_a_removed_area_is_not_found_again(mm):
    vma = Vma(0x2000, 0x4000, RW)
    mm.vmas.insert(vma)
    assert find_vma(mm, 0x2000) is vma
    mm.vmas.remove(vma)
    assert find_vma(mm, 0x2000) is None


@pytest.mark.parametrize(
    "bounds", [(0x1000, 0x2001), (0x3FFF, 0x5000), (0x2000, 0x4000), (0x2800, 0x2900), (0, 0x9000)]
)
def test_areas_never_overlap(mm, bounds):
    mm.vmas.insert(Vma(0x2000, 0x4000, RW))
    with pytest.raises(ModelBug, match="overlaps"):
        mm.vmas.insert(Vma(*bounds, RW))


def test_cutting_out_the_middle_makes_three_areas_of_one_family(mm):
    family = object()
    mm.vmas.insert(Vma(0x1000, 0x9000, RW, family))
    (middle,) = isolate_vmas(mm, 0x3000, 0x5000)
    assert (middle.start, middle.end, middle.pgoff) == (0x3000, 0x5000, 3)
    assert layout(mm) == [(0x1000, 0x3000, RW), (0x3000, 0x5000, RW), (0x5000, 0x9000, RW)]
    assert all(vma.anon_vma is family for vma in mm.vmas.areas)
    merge_vmas(mm, 0x3000, 0x5000)
    assert layout(mm) == [(0x1000, 0x9000, RW)]
    assert mm.vmas.areas[0].pgoff == 1


def test_only_like_neighbours_merge(mm):
    for vma in (
        Vma(0x1000, 0x2000, RW),
        Vma(0x2000, 0x3000, VM_READ),
        Vma(0x4000, 0x5000, VM_READ),
        Vma(0x5000, 0x6000, VM_READ, object()),
        Vma(0x6000, 0x7000, VM_READ, object()),
    ):
        mm.vmas.insert(vma)
    merge_vmas(mm, 0x1000, 0x7000)
    assert [bounds[:2] for bounds in layout(mm)] == [
        (0x1000, 0x2000),
        (0x2000, 0x3000),
        (0x4000, 0x6000),
        (0x6000, 0x7000),
    ]


def test_free_space_is_found_from_below(mm):
    mm.vmas.insert(Vma(0x10000, 0x13000, RW))
    mm.vmas.insert(Vma(0x18000, 0x19000, RW))
    assert unmapped_area(mm, 0x4000, 0x10000, 0x4000) == 0x14000
    assert unmapped_area(mm, 0x5000, 0x10000, 0x1000) == 0x13000
    assert unmapped_area(mm, 0x6000, 0x10000, 0x1000) == 0x19000
