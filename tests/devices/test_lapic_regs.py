from __future__ import annotations

import pytest

from shadowvm.devices.lapic_bus import DeliveryMode
from shadowvm.events import attached, kvm_apic
from tests.devices.apics import ESR, LVT0, LVT1, LVTERR, LVTT, SVR, TMICT, TPR, Apics


@pytest.fixture
def apics():
    return Apics()


def send(lapic, vector, level=False):
    return lapic.receive(DeliveryMode.FIXED, vector, level)


def test_writable_bits():
    lapic = Apics()[0]
    for offset, expected in (
        *(
            (0x80, 0xFF),
            (0xD0, 0xFF000000),
            (0xE0, 0xFFFFFFFF),
            (SVR, 0x3FF),
            (0x3E0, 0xB),
            (TMICT, 0xFFFFFFFF),
        ),
        *(
            (LVTT, 0x700FF),
            (0x330, 0x107FF),
            (0x340, 0x107FF),
            (LVT0, 0x1A7FF),
            (LVT1, 0x1A7FF),
            (LVTERR, 0x100FF),
        ),
    ):
        lapic.write(offset, 0xFFFFFFFF)
        assert lapic.read(offset) == expected, hex(offset)
    for offset in (0x30, 0xA0, 0x100, 0x180, 0x200, 0x390):
        before = lapic.read(offset)
        lapic.write(offset, before ^ 0xFFFFFFFF)
        assert lapic.read(offset) == before, hex(offset)


def test_errors_show_after_a_write_to_esr_and_interrupt(apics):
    lapic = apics[0]
    lapic.write(LVTERR, 0xFE)
    assert lapic.read(0x3F8 & 0xFF0) == 0
    assert apics.take() == 0xFE
    assert lapic.read(ESR) == 0
    lapic.write(ESR, 0)
    assert lapic.read(ESR) == 0x80
    assert not send(lapic, 15)
    lapic.write(0x300, 0x5)
    lapic.write(ESR, 0)
    assert lapic.read(ESR) == 0x60


def test_an_error_vector_that_is_itself_illegal_does_not_loop(apics):
    apics[0].write(LVTERR, 0x0)
    assert not send(apics[0], 3)


def test_partial_accesses_to_the_page():
    lapic = Apics()[0]
    assert [lapic.mmio_read(0x30, 4), lapic.mmio_read(0x32, 1), lapic.mmio_read(0x30, 2)] == [
        0x50014,
        5,
        0x14,
    ]
    assert [lapic.mmio_read(0x34, 4), lapic.mmio_read(0x30, 8)] == [0, 0]
    lapic.mmio_write(0x80, 4, 0x20)
    for offset, size in ((0x80, 1), (0x80, 8), (0x84, 4)):
        lapic.mmio_write(offset, size, 0x77)
    assert lapic.read(TPR) == 0x20


def test_a_level_that_waits_comes_in_when_its_entry_opens_and_an_nmi_does_not(apics):
    lapic = apics[0]
    lapic.write(LVT0, 0x18055)
    lapic.set_line(0, 1)
    lapic.set_line(1, 1)
    lapic.write(LVT0, 0x8055)
    lapic.write(LVT1, 0x8400)
    assert apics.take() == 0x55
    assert not lapic.take_nmi()


def test_accesses_are_traced_by_name(apics):
    lines = []
    with attached(lambda point, args: lines.append(point.format(args)), [kvm_apic]):
        apics[0].write(TPR, 0x20)
        apics[0].read(0x230)
        apics[0].read(0x30)
    assert lines == [
        "apic_write APIC_TASKPRI = 0x20",
        "apic_read 0x230 = 0x0",
        "apic_read APIC_LVR = 0x50014",
    ]


def test_the_command_register_reads_back_and_is_never_busy(apics):
    lapic = apics[0]
    lapic.write(0x310, 0x5AFFFFFF)
    lapic.write(0x300, 0x000C9F45)
    assert (lapic.read(0x310), lapic.read(0x300)) == (0x5A000000, 0x000C8F45)
    lapic.write(0x310, 0x01000000)
    assert (lapic.read(0x310), lapic.read(0x300)) == (0x01000000, 0x000C8F45)
    assert lapic.read(0xB0) == 0


def test_the_id_can_be_changed(apics):
    apics[0].write(0x20, 0x5AFFFFFF)
    assert apics[0].read(0x20) == 0x5A000000


@pytest.mark.parametrize("offset", [0x30, 0xA0, 0x100, 0x390, 0x3F0, 0x0])
def test_writing_where_nothing_can_be_written_is_an_error(apics, offset):
    apics[0].write(offset, 1)
    apics[0].write(ESR, 0)
    assert apics[0].read(ESR) == 0x80
