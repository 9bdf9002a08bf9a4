"""The stub's side of a TCP connection: `-s`, `-gdb tcp:ADDRESS:PORT`, `-S` (QEMU's flags)."""

from __future__ import annotations

import socket
import sys
from select import select
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import MachineConfig
    from ..debug.timeline import Timeline

DEFAULT = "tcp:127.0.0.1:1234"


def parse_gdb(text: str) -> tuple[str, int]:
    """(address, port) of `tcp:ADDRESS:PORT` or `tcp::PORT`, which is the loopback. ConfigError: it is none."""
    kind, _, rest = text.partition(":")
    address, _, port = rest.rpartition(":")
    if kind != "tcp" or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"-gdb: '{text}' is not tcp:ADDRESS:PORT")
    return address or "127.0.0.1", int(port)


def serve(config: MachineConfig, where: str) -> int:
    """Wait for gdb, and serve it until it detaches or kills; a client that disconnects may come again."""
    from ..debug.launch import target_maker  # noqa: PLC0415
    from ..debug.timeline import Timeline  # noqa: PLC0415

    address, port = parse_gdb(where)
    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        raise ConfigError(f"-gdb: {where}: {error.strerror}") from None
    timeline = Timeline(target_maker(config))
    with listener:
        print(f"waiting for gdb at {address}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        try:
            while _serve_one(listener, timeline):
                pass
        finally:
            timeline.close()
    return 0


def _serve_one(listener: socket.socket, timeline: Timeline) -> bool:
    """One client; whether to wait for another."""
    from ..debug.gdbstub import GdbSession  # noqa: PLC0415
    from ..debug.rsp import INTERRUPT, Packets, frame  # noqa: PLC0415

    client, _ = listener.accept()
    session, packets = GdbSession(timeline), Packets()
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeline.poll = lambda: _has_interrupt(client)
        try:
            while not session.done:
                data = client.recv(65536)
                if not data:
                    return True
                for packet in packets.feed(data):
                    client.sendall(bytes(packets.replies))
                    packets.replies.clear()
                    if packet == INTERRUPT:
                        continue
                    client.sendall(frame(session.answer(packet)))
                    if session.no_acks:
                        packets.acks = False
                    if session.done:
                        break
                client.sendall(bytes(packets.replies))
                packets.replies.clear()
        except OSError:
            return not session.done
        finally:
            timeline.poll = None
    return False


def _has_interrupt(client: socket.socket) -> bool:
    """Ctrl-C waits, or the client is gone."""
    if not select([client], [], [], 0)[0]:
        return False
    try:
        waiting = client.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
    if waiting == b"\x03":
        client.recv(1)
        return True
    return not waiting
