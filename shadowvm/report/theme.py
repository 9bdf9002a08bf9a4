"""Colours, each for light and for dark, and which series has which."""

from __future__ import annotations

from .faults import ASYNC, EMULATED, FAST, GUEST, KINDS, MAJOR, MINOR, MMIO, SPTE, SPURIOUS, UPGRADE

SURFACES = {
    "page": ("#ffffff", "#14171c"),
    "plot": ("#f5f6f8", "#1b1f26"),
    "text": ("#1c2026", "#e4e8ee"),
    "muted": ("#59626e", "#9ba6b4"),
    "line": ("#d9dee4", "#333a45"),
    "strong": ("#8d97a3", "#6d7886"),
    "link": ("#1f5fd0", "#7fb0ff"),
    "warn": ("#fff3d6", "#3d3212"),
}
SERIES = {
    "blue": ("#2f6fde", "#6b9fff"),
    "sky": ("#6bb7d4", "#5fb3d3"),
    "orange": ("#e08214", "#f0993a"),
    "red": ("#c5352c", "#f0655a"),
    "amber": ("#e5a823", "#f2c14e"),
    "green": ("#4c9a3a", "#79c763"),
    "teal": ("#16857e", "#3fbdb4"),
    "brown": ("#87683b", "#bd975f"),
    "pink": ("#c4509a", "#e58abf"),
    "grey": ("#79828d", "#98a2af"),
    "faint": ("#b7bfc8", "#59636f"),
    "violet": ("#7a54b8", "#a98be0"),
}
FAULTS = {
    ASYNC: "pink",
    GUEST: "grey",
    MMIO: "brown",
    EMULATED: "teal",
    MAJOR: "red",
    MINOR: "amber",
    FAST: "green",
    UPGRADE: "violet",
    SPTE: "blue",
    SPURIOUS: "faint",
}
assert len(FAULTS) == len(KINDS)
MANY = tuple(name for name in SERIES if name not in ("grey", "faint"))
"""For as many series as there are: vCPUs."""
MAPPED, BACKED, SWAPPED = "blue", "sky", "orange"


def style() -> str:
    """Variables of both themes, and a class for each series."""

    def variables(index: int) -> str:
        return "".join(f"--{name}:{both[index]};" for name, both in (SURFACES | SERIES).items())

    dark = f"color-scheme:dark;{variables(1)}"
    return (
        f":root{{color-scheme:light;{variables(0)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}\n"
        + "".join(f".{name}{{--c:var(--{name})}}" for name in SERIES)
        + "\n"
    )


def rgb(name: str) -> tuple[int, int, int]:
    """Of a series, in the light theme: images have one palette for both."""
    value = int(SERIES[name][0][1:], 16)
    return value >> 16, value >> 8 & 255, value & 255
