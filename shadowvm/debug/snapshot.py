"""savevm and loadvm: a position of a run in a file, as the recipe that leads there again.

The file has a line with its kind and version, one with the SHA-256 of the rest, and a JSON object: the configuration
of the machine, size and SHA-256 of each file that it is made from, what the user put in on the way, the position, and
the hash of the state there. A run being a pure function of these, loading is running it again up to the position, at
full speed (about as long as it took to get there), and comparing the hash. So a file has a few KiB, whatever the size
of the guest, and what does not come out the same is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import types
import typing
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import MachineConfig
from ..errors import ConfigError
from ..guests import find_image
from ..params import KvmParams
from .position import Position

VERSION = 1
MAX_SIZE = 16 << 20
_KIND = "shadowvm snapshot"
_FILES = ("image", "bios", "initrd", "serial_input")


class Snapshot(NamedTuple):
    """See the module. ended: the run was over there. inputs: what the user did to the machine, in order."""

    config: MachineConfig
    position: Position
    state: str
    ended: bool = False
    inputs: tuple[Any, ...] = ()


def write_snapshot(path: str, snapshot: Snapshot) -> None:
    """Put one into a file, which is the old one until all is written.

    Raises:
        ConfigError: one of the machine's files is not there any more, or the file cannot be written.
    """
    record = {
        "config": asdict(replace(snapshot.config, swap_file=None)),
        "files": {name: _digests(name, snapshot.config) for name in _FILES},
        "inputs": list(snapshot.inputs),
        "position": list(snapshot.position),
        "ended": snapshot.ended,
        "state": snapshot.state,
    }
    body = json.dumps(record, indent=1).encode() + b"\n"
    header = f"{_KIND} {VERSION}\n{hashlib.sha256(body).hexdigest()}\n".encode()
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ConfigError(f"{path}: not a regular file")
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(scratch, "xb") as file:
            file.write(header + body)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            scratch.unlink()
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_snapshot(path: str) -> Snapshot:
    """What a file holds; its machine's files are as they were.

    Raises:
        ConfigError: it is no snapshot, of a later version, damaged, or one of the machine's files has changed.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    snapshot, files = parse_snapshot(path, data)
    return snapshot._replace(config=_checked(path, snapshot.config, files))


def parse_snapshot(path: str, data: bytes) -> tuple[Snapshot, dict[str, Any]]:
    """(what it says, its `files`). ConfigError as for read_snapshot(), files aside."""
    header, _, rest = data.partition(b"\n")
    match = re.fullmatch(rf"{_KIND} (\d{{1,9}})".encode(), header)
    if match is None or len(data) > MAX_SIZE:
        raise ConfigError(f"{path}: is no snapshot that savevm has written")
    if int(match[1]) != VERSION:
        raise ConfigError(f"{path}: is a snapshot of version {int(match[1])}; this program reads version {VERSION}")
    checksum, _, body = rest.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ConfigError(f"{path}: is truncated or damaged: its checksum is wrong")
    try:
        record = json.loads(body)
        instructions, events, between = record["position"]
        where, ended = Position(instructions, events, between), record["ended"]
        snapshot = Snapshot(_config(record["config"]), where, record["state"], ended, tuple(record["inputs"]))
        files = dict(record["files"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path}: is no snapshot of version {VERSION}: {_one_line(error)}") from None
    if not _is_position(snapshot.position) or not isinstance(snapshot.state, str) or not isinstance(ended, bool):
        raise ConfigError(f"{path}: is no snapshot of version {VERSION}: it has no position")
    return snapshot, files


def _is_position(where: Position) -> bool:
    numbers = where[:2]
    return all(type(each) is int and 0 <= each < 1 << 62 for each in numbers) and isinstance(where.between, bool)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _config(values: dict[str, Any]) -> MachineConfig:
    """ValueError: a field is unknown, missing, or of another type."""
    hints = typing.get_type_hints(MachineConfig)
    if values.keys() != hints.keys():
        raise ValueError(f"its configuration has other fields: {sorted(values.keys() ^ hints.keys())}")
    values = {name: _frozen(value) for name, value in values.items()}
    knobs = values.pop("kvm_params")
    if not isinstance(knobs, dict) or knobs.keys() != {each.name for each in fields(KvmParams)}:
        raise ValueError("its knobs of KVM are others")
    for name, value in (*values.items(), *knobs.items()):
        if not _is(value, hints.get(name, int)):
            raise ValueError(f"{name} is {value!r}")
    return MachineConfig(kvm_params=KvmParams(**knobs), **values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _is(value: object, hint: Any) -> bool:
    """Whether a value has a type, of those that configurations are made of."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        expected = [parts[0]] * len(value) if parts[1:] == (...,) else list(parts)
        return len(value) == len(expected) and all(_is(each, part) for each, part in zip(value, expected, strict=True))
    if hint is int:
        return type(value) is int and abs(value) < 1 << 63
    return isinstance(value, hint)


def _paths(name: str, config: MachineConfig) -> list[str]:
    """The files that a field of the configuration names."""
    value: str | None = getattr(config, name)
    if not value:
        return []
    if name != "initrd" or Path(value).is_file():
        return [value]
    items = value.replace(",,", "\0").split(",")
    return [each.replace("\0", ",").strip(" ").split(" ", 1)[0] for each in items]


def _digests(name: str, config: MachineConfig) -> list[list[Any]]:
    """[path, size, SHA-256] of each."""
    return [[path, *_digest(path)] for path in _paths(name, config)]


def _digest(path: str) -> tuple[int, str]:
    """Of a file; of one that is not there under this name, as bundled firmware is not, (0, "")."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError):
        return 0, ""
    return len(data), hashlib.sha256(data).hexdigest()


def _checked(path: str, config: MachineConfig, files: dict[str, Any]) -> MachineConfig:
    """The configuration, its bundled guest found wherever it is here. ConfigError: a file is not what it was."""
    if config.image is not None and not Path(config.image).is_file():
        with suppress(ConfigError):
            config = replace(config, image=find_image(config.name)[1])
    for name in _FILES:
        now = [each[1:] for each in _digests(name, config)]
        was = files.get(name)
        if not isinstance(was, list) or [each[1:] for each in was if isinstance(each, list)] != now:
            which = ", ".join(_paths(name, config)) or "missing"
            raise ConfigError(f"{path}: the {name} ({which}) is not the one that the snapshot was made from")
    return config
