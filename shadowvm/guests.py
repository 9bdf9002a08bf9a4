"""The bundled guests: their manifests (guest.toml) and images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Guest(NamedTuple):
    """One bundled guest. `touches` is what it touches by default, as a size; `parameters` go into -append; `boot` is
    how it starts, "long-mode" or "multiboot".
    """

    name: str
    description: str
    touches: str
    parameters: dict[str, dict[str, Any]]
    image: str
    boot: str


def guests_directory() -> Path:
    """Where the guests are: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    installed = package / "_guests"
    return installed if installed.is_dir() else package.parent / "guests"


def bundled_guests() -> list[Guest]:
    """Every bundled guest, by name."""
    return [_read(path) for path in sorted(guests_directory().glob("*/guest.toml"))]


def find_image(guest: str) -> tuple[str, str]:
    """(name, path of the image) of a bundled guest or of a path to an ELF. ConfigError if it is neither."""
    if "/" not in guest:
        image = guests_directory() / guest / f"{guest}.elf"
        if image.is_file():
            return guest, str(image)
    path = Path(guest)
    if path.is_dir():
        raise ConfigError(f"{guest}: is a directory, not an ELF image")
    if not path.exists():
        raise ConfigError(f"{guest}: no such file, and no bundled guest of that name (see shadowvm guests)")
    if not path.is_file():
        raise ConfigError(f"{guest}: not a regular file")
    return path.name, str(path)


def _read(manifest: Path) -> Guest:
    with manifest.open("rb") as file:
        values = tomllib.load(file)
    name = values["name"]
    image = manifest.parent / f"{name}.elf"
    boot = values.get("boot", "long-mode")
    return Guest(name, values["description"], values["touches"], values.get("parameters", {}), str(image), boot)
