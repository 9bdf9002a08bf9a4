from __future__ import annotations

import json

import pytest

from shadowvm.devices.pic import Pic
from shadowvm.events import attached, kvm_pic_set_irq

MASTER, SLAVE = 0x20, 0xA0
EOI, ROTATE_EOI = 0x20, 0xA0


class Pair:
    """A pair initialized as a BIOS does, with vectors 0x20 and 0x28, and what its INT did."""

    def __init__(self, icw4=0x01, icw1=0x11):
        self.levels = []
        self.pic = Pic(self.levels.append)
        for base, vector, icw3 in ((MASTER, 0x20, 4), (SLAVE, 0x28, 2)):
            self.out(base, icw1)
            for value in (vector, icw3, icw4):
                self.out(base + 1, value)

    def out(self, port, value):
        self.pic.port_write(port, 1, value)

    def read(self, port):
        return self.pic.port_read(port, 1)

    def irr(self, base=MASTER):
        self.out(base, 0x0A)
        return self.read(base)

    def isr(self, base=MASTER):
        self.out(base, 0x0B)
        return self.read(base)

    def edge(self, *irqs):
        for irq in irqs:
            self.pic.set_irq(irq, 1)
            self.pic.set_irq(irq, 0)

    def drain(self, eoi=True):
        """Vectors in the order in which they come."""
        taken = []
        while self.pic.level:
            vector = self.pic.acknowledge()
            taken.append(vector)
            if eoi:
                if vector >= 0x28:
                    self.out(SLAVE, EOI)
                self.out(MASTER, EOI)
        return taken


@pytest.fixture
def pair():
    return Pair()


def test_every_line_has_its_vector(pair):
    for irq in range(16):
        if irq != 2:
            pair.edge(irq)
            assert pair.drain() == [0x20 + irq]


def test_priority_falls_from_line_0_and_the_slave_stands_at_2(pair):
    pair.edge(15, 7, 3, 8, 1, 0)
    assert pair.drain() == [0x20, 0x21, 0x28, 0x2F, 0x23, 0x27]


def test_a_line_in_service_holds_back_itself_and_lower_ones_until_eoi(pair):
    pair.edge(4)
    assert pair.pic.acknowledge() == 0x24
    pair.edge(4, 5)
    assert pair.pic.level == 0
    pair.edge(3)
    assert pair.pic.acknowledge() == 0x23
    pair.out(MASTER, EOI)
    assert pair.pic.level == 0, "line 4 is still in service"
    pair.out(MASTER, EOI)
    assert pair.drain() == [0x24, 0x25]


def test_int_follows_request_and_acknowledge(pair):
    pair.edge(3)
    pair.pic.acknowledge()
    assert pair.levels == [1, 0]
    assert (pair.irr(), pair.isr()) == (0, 1 << 3)


def test_output_is_called_whenever_the_vector_changes(pair):
    seen = []
    pair.pic.output = lambda level: seen.append((level, pair.pic.peek() if level else None))
    pair.edge(4)
    pair.edge(5)
    pair.edge(1)
    pair.out(MASTER + 1, 1 << 1)
    pair.out(MASTER + 1, 0xFF)
    pair.out(MASTER + 1, 0)
    pair.edge(0)
    assert seen == [(1, 0x24), (1, 0x21), (1, 0x24), (0, None), (1, 0x21), (1, 0x20)]


@pytest.mark.parametrize("spurious", [False, True])
@pytest.mark.parametrize("irq", [0, 3, 7, 8, 15])
def test_peek_tells_what_acknowledge_gives(pair, irq, spurious):
    pair.edge(irq)
    if spurious:
        (pair.pic.slave if irq >= 8 else pair.pic.master).imr = 0xFF
    expected = pair.pic.peek()
    assert pair.pic.acknowledge() == expected


def test_masked_lines_wait(pair):
    pair.out(MASTER + 1, 1 << 3)
    pair.edge(3)
    assert (pair.pic.level, pair.irr(), pair.read(MASTER + 1)) == (0, 1 << 3, 1 << 3)
    pair.out(MASTER + 1, 0)
    assert pair.drain() == [0x23]


