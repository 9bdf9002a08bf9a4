from __future__ import annotations

from shadowvm.devices.irq import NR_GSIS, IrqLine, pc_irq_lines


class Pins:
    def __init__(self):
        self.seen = []

    def __call__(self, pin, level):
        self.seen.append((pin, level))


def test_a_line_tells_its_sinks_of_changes_only():
    pins = Pins()
    line = IrqLine([(pins, 3), (pins, 7)])
    line.raise_()
    line.set(1)
    line.lower()
    line.lower()
    assert pins.seen == [(3, 1), (7, 1), (3, 0), (7, 0)]


def test_a_pulse_is_one_edge():
    pins = Pins()
    IrqLine([(pins, 1)]).pulse()
    assert pins.seen == [(1, 1), (1, 0)]


def test_the_lines_of_a_pc_reach_both_controllers():
    pic, ioapic = Pins(), Pins()
    lines = pc_irq_lines(pic, ioapic)
    assert len(lines) == NR_GSIS
    for line in lines:
        line.raise_()
    assert pic.seen == [(irq, 1) for irq in range(16) if irq != 2]
    assert ioapic.seen == [(2, 1), *((pin, 1) for pin in range(1, 24))]
