from __future__ import annotations

import json

import pytest

from shadowvm.devices.lapic_bus import ApicMessage, DeliveryMode
from tests.devices.apics import BASE_MSR, EOI, LVT0, LVT1, LVTERR, LVTT, PPR, SVR, TMICT, TPR, Apics


@pytest.fixture
def apics():
    return Apics()


def send(lapic, vector, level=False):
    return lapic.receive(DeliveryMode.FIXED, vector, level)


def test_power_up_state():
    lapic = Apics(2)[1]
    lapic.reset()
    assert lapic.read(0x20) == 1 << 24
    assert lapic.read(0x30) == 0x50014
    assert lapic.read(SVR) == 0xFF
    assert lapic.read(0xE0) == 0xFFFFFFFF
    assert [lapic.read(offset) for offset in range(0x320, 0x380, 0x10)] == [0x10000] * 6
    assert not lapic.software_enabled


def test_the_boot_cpu_passes_the_8259_and_waits_for_nobody():
    apics = Apics(2)
    for lapic in (apics[0], apics[1]):
        lapic.reset()
    assert (apics[0].extint_enabled, apics[1].extint_enabled) == (True, False)
    assert (apics[0].waiting, apics[1].waiting) == (False, True)


def test_an_interrupt_goes_from_irr_to_isr_and_away(apics):
    lapic = apics[0]
    assert send(lapic, 0x45)
    assert apics.events == [0] * len(apics.events) != []
    assert lapic.read(0x220) == 1 << 5
    assert lapic.pending_vector() == 0x45
    lapic.accept(0x45)
    assert (lapic.read(0x220), lapic.read(0x120)) == (0, 1 << 5)
    lapic.write(EOI, 0)
    assert (lapic.read(0x120), lapic.pending_vector()) == (0, None)


def test_the_highest_vector_goes_first_and_holds_back_its_class(apics):
    lapic = apics[0]
    for vector in (0x31, 0x42, 0x45):
        send(lapic, vector)
    assert lapic.acknowledge() == 0x45
    assert lapic.read(PPR) == 0x40
    assert lapic.pending_vector() is None, "0x42 is of the class in service"
    send(lapic, 0x51)
    assert lapic.acknowledge() == 0x51
    lapic.write(EOI, 0)
    assert lapic.pending_vector() is None
    lapic.write(EOI, 0)
    assert lapic.acknowledge() == 0x42


def test_task_priority_holds_back_its_class_and_lower_ones(apics):
    lapic = apics[0]
    send(lapic, 0x45)
    lapic.write(TPR, 0x40)
    assert (lapic.pending_vector(), lapic.cr8, lapic.read(PPR)) == (None, 4, 0x40)
    lapic.set_tpr(3 << 4)
    assert lapic.pending_vector() == 0x45


def test_lowering_the_task_priority_calls_for_another_look(apics):
    apics[0].write(TPR, 0xF0)
    send(apics[0], 0x80)
    apics.events.clear()
    apics[0].write(TPR, 0)
    assert apics.events == [0]


def test_acknowledge_without_a_request_gives_the_spurious_vector(apics):
    apics[0].write(SVR, 0x1EF)
    send(apics[0], 0x45)
    apics[0].write(TPR, 0x50)
    assert apics[0].acknowledge() == 0xEF
    assert apics[0].isr == 0


def test_disabling_by_software_masks_the_table_and_refuses_new_interrupts(apics):
    lapic = apics[0]
    send(lapic, 0x45)
    lapic.write(LVTERR, 0xFE)
    lapic.write(SVR, 0xFF)
    assert lapic.read(LVTERR) == 0x100FE
    lapic.write(LVTERR, 0xFE)
    assert lapic.read(LVTERR) == 0x100FE, "entries stay masked while disabled"
    assert not send(lapic, 0x46)
    assert lapic.pending_vector() == 0x45
    assert lapic.receive(DeliveryMode.NMI, 0, False)


def test_trigger_mode_is_shown_and_level_triggered_interrupts_tell_the_ioapic(apics):
    ended = []
    apics.bus.on_eoi.append(ended.append)
    for level in (True, False, True):
        send(apics[0], 0x79, level)
        assert bool(apics[0].read(0x1B0) & 1 << 25) == level
        apics.take()
    assert ended == [0x79, 0x79]


def test_lint0_passes_the_8259_only_while_it_is_open(apics):
    lapic = apics[0]
    lapic.write(LVT0, 0x8700)
    apics.events.clear()
    lapic.set_line(0, 1)
    assert lapic.extint_pending
    assert apics.events == [0]
    assert lapic.pending_vector() is None
    lapic.write(LVT0, 0x18700)
    assert not lapic.extint_pending
    for value in (0x8700, 0x18700, 0x8700):
        apics.events.clear()
        lapic.write(LVT0, value)
        assert apics.events, "the 8259 waits: the way opened, or closed"
    apics.events.clear()
    lapic.set_line(0, 1)
    assert apics.events == [0], "another vector"
    lapic.set_line(0, 0)
    assert apics.events == [0, 0]
    lapic.write(LVT0, 0x33)
    assert not lapic.extint_enabled