def test_masking_line_2_masks_the_slave(pair):
    pair.out(MASTER + 1, 1 << 2)
    pair.edge(12)
    assert pair.pic.level == 0
    pair.out(MASTER + 1, 0)
    assert pair.drain() == [0x2C]


def test_an_edge_counts_once_while_the_line_stays_up(pair):
    pair.pic.set_irq(5, 1)
    assert pair.drain() == [0x25]
    pair.pic.set_irq(5, 1)
    assert pair.pic.level == 0


def test_a_level_line_requests_as_long_as_it_is_up(pair):
    pair.out(0x4D1, 1 << 2)
    pair.pic.set_irq(10, 1)
    for _ in range(3):
        assert pair.pic.acknowledge() == 0x2A
        pair.out(SLAVE, EOI)
        pair.out(MASTER, EOI)
        assert pair.pic.level == 1
    pair.pic.set_irq(10, 0)
    assert pair.pic.acknowledge() == 0x2F, "the master had its edge: spurious"
    assert pair.isr(SLAVE) == 0


def test_elcr_keeps_the_lines_of_the_board_edge_triggered(pair):
    pair.out(0x4D0, 0xFF)
    pair.out(0x4D1, 0xFF)
    assert (pair.read(0x4D0), pair.read(0x4D1)) == (0xF8, 0xDE)


def test_ltim_makes_all_lines_level_triggered():
    pair = Pair(icw1=0x19)
    pair.pic.set_irq(1, 1)
    assert pair.pic.acknowledge() == 0x21
    pair.out(MASTER, EOI)
    assert pair.pic.level == 1


def test_a_request_that_went_away_is_spurious_and_not_in_service(pair):
    pair.out(0x4D0, 1 << 5)
    pair.pic.set_irq(5, 1)
    pair.pic.set_irq(5, 0)
    assert pair.pic.acknowledge() == 0x27
    assert pair.isr() == 0


def test_a_spurious_interrupt_of_the_slave_needs_eoi_at_the_master():
    pair = Pair()
    pair.edge(9)
    pair.pic.slave.imr = 0xFF
    assert pair.pic.acknowledge() == 0x2F
    assert (pair.isr(MASTER), pair.isr(SLAVE)) == (1 << 2, 0)


def test_specific_eoi_ends_the_named_line(pair):
    pair.edge(4)
    pair.pic.acknowledge()
    pair.edge(1)
    pair.pic.acknowledge()
    pair.out(MASTER, 0x60 | 4)
    assert pair.isr() == 1 << 1


def test_auto_eoi_leaves_nothing_in_service():
    pair = Pair(icw4=0x03)
    pair.edge(6, 6, 3)
    assert pair.drain(eoi=False) == [0x23, 0x26]
    assert pair.isr() == 0


def test_rotation_on_eoi_makes_the_served_line_the_lowest(pair):
    pair.edge(0)
    assert pair.pic.acknowledge() == 0x20
    pair.out(MASTER, ROTATE_EOI)
    pair.edge(0, 7)
    assert pair.drain() == [0x27, 0x20]


def test_rotation_in_auto_eoi_mode():
    pair = Pair(icw4=0x03)
    pair.out(MASTER, 0x80)
    pair.edge(3)
    pair.drain(eoi=False)
    pair.edge(3, 4)
    assert pair.drain(eoi=False) == [0x24, 0x23]
    pair.out(MASTER, 0x00)
    pair.edge(5)
    pair.drain(eoi=False)
    pair.edge(4, 5)
    assert pair.drain(eoi=False) == [0x24, 0x25], "3 is still the lowest"


def test_set_priority_and_rotate_on_specific_eoi(pair):
    pair.out(MASTER, 0xC0 | 4)
    pair.edge(4, 5)
    assert pair.pic.acknowledge() == 0x25
    pair.out(MASTER, 0xE0 | 5)
    pair.edge(5, 6)
    assert pair.drain() == [0x26, 0x24, 0x25]


def test_special_mask_mode_lets_lower_lines_in_past_a_masked_one(pair):
    pair.edge(1)
    pair.pic.acknowledge()
    pair.out(MASTER + 1, 1 << 1)
    pair.edge(6)
    assert pair.pic.level == 0
    pair.out(MASTER, 0x68)
    assert pair.pic.acknowledge() == 0x26
    pair.out(MASTER, 0x48)
    assert not pair.pic.master.special_mask


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself():
    for icw4, expected in ((0x01, 0), (0x11, 1)):
        pair = Pair(icw4=icw4)
        pair.edge(12)
        assert pair.pic.acknowledge() == 0x2C
        pair.edge(8)
        assert pair.pic.level == expected


