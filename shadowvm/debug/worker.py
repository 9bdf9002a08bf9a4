"""The process that a machine runs in, and its forks, which are checkpoints.

A worker serves calls on its target over a socket: a pickled (method, arguments) comes in, ("ok", result) or ("error",
text) goes out. fork() makes another worker in the very same state, down to the engine's translated code and every
half-handled fault; it shares nothing but pages that neither has written since. A worker ends when its socket does.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import ModelBug, ShadowvmError
from .target import Target

_LENGTH = struct.Struct("<Q")


class Gone(ShadowvmError):
    """The process at the other end has died."""


def send(sock: socket.socket, message: object) -> None:
    """One message."""
    data = pickle.dumps(message)
    try:
        sock.sendall(_LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise Gone(f"the machine's process is gone: {error.strerror}") from None


def receive(sock: socket.socket) -> Any:
    """The next message; Gone if there will be none."""
    return pickle.loads(_exactly(sock, _LENGTH.unpack(_exactly(sock, _LENGTH.size))[0]))


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = sock.recv(min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Gone("the machine's process is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Worker(NamedTuple):
    """A worker as its user sees it."""

    sock: socket.socket
    pid: int

    def call(self, method: str, *arguments: Any) -> Any:
        """target.method(*arguments) over there.

        Raises:
            ShadowvmError: the call was refused, with its text; ModelBug: it broke something; Gone.
        """
        send(self.sock, (method, arguments))
        return self.result()

    def result(self) -> Any:
        """Of a call that was sent."""
        verdict, value = receive(self.sock)
        if verdict == "refused":
            raise ShadowvmError(value)
        if verdict == "error":
            raise ModelBug(value)
        return value

    def fork(self) -> Worker:
        """A worker in the same state."""
        ours, theirs = socket.socketpair()
        send(self.sock, ("fork", ()))
        socket.send_fds(self.sock, [b"\0"], [theirs.fileno()])
        theirs.close()
        return Worker(ours, self.result())

    def interrupt(self) -> None:
        """Stop a run as soon as possible."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)

    def close(self) -> None:
        """End the process."""
        self.sock.close()


def start_worker(make: Callable[[], Target]) -> Worker:
    """A process that makes a target; what the making raises comes out here."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _close_all_but(theirs.fileno())
        _child(theirs, make)
    theirs.close()
    worker = Worker(ours, pid)
    worker.result()
    return worker


def _close_all_but(descriptor: int) -> None:
    """The other workers, whose sockets the parent has, are to end when it closes these."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, 4096)


def _child(sock: socket.socket, make: Callable[[], Target]) -> None:
    """Never returns: the parent's cleanups are not ours."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            target = make()
        except ShadowvmError as error:
            send(sock, ("refused", str(error)))
            os._exit(0)
        signal.signal(signal.SIGINT, lambda *_: setattr(target, "interrupted", True))
        gc.freeze()
        send(sock, ("ok", None))
        while True:
            sock = _serve_one(sock, target)
    except (Gone, KeyboardInterrupt):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _serve_one(sock: socket.socket, target: Target) -> socket.socket:
    """One call; the socket to go on with, which in a fresh fork is another."""
    method, arguments = receive(sock)
    if method == "fork":
        return _fork(sock)
    try:
        answer = ("ok", getattr(target, method)(*arguments))
    except ShadowvmError as error:
        answer = ("error" if isinstance(error, ModelBug) else "refused", str(error))
    except Exception:
        answer = ("error", traceback.format_exc())
    send(sock, answer)
    return sock


def _fork(sock: socket.socket) -> socket.socket:
    _, (descriptor, *_), _, _ = socket.recv_fds(sock, 1, 1)
    pid = os.fork()
    if pid == 0:
        sock.close()
        return socket.socket(fileno=descriptor)
    os.close(descriptor)
    send(sock, ("ok", pid))
    return sock