def test_without_a_local_apic_the_8259_reaches_the_boot_cpu_only():
    apics = Apics(2)
    for lapic in (apics[0], apics[1]):
        assert lapic.write_msr(BASE_MSR, lapic.base & ~(1 << 11))
        lapic.set_line(0, 1)
    assert (apics[0].extint_pending, apics[1].extint_pending) == (True, False)
    apics.events.clear()
    for level in (0, 1):
        apics[0].set_line(0, level)
        apics[0].set_line(1, level)
    assert apics.events == [0, 0, 0], "INTR down, up, and an NMI"
    assert apics[0].take_nmi()


def test_lint1_as_nmi(apics):
    apics[0].write(LVT1, 0x400)
    apics[0].set_line(1, 1)
    apics[0].set_line(1, 1)
    assert [apics[0].take_nmi(), apics[0].take_nmi()] == [True, False]
    apics[0].write(LVT1, 0x400)
    assert not apics[0].take_nmi(), "the edge is over"


def test_a_level_triggered_lint_comes_again_until_it_is_down(apics):
    lapic = apics[0]
    lapic.write(LVT0, 0x8055)
    lapic.set_line(0, 1)
    assert lapic.read(LVT0) == 0xC055
    assert apics.take() == 0x55
    lapic.accept(lapic.pending_vector())
    lapic.set_line(0, 0)
    lapic.write(EOI, 0)
    assert (lapic.pending_vector(), lapic.read(LVT0)) == (None, 0x8055)


def test_an_nmi_is_latched_once_while_another_is_handled_and_twice_before(apics):
    lapic = apics[0]
    for _ in range(10):
        lapic.receive(DeliveryMode.NMI, 0, False)
    assert [lapic.take_nmi() for _ in range(3)] == [True, True, False]
    lapic.nmi_blocked = True
    for _ in range(10):
        lapic.receive(DeliveryMode.NMI, 0, False)
    assert [lapic.take_nmi() for _ in range(3)] == [True, False, False]


def test_init_and_sipi_start_a_processor():
    lapic = Apics(2)[1]
    assert lapic.take_sipi() is None
    lapic.write(TPR, 0x50)
    lapic.id = 7
    lapic.receive(DeliveryMode.INIT, 0, False)
    lapic.receive(DeliveryMode.STARTUP, 0x9A, False)
    assert lapic.take_sipi() is None, "INIT comes first"
    assert lapic.take_init()
    assert not lapic.take_init()
    assert (lapic.read(TPR), lapic.id, lapic.read(SVR)) == (0, 7, 0xFF)
    assert lapic.take_sipi() == 0x9A
    assert not lapic.receive(DeliveryMode.STARTUP, 0x9B, False), "it runs"
    assert lapic.take_sipi() is None


def test_init_restarts_the_boot_cpu_without_sipi(apics):
    lapic = apics[0]
    lapic.receive(DeliveryMode.INIT, 0, False)
    assert not lapic.receive(DeliveryMode.STARTUP, 1, False)
    assert lapic.take_init()
    assert not lapic.waiting


def test_the_page_is_claimed_where_the_base_says_and_only_in_xapic_mode(apics):
    lapic = apics[0]
    assert lapic.claims(0xFEE00FFF)
    assert not lapic.claims(0xFEE01000)
    assert lapic.write_msr(BASE_MSR, 0xFED40000 | 0x900)
    assert lapic.claims(0xFED40030)
    assert not lapic.claims(0xFEE00030)
    apics.enable_x2apic()
    assert not lapic.claims(0xFED40030)


def test_logical_destinations_flat_and_cluster():
    lapic = Apics()[0]

    def reached(dest):
        return lapic.bus.deliver(ApicMessage(dest, True, 0, 0x40))

    lapic.write(0xD0, 0x42 << 24)
    assert [reached(dest) for dest in (0x40, 0x02, 0x3D, 0xFF, 0)] == [True, True, False, True, False]
    lapic.write(0xE0, 0)
    assert [reached(dest) for dest in (0x42, 0x46, 0x44, 0x32, 0xF2, 0xFF)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_state_round_trip():
    apics = Apics(2)
    lapic = apics[1]
    lapic.write(LVTT, 0x200EE)
    lapic.write(TMICT, 1000)
    send(lapic, 0x45, True)
    lapic.accept(0x45)
    send(lapic, 0x99)
    lapic.receive(DeliveryMode.NMI, 0, False)
    lapic.set_line(1, 1)
    saved = json.loads(json.dumps([apics.clock.state(), lapic.state()]))
    other = Apics(2)
    other.clock.load(saved[0])
    other[1].load(saved[1])
    assert other[1].state() == lapic.state()
    for each in (apics, other):
        each.clock.advance(2000)
    assert other[1].irr == lapic.irr == 1 << 0x99 | 1 << 0xEE


def test_vectors_start_at_16(apics):
    assert not send(apics[0], 15)
    assert send(apics[0], 16)


def test_of_equal_classes_the_task_priority_shows(apics):
    send(apics[0], 0x45)
    apics[0].acknowledge()
    apics[0].write(TPR, 0x47)
    assert apics[0].read(PPR) == 0x47
    apics[0].write(TPR, 0x3F)
    assert apics[0].read(PPR) == 0x40
