"""PNG files."""

from __future__ import annotations

from base64 import b64decode
from struct import unpack
from zlib import crc32, decompress

import numpy as np

from shadowvm.report.png import data_url, encode_png


def chunks_of(image: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(image):
        (length,) = unpack(">I", image[at : at + 4])
        kind, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + length]
        assert unpack(">I", image[at + 8 + length : at + 12 + length]) == (crc32(kind + data),)
        found[kind] = data
        at += 12 + length
    return found


def test_an_image_is_its_pixels_and_palette() -> None:
    image = encode_png(np.array([[0, 1, 2], [2, 1, 0]]), [(0, 0, 0, 0), (1, 2, 3, 128), (255, 254, 253, 255)])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = chunks_of(image)
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    assert unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 3, 0, 0, 0)
    assert chunks[b"PLTE"] == bytes((0, 0, 0, 1, 2, 3, 255, 254, 253))
    assert chunks[b"tRNS"] == bytes((0, 128, 255))
    assert decompress(chunks[b"IDAT"]) == bytes((0, 0, 1, 2, 0, 2, 1, 0))
    assert b64decode(data_url(image).partition(",")[2]) == image
