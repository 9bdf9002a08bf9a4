"""A real gdb on the stub: attach, break, step, go back, look through the monitor, detach."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shadowvm.cli.gdbserver import parse_gdb
from shadowvm.debug.rsp import frame
from shadowvm.errors import ConfigError

SCRIPT = """
set pagination off
set confirm off
target remote 127.0.0.1:{port}
info registers cr0 cr3
info threads
break *main+744
continue
x/2i $rip
stepi
reverse-stepi
delete
watch *(long *)0x2a0000
continue
print/x $rip
continue
reverse-continue
print/x $rip
delete
set $r15 = 0x1234567
set var *(long *)0x2a0000 = 0x77
print/x *(long *)0x2a0000
stepi
reverse-stepi
print/x $r15
monitor set $r14 = $r15 + 1
maintenance flush register-cache
print/x $r14
monitor when
monitor page -s rip
monitor info spte 0x2a0
monitor explain fault
monitor break mm_vmscan_kswapd_wake
continue
info threads
x/1gx 0xffff800000000000
"""


@contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "shadowvm", "run", "-gdb", "tcp:127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"waiting for gdb at 127.0.0.1:(\d+)\n", line)
        assert found is not None, line
        try:
            yield process, int(found[1])
        finally:
            process.kill()


def ask(client: socket.socket, packet: bytes) -> bytes:
    """The first packet that comes back, of those that are no acknowledgement."""
    client.sendall(b"+" + frame(packet))
    reply = b""
    while not reply.endswith(b"#", -3, -2) and (more := client.recv(1000)):
        reply += more
    return reply.lstrip(b"+").partition(b"#")[0][1:]


@pytest.mark.skipif(shutil.which("gdb") is None, reason="there is no gdb")
def test_a_session_of_a_real_gdb() -> None:
    guest = ("memtouch", "-append", "size=3M passes=1", "--host-memory", "2304K", "-smp", "2")
    with server(*guest) as (process, port):
        commands = [line for line in SCRIPT.format(port=port).splitlines() if line] + ["detach"]
        words = [word for line in commands for word in ("-ex", line)]
        gdb = ["gdb", "-nx", "-batch", *words]
        done = subprocess.run(
            gdb, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=100
        )
        said = done.stdout
        for part in (
            "Reading symbols from target:",
            "[ PE MP ET NE WP AM PG ]",
            '* 1    Thread 1.1 "CPU 0"',
            '  2    Thread 1.2 "CPU 1"',
            "hit Breakpoint 1, ",
            "=> 0x101e68",
            "Hardware watchpoint 2: *(long *)0x2a0000",
            "Old value = 0",
            "$3 = 0x77",
            "$4 = 0x1234567",
            "$5 = 0x1234568",
            "memslot 0: gfns 0x0-",
            "mmu_invalidate_seq is",
            '"kswapd0"',
            "detached",
        ):
            assert part in said, said
        news = re.findall(r"Old value = (\d+)\nNew value = (\d+)", said)
        assert news[-1] == tuple(reversed(news[0]))
        assert "Cannot access memory at address 0xffff800000000000" in said
        assert process.wait(30) == 0


def test_a_client_that_leaves_at_any_byte_may_come_again() -> None:
    with server("hello") as (process, port):
        for size in range(1, 12):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"+$qSupported#37"[:size])
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert ask(client, b"?") == b"T05thread:1;"
            client.sendall(b"+$k#6b")
        assert process.wait(30) == 0


def test_a_guest_runs_on_without_a_client_until_the_next_one_comes() -> None:
    with server("hello") as (process, port):
        with (
            socket.create_connection(("127.0.0.1", port)) as first,
            socket.create_connection(("127.0.0.1", port)) as second,
        ):
            assert ask(first, b"D;1") == b"OK"
            assert ask(second, b"?") == b"T02thread:1;"
            assert bytes.fromhex(ask(second, b"c")[1:].decode()) == b"The guest has ended: debug-exit, status 0\n"
            assert ask(second, b"?") == b"T05replaylog:end;thread:1;"
            assert ask(second, b"D;1") == b"OK"
        assert process.wait(30) == 0


def test_where_to_listen() -> None:
    assert parse_gdb("tcp::1234") == ("127.0.0.1", 1234)
    assert parse_gdb("tcp:0.0.0.0:99") == ("0.0.0.0", 99)
    for text in ("", "1234", "udp::1", "tcp:x", "tcp::99999", "tcp::"):
        with pytest.raises(ConfigError, match="-gdb"):
            parse_gdb(text)
