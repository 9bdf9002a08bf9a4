"""Packets that let the machine run, forwards and backwards, and how a stop is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .gdb_query import number_of

if TYPE_CHECKING:
    from .gdbstub import GdbSession, Handler
    from .position import Stop

_WATCHED = {2: "watch", 3: "rwatch", 4: "awatch"}
SIGINT, SIGTRAP = 2, 5


def stop_reply(session: GdbSession, stop: Stop | None) -> bytes:
    """T with the thread and why. None: history begins here."""
    session.selected = None
    threads = session.threads()
    if stop is None or stop.kind == "exit":
        end = "begin" if stop is None else "end"
        return f"T05replaylog:{end};thread:{session.id_of(threads[0])};".encode()
    by_vcpu = [each for each in threads if stop.vcpu is not None and each.vcpu == stop.vcpu]
    current = [each for each in threads if each.is_current]
    thread = session.id_of((by_vcpu or current or threads)[0])
    why = ""
    watch = session.watch_of(stop.number) if stop.kind == "watchpoint" else None
    if stop.kind == "breakpoint":
        why = "swbreak:;"
    elif watch is not None:
        why = f"{_WATCHED[watch[0]]}:{watch[1]:x};"
    signal = SIGINT if stop.kind == "interrupt" else SIGTRAP
    return f"T{signal:02x}{why}thread:{thread};".encode()


def _stopped(session: GdbSession, stop: Stop | None) -> bytes:
    """After the machine has run. gdb knows no events, and no guest that has ended and can be gone back into: it is told
    in words."""
    if stop is not None and stop.kind == "exit":
        session.said.append(f"The guest has ended: {stop.text}\n")
    elif stop is not None and stop.kind == "point":
        session.said.append(f"break {stop.number} of the monitor: {stop.text}\n")
    return stop_reply(session, stop)


def _why(session: GdbSession, _text: str) -> bytes:
    return stop_reply(session, session.timeline.stop)


def _vcont(session: GdbSession, text: str) -> bytes:
    """The first action that steps decides; everything else runs with it."""
    for action in text.split(";"):
        kind, _, thread = action.partition(":")
        if kind[:1] in ("s", "S", "r"):
            return _stopped(session, _step(session, kind, thread))
        if kind[:1] not in ("c", "C", "t"):
            raise ValueError(kind)
    if all(action[:1] == "t" for action in text.split(";")):
        return b"OK"
    return _continue(session, "")


def _step(session: GdbSession, kind: str, thread: str) -> Stop:
    """One instruction of a thread, or those from START to END of rSTART,END."""
    low, high = (int(part, 16) for part in kind[1:].split(",")) if kind[0] == "r" else (0, 0)
    return session.timeline.step(session.thread(number_of(thread)).vcpu, low, high, session.breaks())


def _continue(session: GdbSession, _text: str) -> bytes:
    return _stopped(session, session.timeline.go(breaks=session.breaks()))


def _step_selected(session: GdbSession, text: str) -> bytes:
    return _stopped(session, _step(session, "s", ""))


def _reverse_step(session: GdbSession, _text: str) -> bytes:
    timeline = session.timeline
    if not timeline.position.instructions:
        return _stopped(session, None)
    return _stopped(session, timeline.back(1))


def _reverse_continue(session: GdbSession, _text: str) -> bytes:
    return _stopped(session, session.timeline.back_to_break(session.breaks(undo=True)))


HANDLERS: tuple[tuple[str, Handler], ...] = (
    ("?", _why),
    ("vCont?", lambda _session, _text: b"vCont;c;C;s;S;t;r"),
    ("vCont;", _vcont),
    ("c", _continue),
    ("C", _continue),
    ("s", _step_selected),
    ("S", _step_selected),
    ("bc", _reverse_continue),
    ("bs", _reverse_step),
)
