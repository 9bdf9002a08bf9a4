"""What the flat model allows, on tables of a few entries and with a machine that is a dictionary."""

from __future__ import annotations

import pytest

from shadowvm.lab.oracle.layout import (
    ACCESSED,
    DIRTY,
    IN_SMM,
    LOW,
    MOVING,
    MOVING_BASES,
    PRESENT,
    PT64,
    SMM_OFFSET,
    USER,
    WRITABLE,
    device_word,
)
from shadowvm.lab.oracle.model import EFAULT, FAULT, MMIO, OK, Mismatch, Model, Outcome, access_of
from shadowvm.lab.oracle.settle import attempts, settle

A, D, FULL = ACCESSED, DIRTY, PRESENT | WRITABLE | USER | ACCESSED | DIRTY
ROOT, UPPER, MIDDLE, TABLE, PAGE, OTHER, HOLE = 1, 2, 3, 4, 5, 6, 0x500
VA = 0x123
LEAF, DATA, OTHER_DATA = TABLE << 9, PAGE << 9 | VA >> 3, OTHER << 9 | VA >> 3


class Fake:
    """A model, and the words of a machine that a test changes as the CPU would."""

    def __init__(self, leaf: int = PAGE << 12 | FULL) -> None:
        self.machine: dict[int, int] = {}
        self.model = Model(1, lambda at: self.machine.get(at, 0))
        words = {ROOT << 9: UPPER << 12 | FULL, UPPER << 9: MIDDLE << 12 | FULL, MIDDLE << 9: TABLE << 12 | FULL}
        words |= {LEAF: leaf, DATA: 0x1100, OTHER_DATA: 0x2200}
        self.machine.update(words)
        self.model.memory.words.update(words)
        self.cpu = self.model.cpus[0]
        self.cpu.control.mode, self.cpu.control.cr3 = PT64, ROOT << 12

    def edit(self, at: int, value: int) -> None:
        """A store of the guest to a table."""
        self.model.now += 1
        self.machine[at] = value
        self.model.memory.set_word(at, value, self.model.now)

    def flush(self) -> None:
        self.model.now += 1
        self.cpu.flush(self.model.now)

    def settle(self, kind: str, outcome: Outcome, value: int = 0, cpl: int = 0) -> None:
        self.model.now += 1
        self.settle_at(VA & -int(kind[1]) if kind != "x" else VA, kind, outcome, value, cpl)

    def settle_at(self, va: int, kind: str, outcome: Outcome, value: int = 0, cpl: int = 0) -> None:
        self.model.forget()
        settle(self.model, attempts(self.cpu, va, kind, value, access_of(kind, cpl, False), outcome))

    def allows(self, kind: str, outcome: Outcome, value: int = 0, cpl: int = 0) -> bool:
        try:
            self.settle(kind, outcome, value, cpl)
        except Mismatch:
            return False
        return True


def loaded(value: int) -> Outcome:
    return Outcome(OK, value)


def fault(error: int, address: int = VA & -8) -> Outcome:
    return Outcome(FAULT, error=error, address=address)


def test_data_must_be_those_of_the_page() -> None:
    assert Fake().allows("r8", loaded(0x1100))
    assert not Fake().allows("r8", loaded(0x1101))
    assert not Fake().allows("r8", fault(0))


def test_a_fault_must_have_the_very_code_and_address() -> None:
    clean = PAGE << 12 | PRESENT | A
    assert Fake(clean).allows("w8", fault(7), cpl=3)
    assert not Fake(clean).allows("w8", fault(3), cpl=3)
    assert not Fake(clean).allows("w8", fault(7, 0), cpl=3)
    assert not Fake(clean).allows("w8", Outcome(OK), cpl=3)


def test_a_store_must_arrive_where_it_goes_and_nowhere_else() -> None:
    fake = Fake()
    fake.machine[DATA] = 77
    assert fake.allows("w8", Outcome(OK), 77)
    assert fake.model.memory.words[DATA] == 77
    assert not Fake().allows("w8", Outcome(OK), 77)


def test_an_old_translation_is_legal_until_the_flush() -> None:
    for flushed in (False, True):
        fake = Fake()
        fake.edit(LEAF, OTHER << 12 | FULL)
        if flushed:
            fake.flush()
        assert fake.allows("r8", loaded(0x2200))
        assert fake.allows("r8", loaded(0x1100)) is not flushed


def test_invlpg_is_a_flush_of_one_page() -> None:
    fake = Fake()
    fake.edit(LEAF, 0)
    fake.model.now += 1
    fake.cpu.flushed_pages[(VA >> 12) + 1] = fake.model.now
    assert fake.allows("r8", loaded(0x1100))
    fake.cpu.flushed_pages[VA >> 12] = fake.model.now
    assert not fake.allows("r8", loaded(0x1100))
    assert fake.allows("r8", fault(0))


