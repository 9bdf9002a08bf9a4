"""The stub's side of a TCP connection: `-s`, `-gdb tcp:ADDRESS:PORT`, `-S` (QEMU's flags)."""

from __future__ import annotations

import socket
import sys
from select import select
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import MachineConfig
    from ..debug.gdbstub import GdbSession
    from ..debug.rsp import Packets
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
    """Wait for gdb, and serve it until it kills the guest; the exit status.

    A client that disconnects may come again. When one detaches, the guest runs on, to its end or to the next client.
    """
    from ..debug.launch import target_maker  # noqa: PLC0415
    from ..debug.timeline import Timeline  # noqa: PLC0415

    address, port = parse_gdb(where)
    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        raise ConfigError(f"-gdb: {where}: {error.strerror}") from None
    timeline = Timeline(target_maker(config))
    with listener:
        say(f"waiting for gdb at {address}:{listener.getsockname()[1]}")
        try:
            console = Console(timeline)
            while True:
                session = serve_client(listener, timeline, console)
                if session.kill:
                    return 0
                if session.done and _run_on(listener, timeline, console):
                    status: int = timeline.call("status")
                    return status
        finally:
            timeline.close()


class Console:
    """Shows what the guest says, once, whatever way the user goes back and forth."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._shown = 0

    def show(self) -> None:
        """What is new."""
        said: bytes = self._timeline.call("view", "output")
        sys.stdout.buffer.write(said[self._shown :])
        sys.stdout.buffer.flush()
        self._shown = max(self._shown, len(said))


def say(text: str) -> None:
    """To the user who started it."""
    print(text, file=sys.stderr, flush=True)


def _run_on(listener: socket.socket, timeline: Timeline, console: Console) -> bool:
    """Without a debugger, until the guest has ended (True) or another one comes."""
    say("gdb has detached: the guest runs on")

    def poll() -> bool:
        console.show()
        return bool(select([listener], [], [], 0)[0])

    timeline.poll = poll
    stop = timeline.go()
    console.show()
    if stop.kind != "exit":
        return False
    say(f"the guest has ended: {stop.text}")
    return True


def serve_client(listener: socket.socket, timeline: Timeline, console: Console) -> GdbSession:
    """One client, to its end; how that was."""
    from ..debug.gdbstub import GdbSession  # noqa: PLC0415
    from ..debug.rsp import Packets  # noqa: PLC0415

    client, _ = listener.accept()
    session, packets = GdbSession(timeline), Packets()
    with client:
        timeline.poll = lambda: _has_interrupt(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not session.done and (data := client.recv(65536)):
                _serve(client, session, packets, data)
                console.show()
        except OSError:
            pass
        finally:
            timeline.poll = None
    return session


def _serve(client: socket.socket, session: GdbSession, packets: Packets, data: bytes) -> None:
    from ..debug.rsp import INTERRUPT, frame  # noqa: PLC0415

    for packet in packets.feed(data):
        client.sendall(bytes(packets.replies))
        packets.replies.clear()
        if packet == INTERRUPT:  # it stands still already
            continue
        reply = session.answer(packet)
        client.sendall(b"".join(frame(each) for each in (*session.take_said(), reply)))
        packets.acks = not session.no_acks
        if session.done:
            return
    client.sendall(bytes(packets.replies))
    packets.replies.clear()


def _has_interrupt(client: socket.socket) -> bool:
    """Ctrl-C waits, perhaps behind an acknowledgement, or the client is gone."""
    if not select([client], [], [], 0)[0]:
        return False
    try:
        waiting = client.recv(64, socket.MSG_PEEK)
        before, interrupt, _ = waiting.partition(b"\x03")
        if interrupt and not before.strip(b"+-"):
            client.recv(len(before) + 1)
            return True
    except OSError:
        return True
    return not waiting
