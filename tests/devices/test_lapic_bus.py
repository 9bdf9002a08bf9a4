from __future__ import annotations

import pytest

from shadowvm.devices.lapic_bus import ApicMessage, DeliveryMode
from shadowvm.events import attached, kvm_apic_accept_irq, kvm_apic_ipi
from tests.devices.apics import LDR, SVR, TPR, Apics

FIXED, LOWEST, NMI, INIT, SIPI = 0, 1 << 8, 4 << 8, 5 << 8, 6 << 8
LOGICAL, ASSERT, LEVEL = 1 << 11, 1 << 14, 1 << 15
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
VECTOR = 0xCF


@pytest.fixture(params=[False, True], ids=["xapic", "x2apic"])
def apics(request):
    apics = Apics(4)
    if request.param:
        apics.enable_x2apic()
    return apics


@pytest.mark.parametrize(("shorthand", "expected"), [(SELF, [1]), (ALL, [0, 1, 2, 3]), (OTHERS, [0, 2, 3])])
def test_shorthands(apics, shorthand, expected):
    apics.ipi(1, FIXED | ASSERT | VECTOR | shorthand)
    assert apics.who_got(VECTOR) == expected


def test_physical_destination_and_broadcast(apics):
    apics.ipi(0, FIXED | ASSERT | VECTOR, 2)
    assert apics.who_got(VECTOR) == [2]
    apics.ipi(0, FIXED | ASSERT | VECTOR, 0xFFFFFFFF if apics[0].x2apic_mode else 0xFF)
    assert apics.who_got(VECTOR) == [0, 1, 2, 3]
    apics.ipi(0, FIXED | ASSERT | VECTOR, 9)
    assert apics.who_got(VECTOR) == []


def test_logical_destination(apics):
    if not apics[0].x2apic_mode:
        for cpu in range(4):
            apics[cpu].write(LDR, 1 << cpu + 24)
    apics.ipi(0, FIXED | LOGICAL | VECTOR, 0b1010)
    assert apics.who_got(VECTOR) == [1, 3]


def test_clusters_of_x2apic():
    apics = Apics(18)
    apics.enable_x2apic()
    assert apics[17].read_msr(0x80D) == 1 << 16 | 1 << 1
    apics.ipi(0, FIXED | LOGICAL | VECTOR, 1 << 16 | 0b11)
    assert apics.who_got(VECTOR) == [16, 17]


def test_the_ioapic_reaches_x2apics_with_eight_bits():
    apics = Apics(4)
    apics.enable_x2apic()
    for logical, dest, expected in ((False, 3, [3]), (False, 0xFF, [0, 1, 2, 3]), (True, 0xD, [0, 2, 3])):
        apics.bus.deliver(ApicMessage(dest, logical, DeliveryMode.FIXED, VECTOR))
        assert apics.who_got(VECTOR) == expected


def test_lowest_priority_goes_to_the_least_busy_and_in_turn(apics):
    apics[0].set_tpr(0x20)
    got = []
    for _ in range(6):
        apics.ipi(0, LOWEST | VECTOR | ALL)
        got += apics.who_got(VECTOR)
    assert got == [1, 2, 3, 1, 2, 3]
    for cpu in (1, 3):
        apics[cpu].set_tpr(0x30)
    apics[2].svr &= 0xFF
    apics.ipi(0, LOWEST | VECTOR | ALL)
    assert apics.who_got(VECTOR) == [0]


def test_nmi_init_and_sipi(apics):
    apics.ipi(0, NMI | ASSERT, 1)
    assert [lapic.take_nmi() for lapic in apics.bus.lapics] == [False, True, False, False]
    apics.ipi(0, INIT | ASSERT | LEVEL | OTHERS)
    apics.ipi(0, INIT | LEVEL | OTHERS)
    apics.ipi(0, SIPI | 0x08 | OTHERS)
    assert [lapic.take_init() for lapic in apics.bus.lapics] == [False, True, True, True]
    assert [lapic.take_sipi() for lapic in apics.bus.lapics] == [None, 8, 8, 8]


def test_init_deassert_does_nothing(apics):
    apics.ipi(0, INIT | LEVEL, 1)
    assert not apics[1].take_init()


def test_ipis_are_edge_triggered_and_smis_vanish(apics):
    apics.ipi(0, FIXED | LEVEL | ASSERT | VECTOR, 1)
    assert apics[1].tmr == 0
    apics.ipi(0, 2 << 8 | ASSERT, 2)
    assert (apics[2].nmis, apics[2].irr) == (0, 0)


def test_disabled_apics_are_not_reached():
    apics = Apics(3)
    apics[1].write_msr(0x1B, 0xFEE00000)
    apics[2].write(SVR, 0xFF)
    apics.ipi(0, FIXED | VECTOR | ALL)
    assert apics.who_got(VECTOR) == [0]
    apics.ipi(0, NMI | ALL)
    assert [lapic.take_nmi() for lapic in apics.bus.lapics] == [True, False, True]


def test_msi():
    apics = Apics(2)
    assert apics.bus.msi(0xFEE01000, 0x4041 & 0xFF | 1 << 14)
    assert apics.who_got(0x41) == [1]
    assert not apics.bus.msi(0xFEE07000, 0x41)


def test_ipis_are_traced():
    apics, lines = Apics(2), []
    with attached(lambda point, args: lines.append(point.format(args)), [kvm_apic_ipi, kvm_apic_accept_irq]):
        apics.ipi(0, FIXED | ASSERT | VECTOR | OTHERS)
        apics.ipi(0, LOWEST | LOGICAL | 0x31, 3)
    assert lines[:2] == [
        "dst 0 vec 207 (Fixed|physical|assert|edge|all-but-self)",
        "apicid 1 vec 207 (Fixed|edge)",
    ]
    assert lines[2] == "dst 3 vec 49 (LowPrio|logical|de-assert|edge)"


def test_priority_is_by_class():
    apics = Apics(2)
    apics[0].write(TPR, 0x1F)
    apics[1].write(TPR, 0x10)
    apics.ipi(0, LOWEST | VECTOR | ALL)
    assert apics.who_got(VECTOR) == [0]