def test_what_was_not_present_or_not_accessed_is_never_cached() -> None:
    for old in (0, PAGE << 12 | FULL & ~A, PAGE << 12 | FULL & ~PRESENT):
        fake = Fake(old)
        fake.edit(LEAF, OTHER << 12 | FULL)
        assert not fake.allows("r8", loaded(0x1100))
        assert not fake.allows("r8", fault(0))


def test_a_store_by_an_old_entry_needs_one_that_was_dirty() -> None:
    for old, legal in ((PAGE << 12 | FULL, True), (PAGE << 12 | FULL & ~D, False)):
        fake = Fake(old)
        fake.edit(LEAF, 0)
        fake.machine[DATA] = 5
        assert fake.allows("w8", Outcome(OK), 5) is legal


def test_a_must_be_set_by_an_access_and_d_by_a_store_only() -> None:
    for kind, after, legal in (
        ("r8", A, True),
        ("r8", 0, False),
        ("r8", A | D, False),
        ("w8", A, False),
        ("w8", A | D, True),
    ):
        bare = PAGE << 12 | PRESENT | WRITABLE
        fake = Fake(bare)
        fake.machine[LEAF] = bare | after
        fake.machine[DATA] = 9 if kind == "w8" else 0x1100
        assert fake.allows(kind, loaded(0x1100), 9) is legal, (kind, after)


def test_a_store_that_faults_sets_no_d() -> None:
    bare = PAGE << 12 | PRESENT | USER
    for after, legal in ((A, True), (A | D, False)):
        fake = Fake(bare)
        fake.machine[LEAF] = bare | after
        assert fake.allows("w8", fault(7), cpl=3) is legal


def test_a_walk_changes_nothing_else_of_an_entry() -> None:
    fake = Fake()
    fake.machine[UPPER << 9] |= 1 << 9
    with pytest.raises(Mismatch, match="has become"):
        fake.settle("r8", loaded(0x1100))


def test_a_table_that_is_its_own_page_is_loaded_with_or_without_its_mark() -> None:
    own = TABLE << 12 | PRESENT | WRITABLE
    for value in (own, own | A):
        fake = Fake(own)
        fake.machine[LEAF] = own | A
        fake.settle_at(0, "r8", loaded(value))


def test_where_no_memory_is_a_device_answers_and_code_cannot_run() -> None:
    fake = Fake(HOLE << 12 | FULL)
    gpa = HOLE << 12 | VA & -4
    assert fake.allows("r4", loaded(device_word(gpa, 4)))
    assert not fake.allows("r4", loaded(device_word(gpa + 4, 4)))
    assert fake.allows("w4", Outcome(OK, device={gpa: 3, gpa + 1: 0, gpa + 2: 0, gpa + 3: 0}), 3)
    assert not fake.allows("w4", Outcome(OK, device={gpa: 3, gpa + 1: 0, gpa + 2: 0}), 3)
    assert not fake.allows("w4", Outcome(OK), 3)
    assert fake.allows("x", Outcome(MMIO))
    assert not fake.allows("r8", Outcome(MMIO))


def test_what_crosses_a_page_is_of_two_pages() -> None:
    fake = Fake()
    edge = 0xFFE
    fake.machine |= {TABLE << 9 | 1: OTHER << 12 | FULL, PAGE << 9 | 511: 0xBBAA << 48, OTHER << 9: 0xDDCC}
    fake.model.memory.words |= fake.machine
    fake.settle_at(edge, "r4", loaded(0xDDCCBBAA))
    with pytest.raises(Mismatch):
        fake.settle_at(edge, "r4", loaded(0xDDCCBBAB))
    fake.machine |= {PAGE << 9 | 511: 0x2211 << 48, OTHER << 9: 0x4433}
    fake.settle_at(edge, "w4", Outcome(OK), 0x44332211)
    with pytest.raises(Mismatch):
        fake.settle_at(edge, "w4", Outcome(OK), 0x44332212)
    fake.edit(TABLE << 9 | 1, 0)
    fake.flush()
    fake.settle_at(edge, "r4", fault(0, 0x1000))
    with pytest.raises(Mismatch):
        fake.settle_at(edge, "r4", fault(0, edge))


def test_rom_is_loaded_from_and_a_device_gets_what_is_stored() -> None:
    rom_gfn = MOVING_BASES[0]
    fake = Fake(rom_gfn << 12 | FULL)
    fake.model.memory.rom = True
    page, gpa = MOVING << 16, rom_gfn << 12 | VA & -8
    fake.machine[page << 9 | VA >> 3] = fake.model.memory.words[page << 9 | VA >> 3] = 0x77
    got = {gpa + n: 3 if n == 0 else 0 for n in range(8)}
    assert fake.allows("r8", loaded(0x77))
    assert fake.allows("w8", Outcome(OK, device=got), 3)
    assert not fake.allows("w8", Outcome(OK), 3)
    fake.machine[page << 9 | VA >> 3] = 3
    assert not fake.allows("w8", Outcome(OK, device=got), 3)


