"""Packets that ask: what the stub can do, threads, documents, monitor commands; and the guest's image as a file.

gdb that knows no image asks for the one that runs, and reads it through vFile: only that file, and only for reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError, ShadowvmError
from .gdb_registers import target_xml

if TYPE_CHECKING:
    from .gdbstub import GdbSession, Handler

PACKET_SIZE = 0x4000
_SUPPORTED = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;multiprocess+;qXfer:features:read+;qXfer:threads:read+;"
    "qXfer:exec-file:read+;vContSupported+;swbreak+;hwbreak+;ReverseStep+;ReverseContinue+"
)
_FILE, _READ_ONLY = 5, 0
_PIECE = PACKET_SIZE // 10
"""Characters, of 4 bytes at most, of which each takes two digits."""
_STALE = "gdb does not know that yet: maintenance flush register-cache"
_ENOENT, _EBADF, _EACCES = b"F-1,2", b"F-1,9", b"F-1,d"


def number_of(text: str) -> int | None:
    """Of a thread id such as p1.2; None for any or all."""
    thread = text.rpartition(".")[2] if text.startswith("p") else text
    return None if thread in ("", "0", "-1") else int(thread, 16)


def _supported(session: GdbSession, text: str) -> bytes:
    session.multiprocess = "multiprocess+" in text
    return _SUPPORTED.encode()


def _features(_session: GdbSession, text: str) -> bytes:
    annex, _, window = text.partition(":")
    return b"E00" if annex != "target.xml" else _window(target_xml(), window)


def _threads(session: GdbSession, text: str) -> bytes:
    rows = []
    for each in session.threads():
        core = f' core="{each.vcpu}"' if each.vcpu is not None else ""
        rows.append(f'<thread id="{session.id_of(each)}"{core} name="{each.name}">{each.text}</thread>')
    return _window(f'<?xml version="1.0"?><threads>{"".join(rows)}</threads>', text.lstrip(":"))


def _exec_file(session: GdbSession, text: str) -> bytes:
    return _window(_image(session), text.rpartition(":")[2])


def _image(session: GdbSession) -> str:
    path: str | None = session.timeline.call("view", "image")
    if path is None:
        raise ConfigError("the guest is no ELF file")
    return path


def _window(text: str, window: str) -> bytes:
    """`offset,length` of a document: l before its last part, m before any other."""
    offset, length = (int(part, 16) for part in window.split(","))
    if offset < 0 or length < 0:
        raise ConfigError("a part of a document has no negative numbers")
    part = text[offset : offset + length]
    return (("l" if offset + length >= len(text) else "m") + part).encode()


def _first_threads(session: GdbSession, _text: str) -> bytes:
    return ("m" + ",".join(session.id_of(each) for each in session.threads())).encode()


def _extra_info(session: GdbSession, text: str) -> bytes:
    thread = session.thread(int(text.rpartition(".")[2], 16))
    return f"{thread.name}: {thread.text}".encode().hex().encode()


def _current(session: GdbSession, text: str) -> bytes:
    """Not qCRC, which gdb does without."""
    return b"" if text else f"QC{session.id_of(session.thread(None))}".encode()


def _monitor(session: GdbSession, text: str) -> bytes:
    """qRcmd: the output comes back as a piece of hex, a long one as several pieces before."""
    command = bytes.fromhex(text).decode("utf-8", "replace")
    timeline = session.timeline
    before = timeline.position, timeline.inputs
    try:
        lines = session.monitor.execute(command)
    except ShadowvmError as error:
        lines = [str(error)]
    session.selected = None
    if (timeline.position, timeline.inputs) != before:
        lines = [*lines, _STALE]
    output = "".join(f"{line}\n" for line in lines)
    if len(output) > _PIECE:
        session.said += [output[at : at + _PIECE] for at in range(0, len(output), _PIECE)]
        return b"OK"
    return output.encode("utf-8", "replace").hex().encode() or b"OK"


def _open(session: GdbSession, text: str) -> bytes:
    name, flags, _mode = text.split(",")
    if bytes.fromhex(name).decode("utf-8", "replace") != _image(session):
        return _ENOENT
    return f"F{_FILE:x}".encode() if int(flags, 16) == _READ_ONLY else _EACCES


def _pread(session: GdbSession, text: str) -> bytes:
    number, count, offset = (int(part, 16) for part in text.split(","))
    if number != _FILE or offset < 0 or count < 0:
        return _EBADF
    with open(_image(session), "rb") as file:
        file.seek(min(offset, file.seek(0, 2)))
        data = file.read(min(count, PACKET_SIZE // 4))
    return b"F%x;" % len(data) + data


def _fstat(session: GdbSession, text: str) -> bytes:
    """struct stat of the protocol: big-endian; all but mode and size are 0."""
    if int(text, 16) != _FILE:
        return _EBADF
    with open(_image(session), "rb") as file:
        size = file.seek(0, 2)
    data = bytearray(64)
    data[8:12] = (0o100444).to_bytes(4, "big")
    data[28:36] = size.to_bytes(8, "big")
    return b"F40;" + bytes(data)


HANDLERS: tuple[tuple[str, Handler], ...] = (
    ("qSupported", _supported),
    ("qXfer:features:read:", _features),
    ("qXfer:threads:read:", _threads),
    ("qXfer:exec-file:read:", _exec_file),
    ("qfThreadInfo", _first_threads),
    ("qsThreadInfo", lambda _session, _text: b"l"),
    ("qThreadExtraInfo,", _extra_info),
    ("qC", _current),
    ("qAttached", lambda _session, _text: b"1"),
    ("qSymbol", lambda _session, _text: b"OK"),
    ("qOffsets", lambda _session, _text: b"Text=0;Data=0;Bss=0"),
    ("qRcmd,", _monitor),
    ("vFile:setfs:", lambda _session, _text: b"F0"),
    ("vFile:open:", _open),
    ("vFile:pread:", _pread),
    ("vFile:fstat:", _fstat),
    ("vFile:close:", lambda _session, _text: b"F0"),
)
