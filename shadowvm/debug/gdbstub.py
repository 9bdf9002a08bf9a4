"""A gdb session: what its packets ask for, on a timeline (gdb manual, appendix E). Transport is cli/gdbserver.py's.

vCPU n is thread n + 1 of process 1. Memory is that of the current address space, read without a trace. Going on from
what gdb calls a step or a continue, in either direction, is the timeline's; `monitor` is monitor.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ConfigError, ShadowvmError
from .breaks import AddressBreak
from .gdb_registers import REGISTERS, encode, target_xml
from .monitor import Monitor

if TYPE_CHECKING:
    from .position import Stop
    from .timeline import Timeline

PACKET_SIZE = 0x4000
MAX_STEPS = 100_000
"""Instructions of other vCPUs that may pass while one is stepped."""
OK, NOTHING, UNMAPPED, BAD = b"OK", b"", b"E14", b"E22"
_SUPPORTED = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;vContSupported+;"
    "swbreak+;hwbreak+;ReverseStep+;ReverseContinue+"
)
_FIRST_BREAK = 1 << 20
"""Numbers of gdb's own breakpoints, beyond those of the monitor."""


class GdbSession:
    """One connection. done: it has ended; kill: and the machine with it. no_acks: from the next packet on."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.monitor = Monitor(timeline)
        self.done = self.kill = self.no_acks = False
        self._addresses: set[int] = set()
        self._thread: int | None = None
        self._running: int | None = None

    def answer(self, packet: bytes) -> bytes:
        """The reply to one packet; empty for one that is not known. Nothing that a packet holds can raise."""
        try:
            text = packet.decode("latin-1")
            for start, handler in _HANDLERS:
                if text.startswith(start):
                    return handler(self, text[len(start) :])
        except ConfigError:
            return BAD
        except ShadowvmError as error:
            return f"E.{error}".encode("latin-1", "replace")
        except (ValueError, IndexError):
            return BAD
        return NOTHING

    def breaks(self) -> list[AddressBreak]:
        """Everything to stop at: gdb's addresses and the monitor's."""
        own = [AddressBreak(_FIRST_BREAK + number, at) for number, at in enumerate(sorted(self._addresses))]
        return [*own, *self.monitor.breakpoints.active()]  # type: ignore[list-item]

    @property
    def current(self) -> int | None:
        """The vCPU that gdb looks at, None for the one that runs."""
        return self._thread if self._thread is not None else self._running

    def stop_reply(self, stop: Stop | None) -> bytes:
        """T05 with the thread and why; W at the end of the run."""
        if stop is None:
            return b"T05replaylog:begin;thread:p1.1;"
        if stop.kind == "exit":
            return b"T05replaylog:end;thread:p1.1;"
        self._running = stop.vcpu
        self._thread = None
        why = "swbreak:;" if stop.kind == "breakpoint" else ""
        return f"T05{why}thread:p1.{(stop.vcpu or 0) + 1:x};".encode()

    def step(self, vcpu: int | None) -> Stop:
        """One instruction, of a certain vCPU if there is a choice."""
        timeline = self.timeline
        for _ in range(MAX_STEPS):
            stop = timeline.go(until=timeline.position.instructions + 1)
            if vcpu is None or stop.vcpu in (vcpu, None) or stop.kind != "instructions":
                break
        return stop


def _query_supported(session: GdbSession, _text: str) -> bytes:
    return _SUPPORTED.encode()


def _no_acks(session: GdbSession, _text: str) -> bytes:
    session.no_acks = True
    return OK


def _features(session: GdbSession, text: str) -> bytes:
    annex, _, window = text.partition(":")
    if annex != "target.xml":
        return b"E00"
    return _window(target_xml(), window)


def _threads(session: GdbSession, text: str) -> bytes:
    lines = session.timeline.call("view", "cpus")
    threads = [f'<thread id="p1.{number + 1:x}" core="{number}" name="CPU {number}"/>' for number in range(len(lines))]
    return _window(f'<?xml version="1.0"?><threads>{"".join(threads)}</threads>', text.lstrip(":"))


def _window(text: str, window: str) -> bytes:
    """`offset,length` of a document: l before its last part, m before any other."""
    offset, length = (int(part, 16) for part in window.split(","))
    part = text[offset : offset + length]
    return (("l" if offset + length >= len(text) else "m") + part).encode()


def _first_threads(session: GdbSession, _text: str) -> bytes:
    count = len(session.timeline.call("view", "cpus"))
    return ("m" + ",".join(f"p1.{number + 1:x}" for number in range(count))).encode()


def _extra_info(session: GdbSession, text: str) -> bytes:
    lines: list[str] = session.timeline.call("view", "cpus")
    return lines[_vcpu_number(text) or 0].strip("* ").encode().hex().encode()


def _vcpu_number(text: str) -> int | None:
    """Of a thread id such as p1.2; None for any or all."""
    thread = text.rpartition(".")[2] if text.startswith("p") else text
    if thread in ("", "0", "-1"):
        return None
    return int(thread, 16) - 1


def _set_thread(session: GdbSession, text: str) -> bytes:
    number = _vcpu_number(text)
    if number is not None:
        session.timeline.call("view", "registers", number)
    session._thread = number
    return OK


def _is_alive(session: GdbSession, text: str) -> bytes:
    session.timeline.call("view", "registers", _vcpu_number(text))
    return OK


def _why(session: GdbSession, _text: str) -> bytes:
    return session.stop_reply(session.timeline.stop)


def _read_registers(session: GdbSession, _text: str) -> bytes:
    values = session.timeline.call("view", "registers", session.current)
    return "".join(encode(each, values) for each in REGISTERS).encode()


def _read_register(session: GdbSession, text: str) -> bytes:
    number = int(text, 16)
    values = session.timeline.call("view", "registers", session.current)
    return encode(REGISTERS[number], values).encode()


def _read_memory(session: GdbSession, text: str) -> bytes:
    address, size = (int(part, 16) for part in text.split(","))
    if not 0 <= size <= PACKET_SIZE // 2:
        return BAD
    data: bytes | None = session.timeline.call("view", "memory", address, size, session.current)
    return UNMAPPED if data is None else data.hex().encode()


def _insert(session: GdbSession, text: str) -> bytes:
    session._addresses.add(_break_address(text))
    return OK


def _remove(session: GdbSession, text: str) -> bytes:
    session._addresses.discard(_break_address(text))
    return OK


def _break_address(text: str) -> int:
    return int(text.split(",")[1], 16)


def _what_continues(session: GdbSession, _text: str) -> bytes:
    return b"vCont;c;C;s;S"


def _vcont(session: GdbSession, text: str) -> bytes:
    """The first action that steps decides; everything else runs with it."""
    for action in text.split(";"):
        kind, _, thread = action.partition(":")
        if kind[:1] in ("s", "S"):
            return session.stop_reply(session.step(_vcpu_number(thread) if thread else session.current))
    return _continue(session, "")


def _continue(session: GdbSession, _text: str) -> bytes:
    return session.stop_reply(session.timeline.go(breaks=session.breaks()))


def _step(session: GdbSession, _text: str) -> bytes:
    return session.stop_reply(session.step(session.current))


def _reverse_step(session: GdbSession, _text: str) -> bytes:
    if not session.timeline.position.instructions:
        return session.stop_reply(None)
    return session.stop_reply(session.timeline.back(1))


def _reverse_continue(session: GdbSession, _text: str) -> bytes:
    return session.stop_reply(session.timeline.back_to_break(session.breaks()))


def _monitor(session: GdbSession, text: str) -> bytes:
    """qRcmd: the output comes back as one piece of hex."""
    command = bytes.fromhex(text).decode("utf-8", "replace")
    try:
        lines = session.monitor.execute(command)
    except ShadowvmError as error:
        lines = [str(error)]
    output = "".join(f"{line}\n" for line in lines)
    return output.encode("utf-8", "replace").hex()[:PACKET_SIZE].encode() or OK


def _detach(session: GdbSession, _text: str) -> bytes:
    session.done = True
    return OK


def _kill(session: GdbSession, _text: str) -> bytes:
    session.done = session.kill = True
    return OK


_HANDLERS: tuple[tuple[str, Callable[[GdbSession, str], bytes]], ...] = (
    ("qSupported", _query_supported),
    ("QStartNoAckMode", _no_acks),
    ("qXfer:features:read:", _features),
    ("qXfer:threads:read:", _threads),
    ("qfThreadInfo", _first_threads),
    ("qsThreadInfo", lambda _session, _text: b"l"),
    ("qThreadExtraInfo,", _extra_info),
    ("qC", lambda session, _text: f"QCp1.{(session.current or 0) + 1:x}".encode()),
    ("qAttached", lambda _session, _text: b"1"),
    ("qSymbol", lambda _session, _text: OK),
    ("qRcmd,", _monitor),
    ("H", lambda session, text: _set_thread(session, text[1:])),
    ("T", _is_alive),
    ("?", _why),
    ("g", _read_registers),
    ("p", _read_register),
    ("m", _read_memory),
    ("Z0,", lambda session, text: _insert(session, f",{text}")),
    ("Z1,", lambda session, text: _insert(session, f",{text}")),
    ("z0,", lambda session, text: _remove(session, f",{text}")),
    ("z1,", lambda session, text: _remove(session, f",{text}")),
    ("vCont?", _what_continues),
    ("vCont;", _vcont),
    ("vKill", _kill),
    ("c", _continue),
    ("s", _step),
    ("bc", _reverse_continue),
    ("bs", _reverse_step),
    ("D", _detach),
    ("k", _kill),
)