def test_requests_of_the_slave_that_wait_behind_one_another_all_come():
    pair = Pair(icw4=0x03)
    pair.edge(12, 9, 14)
    assert pair.drain(eoi=False) == [0x29, 0x2C, 0x2E]


def test_poll_takes_the_place_of_the_acknowledge_cycle(pair):
    pair.edge(3, 10)
    pair.out(MASTER, 0x0C)
    assert pair.read(MASTER) == 0x82
    pair.out(SLAVE, 0x0C)
    assert pair.read(SLAVE) == 0x82
    assert (pair.isr(MASTER), pair.isr(SLAVE)) == (4, 4)
    pair.out(MASTER, 0x0C)
    assert pair.read(MASTER) == 0, "line 3 waits for the slave's EOI"
    assert pair.pic.level == 0


def test_initialization_clears_masks_and_edges_and_keeps_level_requests(pair):
    pair.out(0x4D0, 1 << 5)
    pair.out(MASTER + 1, 0xFF)
    pair.edge(1)
    pair.pic.set_irq(5, 1)
    pair.out(MASTER, 0x11)
    assert pair.irr() == 1 << 5
    for value in (0x70, 4, 1):
        pair.out(MASTER + 1, value)
    assert pair.read(MASTER + 1) == 0
    assert pair.pic.acknowledge() == 0x75


def test_icw1_without_ic4_and_cascade_wants_one_word():
    pair = Pair(icw1=0x12)
    pair.out(MASTER, 0x12)
    pair.out(MASTER + 1, 0x40)
    pair.out(MASTER + 1, 0xFB)
    assert (pair.pic.master.base, pair.read(MASTER + 1)) == (0x40, 0xFB)


@pytest.mark.parametrize(("icw1", "words", "imr"), [(0x10, 2, 0), (0x11, 3, 0), (0x12, 1, 0), (0x13, 2, 0)])
def test_icw1_says_how_many_words_follow(icw1, words, imr):
    pic = Pic(lambda level: None)
    pic.port_write(MASTER, 1, icw1)
    for _ in range(words):
        pic.port_write(MASTER + 1, 1, 0x00)
    assert pic.port_read(MASTER + 1, 1) == imr
    pic.port_write(MASTER + 1, 1, 0x5A)
    assert pic.port_read(MASTER + 1, 1) == 0x5A


def test_registers_are_read_as_ocw3_chose(pair):
    pair.edge(1)
    pair.pic.acknowledge()
    pair.edge(6)
    assert (pair.irr(), pair.read(MASTER)) == (1 << 6, 1 << 6)
    assert (pair.isr(), pair.read(MASTER)) == (1 << 1, 1 << 1)
    pair.out(MASTER, 0x09)
    assert pair.read(MASTER) == 1 << 1, "without the read bit the choice stays"


def test_rising_lines_are_traced(pair):
    lines = []
    pair.out(0x4D1, 1 << 2)
    pair.out(MASTER + 1, 1 << 4)
    with attached(lambda point, args: lines.append(point.format(args)), [kvm_pic_set_irq]):
        pair.edge(4, 4, 10)
    assert lines == [
        "chip 0 pin 4 (edge|masked)",
        "chip 0 pin 4 (edge|masked) (coalesced)",
        "chip 1 pin 2 (level)",
    ]


def test_state_round_trip(pair):
    pair.edge(1, 9, 14)
    pair.pic.acknowledge()
    pair.out(MASTER, 0xC0 | 5)
    pair.out(SLAVE + 1, 0x40)
    saved = json.loads(json.dumps(pair.pic.state()))
    other = Pair()
    other.pic.load(saved)
    assert other.pic.state() == pair.pic.state()
    pair.out(SLAVE + 1, 0)
    other.out(SLAVE + 1, 0)
    pair.out(MASTER, EOI)
    other.out(MASTER, EOI)
    assert other.drain() == pair.drain() != []
