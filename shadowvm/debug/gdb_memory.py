"""Packets for registers, memory, breakpoints and watchpoints.

A thread that runs no guest has registers of zeros, which nothing can be written to; it sees the memory of the vCPU that
ran last. Writes are inputs of the run (poke.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError, ShadowvmError
from .gdb_query import PACKET_SIZE
from .gdb_registers import REGISTERS, Register, decode, encode

if TYPE_CHECKING:
    from .gdbstub import GdbSession, Handler

OK, UNMAPPED, BAD = b"OK", b"E14", b"E22"
ACCESS = {2: "w", 3: "r", 4: "rw"}
"""By Z packet."""
MAX_BREAKPOINTS, MAX_WATCHPOINTS, MAX_SIZE = 60, 30, 1 << 20


def _registers(session: GdbSession) -> dict[str, int]:
    thread = session.thread(None)
    if thread.vcpu is None:
        return {each.ours: 0 for each in REGISTERS}
    values: dict[str, int] = session.timeline.call("view", "registers", thread.vcpu)
    return values


def _vcpu(session: GdbSession) -> int:
    """Whose registers are written."""
    thread = session.thread(None)
    if thread.vcpu is None:
        raise ShadowvmError(f"{thread.name} is no vCPU: it has no registers")
    return thread.vcpu


def _read_registers(session: GdbSession, _text: str) -> bytes:
    values = _registers(session)
    return "".join(encode(each, values) for each in REGISTERS).encode()


def _read_register(session: GdbSession, text: str) -> bytes:
    return encode(_register(text), _registers(session)).encode()


def _register(text: str) -> Register:
    number = int(text, 16)
    if not 0 <= number < len(REGISTERS):
        raise ConfigError(f"there is no register {number}")
    return REGISTERS[number]


def _write_registers(session: GdbSession, text: str) -> bytes:
    vcpu, values, at = _vcpu(session), _registers(session), 0
    wanted = {}
    for each in REGISTERS:
        digits = text[at : at + each.bits // 4]
        at += each.bits // 4
        if len(digits) != each.bits // 4:
            break
        if each.ours and "x" not in digits:
            wanted[each.ours] = decode(each, digits)
    for name, value in wanted.items():
        if values.get(name) != value:
            session.timeline.write("register", vcpu, name, value)
    return OK


def _write_register(session: GdbSession, text: str) -> bytes:
    number, _, digits = text.partition("=")
    register = _register(number)
    if not register.ours:
        return BAD
    session.timeline.write("register", _vcpu(session), register.ours, decode(register, digits))
    return OK


def _read_memory(session: GdbSession, text: str) -> bytes:
    address, size = (int(part, 16) for part in text.split(","))
    if not 0 <= size <= PACKET_SIZE // 2 or not 0 <= address < 1 << 64:
        return BAD
    data: bytes | None = session.timeline.call("view", "memory", address, size, session.thread(None).vcpu)
    return UNMAPPED if data is None else data.hex().encode()


def _write_hex(session: GdbSession, text: str) -> bytes:
    return _write_memory(session, text.partition(":")[0], bytes.fromhex(text.partition(":")[2]))


def _write_binary(session: GdbSession, text: str) -> bytes:
    return _write_memory(session, text.partition(":")[0], text.partition(":")[2].encode("latin-1"))


def _write_memory(session: GdbSession, where: str, data: bytes) -> bytes:
    address, size = (int(part, 16) for part in where.split(","))
    if size != len(data) or not 0 <= address < 1 << 64:
        return BAD
    if not data:
        return OK
    vcpu = session.thread(None).vcpu
    if session.timeline.call("view", "memory", address, size, vcpu) is None:
        return UNMAPPED
    session.timeline.write("memory", vcpu, address, data.hex())
    return OK


def _insert(session: GdbSession, text: str) -> bytes:
    address, kind = _place(text)
    if len(session.addresses | {address}) > MAX_BREAKPOINTS or kind < 0:
        return BAD
    session.addresses.add(address)
    return OK


def _remove(session: GdbSession, text: str) -> bytes:
    session.addresses.discard(_place(text)[0])
    return OK


def _place(text: str) -> tuple[int, int]:
    address, kind = (int(part, 16) for part in text.partition(";")[0].split(","))
    if not 0 <= address < 1 << 64:
        raise ConfigError(f"{address:#x} is no address")
    return address, kind


def _insert_watch(session: GdbSession, text: str) -> bytes:
    wanted = (int(text[0]), *_place(text[2:]))
    if not 0 < wanted[2] <= MAX_SIZE or (len(session.watches) >= MAX_WATCHPOINTS and wanted not in session.watches):
        return BAD
    if wanted not in session.watches:
        session.watches.append(wanted)
    return OK


def _remove_watch(session: GdbSession, text: str) -> bytes:
    wanted = (int(text[0]), *_place(text[2:]))
    if wanted in session.watches:
        session.watches.remove(wanted)
    return OK


def _watch_handlers() -> tuple[tuple[str, Handler], ...]:
    return tuple(
        (f"{letter}{kind},", lambda session, text, kind=kind, handler=handler: handler(session, f"{kind},{text}"))
        for letter, handler in (("Z", _insert_watch), ("z", _remove_watch))
        for kind in ACCESS
    )


HANDLERS: tuple[tuple[str, Handler], ...] = (
    ("g", _read_registers),
    ("p", _read_register),
    ("G", _write_registers),
    ("P", _write_register),
    ("m", _read_memory),
    ("M", _write_hex),
    ("X", _write_binary),
    ("Z0,", _insert),
    ("Z1,", _insert),
    ("z0,", _remove),
    ("z1,", _remove),
    *_watch_handlers(),
)
