from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Hva
from shadowvm.kvm.memslot import KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, MemSlot, MemSlots

BASE = 0x7F00_0000_0000


def slots(*ranges: tuple[int, int, int]) -> MemSlots:
    """Slots of (base gfn, pages, pages behind BASE)."""
    made = MemSlots()
    for number, (gfn, npages, offset) in enumerate(ranges):
        made.replace(None, MemSlot(number, Gfn(gfn), npages, Hva(BASE + (offset << PAGE_SHIFT))))
    return made


TWO = ((0, 100, 0), (0x1000, 50, 0x200))


def test_a_frame_is_found_in_its_slot() -> None:
    two = slots(*TWO)
    found = [two.find(Gfn(gfn)) for gfn in (0, 99, 100, 0xFFF, 0x1000, 0x1031, 0x1032)]
    assert [None if slot is None else slot.id for slot in found] == [0, 0, None, None, 1, 1, None]


def test_frames_follow_addresses() -> None:
    slot = slots(*TWO).find(Gfn(0x1003))
    assert slot is not None
    assert slot.vpn(Gfn(0x1003)) << PAGE_SHIFT == BASE + (0x203 << PAGE_SHIFT)


@given(st.integers(-10, 0x260), st.integers(1, 0x260), st.integers(0, PAGE_SIZE - 1), st.integers(0, PAGE_SIZE - 1))
def test_a_range_of_addresses_gives_the_frames_that_it_touches(first: int, npages: int, head: int, tail: int) -> None:
    two = slots(*TWO)
    start, end = BASE + (first << PAGE_SHIFT) + head, BASE + (first + npages << PAGE_SHIFT) + tail
    if start >= end:
        return
    found = {gfn for _, low, high in two.gfn_ranges(Hva(start), Hva(end)) for gfn in range(low, high)}
    touched = {
        gfn + page
        for gfn, count, offset in TWO
        for page in range(count)
        if start < BASE + (offset + page + 1 << PAGE_SHIFT) and BASE + (offset + page << PAGE_SHIFT) < end
    }
    assert found == touched


def test_a_slot_is_found_by_its_number_until_it_is_taken_out() -> None:
    two = slots(*TWO)
    slot = two.by_id(1)
    assert slot is not None
    two.replace(slot, None)
    assert (two.by_id(1), two.find(Gfn(0x1000))) == (None, None)
    assert two.by_id(0) is not None


def test_generations_of_two_address_spaces_are_never_the_same() -> None:
    first, second = MemSlots(0), MemSlots(1)
    seen = [set(), set()]
    for number in range(4):
        for slots_, generations in zip((first, second), seen, strict=True):
            generations.add(slots_.generation)
            slots_.replace(None, MemSlot(number, Gfn(number), 1, Hva(BASE)))
            assert slots_.generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
            slots_.generation = slots_.next_generation()
            assert not slots_.generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
    assert seen == [{0, 2, 4, 6}, {1, 3, 5, 7}]
