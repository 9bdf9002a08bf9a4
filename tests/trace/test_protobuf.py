"""The wire format, by its specification's own examples."""

from __future__ import annotations

from shadowvm.trace.protobuf import fixed64, message, number, string, varint


def test_numbers_take_seven_bits_a_byte() -> None:
    assert varint(0) == b"\0"
    assert varint(150) == b"\x96\x01"
    assert varint(-2) == b"\xfe" + b"\xff" * 8 + b"\x01"
    assert number(1, 150) == b"\x08\x96\x01"


def test_strings_and_messages_have_their_length_before_them() -> None:
    assert string(2, "testing") == b"\x12\x07testing"
    assert message(3, number(1, 150)) == b"\x1a\x03\x08\x96\x01"
    assert message(60) == b"\xe2\x03\x00"


def test_fixed64_is_little_endian() -> None:
    assert fixed64(47, 0x0102) == b"\xf9\x02\x02\x01" + bytes(6)