def test_a_table_in_rom_is_not_marked() -> None:
    fake = Fake()
    table = MOVING << 16
    fake.machine |= {MIDDLE << 9: MOVING_BASES[0] << 12 | FULL, table << 9: PAGE << 12 | PRESENT}
    fake.model.memory.words |= fake.machine
    fake.model.memory.rom = True
    assert fake.allows("r8", loaded(0x1100))
    fake.model.memory.rom = False
    assert not fake.allows("r8", loaded(0x1100))


def test_system_management_mode_sees_other_memory() -> None:
    fake = Fake(MOVING_BASES[0] << 12 | FULL)
    outside, inside = (MOVING << 16) << 9 | VA >> 3, (MOVING << 16 | SMM_OFFSET) << 9 | VA >> 3
    fake.machine |= {outside: 1, inside: 2}
    fake.model.memory.words |= fake.machine
    assert fake.allows("r8", loaded(1))
    fake.cpu.smm = True
    assert fake.allows("r8", loaded(2))
    assert not fake.allows("r8", loaded(1))


def test_what_the_vmm_forbids_is_efault() -> None:
    fake = Fake()
    fake.model.memory.read_only.add(PAGE)
    assert fake.allows("w8", Outcome(EFAULT))
    assert not fake.allows("r8", Outcome(EFAULT))
    fake = Fake(PAGE << 12 | PRESENT)
    fake.model.memory.read_only.add(TABLE)
    assert fake.allows("r8", Outcome(EFAULT))
    fake = Fake()
    fake.model.memory.unmapped.add(TABLE)
    assert fake.allows("r8", Outcome(EFAULT))
    assert fake.allows("r8", loaded(0x1100))
    assert not fake.allows("r8", loaded(0x2200))


def test_a_table_outside_of_memory_is_a_fault_without_p() -> None:
    fake = Fake()
    fake.machine[MIDDLE << 9] = fake.model.memory.words[MIDDLE << 9] = HOLE << 12 | FULL
    assert fake.allows("r8", fault(0))


def test_xadd_loads_the_old_and_stores_the_sum() -> None:
    fake = Fake()
    fake.machine[DATA] = 0x1103
    assert fake.allows("a8", loaded(0x1100), 3)
    fake = Fake()
    fake.machine[DATA] = 0x1103
    assert not fake.allows("a8", loaded(0x1103), 3)


def test_what_is_not_aligned_is_in_two_words() -> None:
    fake = Fake()
    fake.machine[DATA + 1] = fake.model.memory.words[DATA + 1] = 0x8877
    va = (VA & -8) + 6
    fake.settle_at(va, "r4", loaded(0x88770000))
    fake.machine[DATA], fake.machine[DATA + 1] = 0xBBAA000000001100, 0xDDCC
    fake.settle_at(va, "w4", Outcome(OK), 0xDDCCBBAA)
    assert fake.model.memory.words[DATA + 1] == 0xDDCC
    with pytest.raises(Mismatch):
        fake.settle_at(va, "w4", Outcome(OK), 0xDDCCBBAB)


def test_while_an_access_goes_on_an_entry_may_be_what_it_was_before_another_store() -> None:
    fake = Fake(0)
    fake.edit(LEAF, PAGE << 12 | FULL)
    assert not fake.allows("r8", fault(0))
    fake.model.raced[LEAF] = [0]
    assert fake.allows("r8", fault(0))
    assert fake.allows("r8", loaded(0x1100))


def test_a_mark_amid_another_access_belongs_to_the_address_space_of_whoever_may_have_made_it() -> None:
    fake, neighbour = Fake(), LEAF + 1
    model = fake.model
    model.memory.logged |= {LOW, IN_SMM | LOW}
    model.memory.words[neighbour] = OTHER << 12 | PRESENT
    fake.machine[neighbour] = OTHER << 12 | PRESENT | A
    model.begun, model.begun_in_smm = {neighbour: A}, True
    fake.settle("r8", loaded(0x1100))
    assert model.memory.dirty == {IN_SMM | LOW: {TABLE}}


def test_a_mark_that_either_may_have_made_is_in_no_log_for_certain() -> None:
    fake = Fake(leaf=PAGE << 12 | FULL & ~D)
    fake.model.memory.logged |= {LOW, IN_SMM | LOW}
    fake.model.begun, fake.model.begun_in_smm = {LEAF: D}, True
    fake.machine[LEAF] |= D
    fake.settle("r8", loaded(0x1100))
    assert fake.model.memory.dirty == {}
