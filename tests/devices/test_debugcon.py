from __future__ import annotations

from shadowvm.devices.debugcon import DEBUGCON_PORT, DebugConsole


def test_it_tells_that_it_is_there() -> None:
    assert DebugConsole(lambda byte: None).port_read(DEBUGCON_PORT, 1) == 0xE9


def test_bytes_of_an_access_are_output_lowest_first() -> None:
    output = bytearray()
    console = DebugConsole(output.append)
    console.port_write(DEBUGCON_PORT, 1, ord("a"))
    console.port_write(DEBUGCON_PORT, 4, 0x65646362)
    assert output == b"abcde"
