"""The hash of a machine's state: of everything that what comes next depends on, and of what it has counted.

Registers and host memory are hashed as bytes. The rest (struct page and the order of the LRU lists, areas, swap map,
shadow pages, rmaps, memslots, vCPUs, devices, timers, locks, tasks, random generators) is the graph of Python objects
that hangs on the machine, walked in an order that depends on nothing but the graph. Not in it: the TLBs, which no
result depends on; code; and what a debugger attached.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from enum import Enum
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MachineConfig
from ..cpu.context import without_history
from ..cpu.unicorn_engine import UnicornEngine
from ..events import Tracepoint
from ..phys import Ram

if TYPE_CHECKING:
    from hashlib import _Hash

    from ..kvm.vcpu import Vcpu
    from ..machine import Machine

_PLAIN = (int, str, bytes, bool, float, type(None))
_OPAQUE = (Tracepoint, MachineConfig, UnicornEngine, Ram, type)
_SKIPPED = {"Kvm": {"debugger"}, "SwapFile": {"fd", "name", "_created"}}
"""By class: what a debugger attached, and where in the real machine the swap file is."""
_PIECES = 4096
_SLOTS: dict[type, tuple[str, ...]] = {}


def state_hash(machine: Machine, output: bytes) -> str:
    """SHA-256 of the module's description, and of what the guest has said: equal for equal states, whatever way led
    there."""
    digest = hashlib.sha256()
    for vcpu in machine.vcpus:
        digest.update(_architectural(vcpu))
    digest.update(machine.ram.b)
    swap = machine.host.swap
    for slot, count in enumerate(swap.swap_map):
        if count:
            digest.update(swap.read_slot(slot))
    digest.update(output)
    _feed(digest, machine)
    return digest.hexdigest()


def _architectural(vcpu: Vcpu) -> bytes:
    return vcpu.engine.rflags.to_bytes(8, "little") + without_history(vcpu.engine.save())


def _feed(digest: _Hash, root: object) -> None:
    pieces: list[str] = []
    for piece in _pieces(root):
        pieces.append(piece)
        if len(pieces) == _PIECES:
            digest.update("\n".join(pieces).encode("utf-8", "surrogatepass"))
            pieces.clear()
    digest.update("\n".join(pieces).encode("utf-8", "surrogatepass"))


def _pieces(root: object) -> Iterator[str]:
    """The graph in depth-first order. An object that was met before is its number."""
    numbers: dict[int, int] = {}
    alive: list[object] = []
    stack: list[object] = [root]
    while stack:
        each = stack.pop()
        if type(each) in _PLAIN:
            yield repr(each)
            continue
        number = numbers.get(id(each))
        if number is not None:
            yield f"#{number}"
            continue
        numbers[id(each)] = len(numbers)
        alive.append(each)
        text, parts = _taken_apart(each)
        yield text
        stack.extend(reversed(parts))


def _taken_apart(each: Any) -> tuple[str, list[object]]:
    """(what to hash of an object, its parts)."""
    kind = type(each)
    if kind in (list, tuple, deque) or (isinstance(each, tuple) and hasattr(kind, "_fields")):
        if all(type(part) is int for part in each):
            return repr(tuple(each)), []
        return f"{kind.__name__} {len(each)}", list(each)
    if isinstance(each, dict):
        return f"dict {len(each)}", [part for item in each.items() for part in item]
    if isinstance(each, set | frozenset):
        return f"set {len(each)}", [] if not all(type(part) in _PLAIN for part in each) else sorted(each, key=repr)
    if isinstance(each, Enum):
        return f"{kind.__name__}.{each.name}", []
    if isinstance(each, Random):
        return repr(each.getstate()), []
    if isinstance(each, bytearray | np.ndarray):
        return f"{kind.__name__} {hashlib.sha256(bytes(each)).hexdigest()}", []
    names = () if isinstance(each, _OPAQUE) or not kind.__module__.startswith("shadowvm.") else _fields(each)
    return kind.__name__, [getattr(each, name, None) for name in names]


def _fields(each: object) -> list[str]:
    own = sorted(getattr(each, "__dict__", ()))
    skipped = _SKIPPED.get(type(each).__name__, set())
    return [name for name in (*_slots(type(each)), *own) if name not in skipped]


def _slots(kind: type) -> tuple[str, ...]:
    if kind not in _SLOTS:
        _SLOTS[kind] = _find_slots(kind)
    return _SLOTS[kind]


def _find_slots(kind: type) -> tuple[str, ...]:
    return tuple(sorted({name for base in kind.__mro__ for name in getattr(base, "__slots__", ())} - {"__weakref__"}))
