"""A slice of tools/fuzz_gdbstub, and clients that leave amid a session."""

from __future__ import annotations

import runpy
import socket
from pathlib import Path

from shadowvm.cli.gdbserver import Console, serve_client
from shadowvm.debug.rsp import frame

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "tools/fuzz_gdbstub"))
SESSION = (
    *(b"qSupported:multiprocess+", b"QStartNoAckMode", b"?", b"g", b"m100000,10", b"Z0,101e68,1", b"vCont;s:p1.1"),
    *(b"M300000,2:1122", b"Z2,300000,8", b"vCont;c:p1.-1", b"bs", b"qRcmd,7768656e"),
)


def test_packets_are_answered_whatever_they_are_and_clients_may_leave_at_any_byte() -> None:
    fuzz = FUZZ["Fuzz"](3)
    for _ in range(300):
        fuzz.one()
    assert len(fuzz.replies) > 5
    assert fuzz.lives()
    stream = b"+".join(frame(packet) for packet in SESSION)
    console = Console(fuzz.timeline)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for size in range(0, len(stream), 7):
            with socket.create_connection(listener.getsockname()) as client:
                client.sendall(stream[:size])
            assert not serve_client(listener, fuzz.timeline, console).done
    assert fuzz.lives()
    fuzz.timeline.close()
