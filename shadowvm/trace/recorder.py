"""The event list of a run: every tracepoint hit, with virtual time and task, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..events import REGISTRY, Tracepoint, attached

if TYPE_CHECKING:
    from ..machine import Machine


class EventDigest:
    """SHA-256 over the event list: equal digests mean equal runs to the last event."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._hash = hashlib.sha256()
        self.count = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to every tracepoint inside the block."""
        with attached(self._sink, REGISTRY.values()):
            yield

    def _sink(self, tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        self.count += 1
        machine = self._machine
        line = f"{machine.instructions} {machine.sched.current.name} {tracepoint.name} {tracepoint.format(args)}\n"
        self._hash.update(line.encode())

    def hexdigest(self) -> str:
        """Digest of the events so far."""
        return self._hash.hexdigest()
