from __future__ import annotations

from shadowvm.devices.debug_exit import DEBUG_EXIT_PORT, DebugExit


def test_the_first_value_is_the_status_and_stops_the_run_once() -> None:
    stops: list[int] = []
    device = DebugExit(lambda: stops.append(1))
    assert device.status is None
    device.port_write(DEBUG_EXIT_PORT, 4, 7)
    device.port_write(DEBUG_EXIT_PORT, 4, 9)
    assert (device.status, stops) == (7, [1])
    assert device.port_read(DEBUG_EXIT_PORT, 4) == 0
