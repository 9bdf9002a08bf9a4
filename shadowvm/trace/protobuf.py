"""Protocol Buffers on the wire, as far as Perfetto needs them (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

MASK64 = (1 << 64) - 1
_VARINT, _FIXED64, _BYTES = 0, 1, 2


def varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first. Negative numbers are those of 64 bits."""
    value &= MASK64
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number(field: int, value: int) -> bytes:
    """A field of type uint32, int64, bool, enum or the like."""
    return varint(field << 3 | _VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """A field of type fixed64."""
    return varint(field << 3 | _FIXED64) + (value & MASK64).to_bytes(8, "little")


def message(field: int, *parts: bytes) -> bytes:
    """A field that is a message of these fields."""
    data = b"".join(parts)
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def string(field: int, text: str) -> bytes:
    """A field of type string."""
    return message(field, text.encode("utf-8", "replace"))
