from __future__ import annotations

import json

import pytest

from shadowvm.devices.a20 import A20Gate, Port92, ResetControl


@pytest.fixture
def calls():
    return []


def test_port_92_opens_and_closes_a20(calls):
    gate = A20Gate(calls.append)
    port = Port92(gate, lambda: calls.append("reset"))
    assert gate.enabled
    for value in (0, 2, 2, 0):
        port.port_write(0x92, 1, value)
        assert (gate.enabled, port.port_read(0x92, 1)) == (bool(value), value)
    assert calls == [False, True, False]


def test_port_92_resets_at_a_rising_bit_0(calls):
    port = Port92(A20Gate(), lambda: calls.append("reset"))
    for value in (3, 3, 2, 3):
        port.port_write(0x92, 1, value)
    assert calls == ["reset"] * 2


def test_port_cf9_resets_at_a_rising_bit_2(calls):
    port = ResetControl(lambda: calls.append("reset"))
    port.port_write(0xCF9, 1, 2)
    assert (calls, port.port_read(0xCF9, 1)) == ([], 2)
    port.port_write(0xCF9, 1, 6)
    port.port_write(0xCF9, 1, 6)
    assert calls == ["reset"]


def test_state_round_trips(calls):
    gate = A20Gate()
    port, control = Port92(gate, list), ResetControl(list)
    port.port_write(0x92, 1, 1)
    control.port_write(0xCF9, 1, 4)
    other_gate = A20Gate(calls.append)
    others = other_gate, Port92(other_gate, list), ResetControl(list)
    for device, other in zip((gate, port, control), others, strict=True):
        other.load(json.loads(json.dumps(device.state())))
        assert other.state() == device.state()
    assert (other_gate.enabled, calls) == (False, [])
