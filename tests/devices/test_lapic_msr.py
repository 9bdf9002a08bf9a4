from __future__ import annotations

import pytest

from shadowvm.devices.lapic_msr import is_apic_msr
from tests.devices.apics import BASE_MSR, ICR, SVR, TPR, Apics

BASE = 0xFEE00000
BSP, EXTD, EN = 1 << 8, 1 << 10, 1 << 11
MODES = {"disabled": 0, "xapic": EN, "x2apic": EN | EXTD}


@pytest.fixture
def apics():
    apics = Apics(2)
    apics.enable_x2apic()
    return apics


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", [*MODES, "invalid"])
def test_transitions_of_the_base(before, after):
    lapic = Apics()[0]
    for step in ((EN | EXTD,), (0,), (EN,))[("x2apic", "disabled", "xapic").index(before)]:
        assert lapic.write_msr(BASE_MSR, BASE | BSP | step)
    legal = {
        "disabled": ("disabled", "xapic"),
        "xapic": ("disabled", "xapic", "x2apic"),
        "x2apic": ("disabled", "x2apic"),
    }[before]
    value = BASE | BSP | MODES.get(after, EXTD)
    assert lapic.write_msr(BASE_MSR, value) == (after in legal)
    assert (lapic.read_msr(BASE_MSR) == value) == (after in legal)


@pytest.mark.parametrize("bits", [1, 1 << 7, 1 << 9, 1 << 40, 1 << 63])
def test_reserved_bits_of_the_base(bits):
    lapic = Apics(maxphyaddr=40)[0]
    assert not lapic.write_msr(BASE_MSR, BASE | BSP | EN | bits)
    assert lapic.write_msr(BASE_MSR, BASE | BSP | EN | 1 << 39)


def test_x2apic_needs_the_feature():
    lapic = Apics(x2apic=False)[0]
    assert not lapic.write_msr(BASE_MSR, BASE | BSP | EN | EXTD)


def test_only_the_boot_cpu_has_the_bsp_bit():
    apics = Apics(2)
    assert [lapic.read_msr(BASE_MSR) for lapic in apics.bus.lapics] == [BASE | EN | BSP, BASE | EN]


def test_disabling_loses_the_registers_and_keeps_cr8_working():
    apics = Apics(2)
    lapic = apics[1]
    lapic.write(0x20, 9 << 24)
    lapic.write(TPR, 0x30)
    lapic.write(0x350, 0x31)
    lapic.write_msr(BASE_MSR, BASE)
    lapic.set_tpr(0xF0)
    assert lapic.cr8 == 15
    lapic.write_msr(BASE_MSR, BASE | EN)
    assert [lapic.read(offset) for offset in (0x20, TPR, SVR, 0x350)] == [1 << 24, 0xF0, 0xFF, 0x10000]


def test_entering_x2apic_mode_keeps_the_registers():
    lapic = Apics(2)[1]
    lapic.write(TPR, 0x30)
    lapic.write(0x20, 9 << 24)
    lapic.write(0x310, 7 << 24)
    assert lapic.write_msr(BASE_MSR, BASE | EN | EXTD)
    assert [lapic.read_msr(0x800 + each) for each in (2, 3, 8, 0xD, 0xF)] == [1, 0x50014, 0x30, 2, 0x1FF]
    assert lapic.read_msr(0x830) >> 32 == 0


def test_registers_are_no_msrs_in_xapic_mode():
    lapic = Apics()[0]
    assert lapic.read_msr(0x802) is None
    assert not lapic.write_msr(0x80B, 0)


@pytest.mark.parametrize("number", [0x02, 0x03, 0x08, 0x0A, 0x0D, 0x0F, 0x10, 0x17, 0x27, 0x28, 0x30, 0x32, 0x37, 0x38])
def test_readable_registers(apics, number):
    assert apics[0].read_msr(0x800 + number) is not None


@pytest.mark.parametrize("number", [0x00, 0x04, 0x09, 0x0B, 0x0C, 0x0E, 0x2F, 0x31, 0x3F, 0x40, 0xFF])
def test_unreadable_registers_fault_and_are_no_error_in_esr(apics, number):
    assert apics[0].read_msr(0x800 + number) is None
    assert apics[0].errors == 0


@pytest.mark.parametrize("number", [0x02, 0x03, 0x09, 0x0A, 0x0D, 0x0E, 0x10, 0x20, 0x31, 0x39, 0x40])
def test_read_only_registers_fault(apics, number):
    assert not apics[0].write_msr(0x800 + number, 0)
    assert apics[0].errors == 0


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (0x08, 0xFF, 0x100),
        (0x0B, 0, 1),
        (0x0F, 0x1FF, 0x1FF | 1 << 10),
        (0x28, 0, 1),
        (0x30, 0x4CF | 3 << 32, 0x4CF | 1 << 13),
        (0x30, 0x4CF, 0x4CF | 1 << 20),
        (0x32, 0x700FF, 0x80000),
        (0x37, 0x100FF, 0x101FF),
        (0x38, 0xFFFFFFFF, 1 << 32),
        (0x3E, 0xB, 0x4),
        (0x3F, 0xFF, 0x100),
    ],
)
def test_reserved_bits_fault(apics, number, good, bad):
    assert apics[0].write_msr(0x800 + number, good)
    assert not apics[0].write_msr(0x800 + number, bad)


def test_self_ipi_and_eoi_by_msr(apics):
    lapic = apics[0]
    icr = lapic.read_msr(0x800 + (ICR >> 4))
    assert lapic.write_msr(0x83F, 0xF1)
    assert lapic.acknowledge() == 0xF1
    assert lapic.read_msr(0x800 + (ICR >> 4)) == icr
    assert lapic.write_msr(0x80B, 0)
    assert lapic.isr == 0


def test_which_msrs_are_the_apics():
    assert [is_apic_msr(msr) for msr in (0x1B, 0x6E0, 0x800, 0x8FF, 0x7FF, 0x900, 0x10)] == [True] * 4 + [False] * 3
