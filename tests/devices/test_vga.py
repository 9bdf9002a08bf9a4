"""A console finds the cursor where it put it."""

from __future__ import annotations

from shadowvm.devices.vga import CRTC_DATA, CRTC_INDEX, VGA_STATUS, Vga


def write(vga: Vga, register: int, value: int) -> None:
    vga.port_write(CRTC_INDEX, 1, register)
    vga.port_write(CRTC_DATA, 1, value)


def test_registers_keep_what_is_written() -> None:
    vga = Vga()
    write(vga, 14, 0x07)
    write(vga, 15, 0xD0)
    vga.port_write(CRTC_INDEX, 1, 14)
    assert vga.port_read(CRTC_DATA, 1) == 7
    assert vga.port_read(CRTC_INDEX, 1) == 14
    vga.port_write(CRTC_INDEX, 1, 15)
    assert vga.port_read(CRTC_DATA, 1) == 0xD0


def test_a_register_that_does_not_exist_is_all_ones() -> None:
    vga = Vga()
    write(vga, 0x40, 5)
    assert vga.port_read(CRTC_DATA, 1) == 0xFF


def test_a_wait_for_either_edge_of_the_retrace_ends() -> None:
    vga = Vga()
    assert {vga.port_read(VGA_STATUS, 1) & 8 for _ in range(2)} == {0, 8}


def test_state_comes_back() -> None:
    vga, other = Vga(), Vga()
    write(vga, 15, 3)
    vga.port_read(VGA_STATUS, 1)
    other.load(vga.state())
    assert other.state() == vga.state()
