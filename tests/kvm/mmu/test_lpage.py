"""Reasons against large sptes, by block of 2 MiB."""

from __future__ import annotations

import pytest

from shadowvm.addr import Gfn, Hva
from shadowvm.errors import ModelBug
from shadowvm.kvm.memslot import MemSlot
from shadowvm.kvm.mmu.lpage import is_lpage_disallowed, kvm_mmu_gfn_allow_lpage, kvm_mmu_gfn_disallow_lpage

HVA = Hva(0x7F00_0000_0000)


def disallowed(slot: MemSlot) -> list[int]:
    """The blocks of a slot where no large spte may be."""
    blocks = range(slot.base_gfn >> 9, (slot.end_gfn - 1 >> 9) + 1)
    return [block for block in blocks if is_lpage_disallowed(slot, Gfn(max(slot.base_gfn, block << 9)))]


@pytest.mark.parametrize(
    ("base", "npages", "blocks"),
    [
        (0, 1536, []),
        (1, 1535, [0]),
        (0, 1537, [3]),
        (5, 1536, [0, 3]),
        (512, 512, []),
        (513, 510, [1]),
        (513, 511, [1]),
    ],
)
def test_ragged_ends_of_a_slot(base: int, npages: int, blocks: list[int]) -> None:
    assert disallowed(MemSlot(0, Gfn(base), npages, Hva(HVA + (base << 12)))) == blocks


def test_gfns_and_hvas_out_of_step() -> None:
    assert disallowed(MemSlot(0, Gfn(0), 1024, Hva(HVA + 4096))) == [0, 1]


def test_outside_of_the_slot_there_is_nothing_to_read() -> None:
    for gfn in (511, 1024):
        with pytest.raises(ModelBug, match="outside"):
            is_lpage_disallowed(MemSlot(0, Gfn(512), 512, Hva(HVA + (512 << 12))), Gfn(gfn))


def test_every_reason_counts() -> None:
    slot = MemSlot(0, Gfn(3), 1024, Hva(HVA + (3 << 12)))
    for gfn in (600, 600, 700):
        kvm_mmu_gfn_disallow_lpage(slot, Gfn(gfn))
    assert slot.disallow_lpage == {0: 1, 1: 3, 2: 1}
    for gfn in (600, 700, 600):
        assert disallowed(slot) == [0, 1, 2]
        kvm_mmu_gfn_allow_lpage(slot, Gfn(gfn))
    assert disallowed(slot) == [0, 2]
    with pytest.raises(ModelBug, match="below 0"):
        kvm_mmu_gfn_allow_lpage(slot, Gfn(600))
