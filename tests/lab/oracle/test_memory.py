"""Words and what they were: what is remembered, until when, and what a store from outside leaves behind."""

from __future__ import annotations

from shadowvm.lab.oracle.layout import HIGH, IN_SMM, LOW, MOVING, MOVING_BASES, SMM_BASE, SMM_OFFSET
from shadowvm.lab.oracle.memory import FOREVER, Memory

USED, UNUSED, ABSENT = 0x5021, 0x5001, 0x5020
AT = 3 << 9 | 7


def test_only_what_a_tlb_can_hold_is_remembered() -> None:
    for old, remembered in ((USED, [(USED, 9)]), (UNUSED, []), (ABSENT, []), (USED << 32, [(USED << 32, 9)])):
        memory = Memory()
        memory.words[AT] = old
        memory.set_word(AT, 0, 9)
        assert memory.history.get(AT, []) == remembered


def test_a_value_that_was_overwritten_from_outside_lasts_until_the_guest_changes_the_word() -> None:
    memory = Memory()
    memory.words[AT] = USED
    memory.set_outside(AT, 0)
    assert memory.history[AT] == [(USED, FOREVER)]
    memory.set_word(AT, 0, 5)
    assert memory.history[AT] == [(USED, FOREVER)]
    memory.set_word(AT, UNUSED, 6)
    assert memory.history[AT] == [(USED, 6)]


def test_a_mark_leaves_what_may_be_cached_from_outside() -> None:
    memory = Memory()
    memory.words[AT] = USED
    memory.set_outside(AT, 0x6001)
    memory.mark_word(AT, 0x20, 5)
    assert memory.words[AT] == 0x6021
    assert memory.history[AT] == [(USED, FOREVER)]


def test_what_is_older_than_every_flush_is_forgotten_in_time() -> None:
    memory = Memory()
    for now in range(1, 40):
        memory.horizon = now - 3
        memory.set_word(AT, USED | now << 12, now)
    assert len(memory.history[AT]) < 16


def test_stores_to_logged_slots_are_dirty() -> None:
    memory = Memory()
    memory.logged.add(HIGH)
    memory.set_word(AT, 1, 1)
    memory.set_word(HIGH << 25 | AT, 1, 1)
    memory.set_outside(HIGH << 25 | 5 << 9, 1)
    memory.set_word(HIGH << 25 | 6 << 9, 1, 1, True)
    assert memory.dirty == {HIGH: {HIGH << 16 | 3}}
    memory.logged.add(IN_SMM | LOW)
    memory.set_word(AT + 512, 1, 1, True)
    memory.set_word(AT, 2, 1)
    assert memory.dirty == {HIGH: {HIGH << 16 | 3}, IN_SMM | LOW: {4}}


def test_what_changes_is_noted_on_demand() -> None:
    memory = Memory()
    memory.set_word(AT, 1, 1)
    memory.journal = {}
    memory.set_word(AT, 2, 2)
    memory.mark_word(AT, 4, 3)
    assert memory.journal == {AT: [1, 2]}


def test_an_entry_in_rom_is_remembered_without_a_mark() -> None:
    memory = Memory()
    place = MOVING << 25
    memory.words[place] = UNUSED
    memory.rom = True
    memory.set_outside(place, 0)
    assert memory.history[place] == [(UNUSED, FOREVER)]


def test_frames_of_slots() -> None:
    memory = Memory()
    assert [memory.find(gfn) for gfn in (5, 0x205, 0x403, 0x408)] == [5, HIGH << 16 | 5, MOVING << 16 | 3, -1]
    memory.bases[MOVING] = MOVING_BASES[1]
    assert [memory.find(gfn) for gfn in (0x400, 0x481)] == [-1, MOVING << 16 | 1]
    del memory.bases[MOVING]
    assert memory.find(0x481) == -1
    assert [memory.find(SMM_BASE + n, True) for n in (SMM_OFFSET, 7, 8)] == [MOVING << 16 | 2, MOVING << 16 | 7, -1]


def test_a_page_that_is_thrown_away_is_zero() -> None:
    memory = Memory()
    memory.words.update({AT: USED, AT + 512: 7})
    memory.clear_page(LOW << 16 | 3)
    assert (memory.words[AT], memory.words[AT + 512]) == (0, 7)
    assert memory.history[AT] == [(USED, FOREVER)]


def test_a_store_to_one_32_bit_entry_tells_nothing_of_its_neighbour() -> None:
    memory = Memory()
    memory.words[AT] = USED << 32 | USED
    memory.set_outside(AT, 0)
    memory.set_word(AT, 0x7007 << 32, 6)
    assert memory.history[AT] == [(USED << 32 | USED, 6), (USED, FOREVER)]
