"""Packets of gdb's remote serial protocol: framing, checksums, escapes, acknowledgements (gdb manual, appendix E).

`Packets.feed(bytes)` gives what has come in whole; nothing in it knows what a packet means.
"""

from __future__ import annotations

from collections.abc import Iterator

INTERRUPT = b"\x03"
MAX_PACKET = 1 << 16
_ESCAPED = frozenset(b"#$}*")


def frame(data: bytes) -> bytes:
    """`$data#checksum`, escaped."""
    body = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            body += bytes((0x7D, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)


def unescape(body: bytes) -> bytes:
    """What an escaped body stands for; run lengths are not sent to a stub."""
    data = bytearray()
    escaped = False
    for byte in body:
        if escaped:
            data.append(byte ^ 0x20)
            escaped = False
        elif byte == 0x7D:
            escaped = True
        else:
            data.append(byte)
    return bytes(data)


class Packets:
    """The receiving side. acks: each whole packet is answered with + or -; replies is where these go."""

    __slots__ = ("_buffer", "acks", "replies")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.acks = True
        self.replies = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Every packet that is complete now, and INTERRUPT for Ctrl-C; what is damaged is asked for again."""
        self._buffer += data
        while self._buffer:
            if self._buffer[0] != 0x24:
                byte = bytes((self._buffer.pop(0),))
                if byte == INTERRUPT:
                    yield INTERRUPT
                continue
            end = self._buffer.find(b"#")
            if end < 0 or len(self._buffer) < end + 3:
                if len(self._buffer) > MAX_PACKET:
                    self._buffer.clear()
                return
            body, checksum = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
            del self._buffer[: end + 3]
            if not self._is_good(body, checksum):
                continue
            yield unescape(body)

    def _is_good(self, body: bytes, checksum: bytes) -> bool:
        try:
            good = int(checksum, 16) == sum(body) & 0xFF
        except ValueError:
            good = False
        if self.acks:
            self.replies += b"+" if good else b"-"
        return good or not self.acks
