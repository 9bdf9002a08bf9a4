"""The compiled callbacks on disk, so that numba and LLVM are needed once per version and not per run.

Where: $SHADOWVM_CACHE, else $XDG_CACHE_HOME/shadowvm, else ~/.cache/shadowvm. A file that is missing, damaged or of
other sources is compiled anew, in a process of its own. A directory that cannot be written costs time only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from ...errors import ModelBug
from .loader import NativeCode

PACKAGE = Path(__file__).resolve().parents[2]
SOURCES = [*sorted(Path(__file__).parent.glob("*.py"))]
SOURCES += [PACKAGE / name for name in ("x86.py", "cpu/layout.py", "cpu/mailbox.py", "cpu/engine.py", "cpu/svm.py")]
MAGIC = b"shadowvm native 1\n"

_loaded: NativeCode | None = None


def cache_directory() -> Path:
    """Where compiled code is kept."""
    if own := os.environ.get("SHADOWVM_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shadowvm"


def source_key() -> str:
    """Hash of everything that decides what the compiler emits. The code runs on any x86-64."""
    digest = hashlib.sha256(MAGIC)
    digest.update(b"%d.%d\0" % sys.version_info[:2])  # numba compiles the bytecode, which differs
    for path in SOURCES:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("numba", "llvmlite"):
        digest.update(_version(package).encode() + b"\0")
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    """The installed version, from the name of its metadata directory: importlib.metadata costs 15 ms."""
    spec = find_spec(package)
    places = [Path(place).parent for place in spec.submodule_search_locations or []] if spec else []
    return " ".join(sorted(found.name for place in places for found in place.glob(f"{package}-*.dist-info")))


def compile_objects() -> bytes:
    """Run the compiler in a process of its own; its output.

    Raises:
        ModelBug: the compiler failed; the message ends with what it said.
    """
    import subprocess  # noqa: PLC0415  not needed while the cache is warm

    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "shadowvm.cpu.native.build"]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    if done.returncode:
        raise ModelBug("cannot compile the native callbacks: " + done.stderr.decode(errors="replace")[-2000:])
    return done.stdout


def _split(payload: bytes) -> dict[str, bytes]:
    head, _, rest = payload.partition(b"\n")
    objects, at = {}, 0
    for name, size in json.loads(head).items():
        objects[name] = rest[at : at + size]
        at += size
    return objects


def _read(path: Path) -> bytes | None:
    """The payload of a cache file, or None if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + 32
    payload = data[start:]
    good = data.startswith(MAGIC) and hashlib.sha256(payload).digest() == data[len(MAGIC) : start]
    return payload if good else None


def _write(path: Path, payload: bytes) -> None:
    """Atomic: another process sees the old file or the whole new one."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def load(on_compile: Callable[[], None] = lambda: None) -> NativeCode:
    """The callbacks, loaded once per process. `on_compile` is called if they have to be compiled: half a minute."""
    global _loaded  # noqa: PLW0603  code is shared by all engines of the process
    if _loaded is None:
        path = cache_directory() / f"native-{source_key()}.bin"
        payload = _read(path)
        if payload is None:
            on_compile()
            payload = compile_objects()
            _write(path, payload)
        _loaded = NativeCode(_split(payload))
    return _loaded
