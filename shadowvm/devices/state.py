"""State of devices as plain data: what a snapshot keeps and a test compares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def save_fields(device: object, names: Iterable[str]) -> dict[str, Any]:
    """The named fields; lists and dicts are copied, so that the device may run on."""
    return {name: _copy(getattr(device, name)) for name in names}


def load_fields(device: object, names: Iterable[str], saved: dict[str, Any]) -> None:
    """The inverse of save_fields()."""
    for name in names:
        setattr(device, name, _copy(saved[name]))


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(each) for each in value]
    return dict(value) if isinstance(value, dict) else value
