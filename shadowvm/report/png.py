"""PNG images: 8-bit palette with transparency, which is what a heat map is."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from struct import pack
from typing import Any
from zlib import compress, crc32

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int, int]
"""Red, green, blue, alpha; 0 to 255."""


def encode_png(pixels: npt.NDArray[Any], palette: Sequence[Colour]) -> bytes:
    """An image from rows of indices into a palette of at most 256 colours."""
    height, width = pixels.shape
    # Each line begins with its filter: none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.astype(np.uint8)], axis=1)
    colours = b"".join(bytes(colour[:3]) for colour in palette)
    alphas = bytes(colour[3] for colour in palette)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", colours),
            _chunk(b"tRNS", alphas),
            _chunk(b"IDAT", compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def data_url(image: bytes) -> str:
    """For the src of an img."""
    return f"data:image/png;base64,{b64encode(image).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))
