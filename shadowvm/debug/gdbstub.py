"""A gdb session: what its packets ask for, on a timeline (gdb manual, appendix E). Transport is cli/gdbserver.py's.

Threads of process 1 are those of threads.py. Queries are in gdb_query.py, registers, memory and breakpoints in
gdb_memory.py, and what lets the machine run in gdb_resume.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ConfigError, ShadowvmError
from . import gdb_memory, gdb_query, gdb_resume
from .breaks import AddressBreak, MemoryWatch
from .gdb_query import number_of
from .monitor import Monitor

if TYPE_CHECKING:
    from .breakpoints import AnyBreak
    from .threads import Thread
    from .timeline import Timeline

OK, NOTHING, BAD = b"OK", b"", b"E22"
_FIRST_BREAK = 1 << 20
"""Numbers of gdb's own breakpoints, beyond those of the monitor."""
Handler = Callable[["GdbSession", str], bytes]


class GdbSession:
    """One connection. done: it has ended; kill: and the machine with it. no_acks: from the next packet on.

    multiprocess: thread ids have a process. addresses: of gdb's breakpoints. watches: (kind, address, size) of its
    watchpoints, kind being the number of their Z packet. selected: the thread that gdb looks at, None for the one that
    runs. said: what the user is to be told before the next reply (take_said).
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.monitor = Monitor(timeline)
        self.done = self.kill = self.no_acks = self.multiprocess = False
        self.addresses: set[int] = set()
        self.watches: list[tuple[int, int, int]] = []
        self.selected: int | None = None
        self.said: list[str] = []

    def answer(self, packet: bytes) -> bytes:
        """The reply to one packet; empty for one that is not known. Nothing that a packet holds can raise."""
        try:
            text = packet.decode("latin-1")
            for start, handler in HANDLERS:
                if text.startswith(start):
                    return handler(self, text[len(start) :])
        except ConfigError:
            return BAD
        except ShadowvmError as error:
            return f"E.{error}".encode("latin-1", "replace")
        except (ValueError, IndexError, OverflowError):
            return BAD
        return NOTHING

    def take_said(self) -> list[bytes]:
        """Packets that go before the reply that answer() has given."""
        said, self.said = self.said, []
        return [b"O" + text.encode("utf-8", "replace").hex().encode() for text in said]

    def breaks(self, *, undo: bool = False) -> list[AnyBreak]:
        """Everything to stop at: gdb's and the monitor's. undo: on the way back."""
        own: list[AnyBreak] = [
            AddressBreak(_FIRST_BREAK + number, at) for number, at in enumerate(sorted(self.addresses))
        ]
        own += [
            MemoryWatch(2 * _FIRST_BREAK + number, "gva", address, size, gdb_memory.ACCESS[kind], undo)
            for number, (kind, address, size) in enumerate(self.watches)
        ]
        return [*own, *self.monitor.breakpoints.active()]

    def watch_of(self, number: int | None) -> tuple[int, int, int] | None:
        """gdb's watchpoint of a break's number, if it is one."""
        at = -1 if number is None else number - 2 * _FIRST_BREAK
        return self.watches[at] if 0 <= at < len(self.watches) else None

    def threads(self) -> list[Thread]:
        """All threads there are now."""
        found: list[Thread] = self.timeline.call("view", "threads")
        return found

    def thread(self, number: int | None) -> Thread:
        """By number, None for the selected one or else the one that runs. ConfigError: there is none such."""
        found = self.threads()
        wanted = self.selected if number is None else number
        for each in found:
            if each.number == wanted or (wanted is None and each.is_current):
                return each
        if wanted is not None:
            raise ConfigError(f"there is no thread {wanted}")
        return found[0]

    def id_of(self, thread: Thread) -> str:
        """As packets name a thread."""
        return f"p1.{thread.number:x}" if self.multiprocess else f"{thread.number:x}"


def _no_acks(session: GdbSession, _text: str) -> bytes:
    session.no_acks = True
    return OK


def _set_thread(session: GdbSession, text: str) -> bytes:
    """Hg: whose registers and memory. Hc, whom to resume, is gone with vCont."""
    number = number_of(text[1:])
    if number is not None:
        session.thread(number)
    if text[:1] == "g":
        session.selected = number
    return OK


def _is_alive(session: GdbSession, text: str) -> bytes:
    session.thread(number_of(text))
    return OK


def _detach(session: GdbSession, _text: str) -> bytes:
    session.done = True
    return OK


def _kill(session: GdbSession, _text: str) -> bytes:
    session.done = session.kill = True
    return OK


HANDLERS: tuple[tuple[str, Handler], ...] = (
    ("QStartNoAckMode", _no_acks),
    *gdb_query.HANDLERS,
    ("H", _set_thread),
    ("T", _is_alive),
    *gdb_memory.HANDLERS,
    *gdb_resume.HANDLERS,
    ("vKill", _kill),
    ("D", _detach),
    ("k", _kill),
)
"""By what a packet starts with; the first one that fits."""
