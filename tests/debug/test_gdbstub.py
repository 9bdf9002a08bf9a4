"""What gdb asks and gets; a real gdb is in tests/cli/test_gdbserver.py."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from shadowvm.debug.gdb_registers import REGISTERS
from shadowvm.debug.gdbstub import GdbSession
from shadowvm.debug.timeline import Timeline
from tests.debug.machines import target_of


@pytest.fixture(scope="module")
def timeline() -> Iterator[Timeline]:
    timeline = Timeline(lambda: target_of(smp=2, host_memory=2304 << 10))
    yield timeline
    timeline.close()


@pytest.fixture
def session(timeline: Timeline) -> GdbSession:
    session = GdbSession(timeline)
    session.monitor.execute("restart")
    return session


def test_the_beginning_of_a_session(session: GdbSession) -> None:
    assert b"ReverseStep+" in session.answer(b"qSupported:multiprocess+;swbreak+")
    assert session.answer(b"vMustReplyEmpty") == b""
    assert session.answer(b"QStartNoAckMode") == b"OK"
    assert session.no_acks
    assert session.answer(b"qfThreadInfo") == b"mp1.1,p1.2"
    assert session.answer(b"qsThreadInfo") == b"l"
    assert session.answer(b"?").startswith(b"T05thread:p1.1;")
    xml = session.answer(b"qXfer:features:read:target.xml:0,ffff")
    assert xml.startswith(b"l<?xml")
    assert session.answer(b"qXfer:features:read:target.xml:0,10") == b"m" + xml[1:17]
    assert b'id="p1.2"' in session.answer(b"qXfer:threads:read::0,ffff")


def test_registers_and_memory(session: GdbSession) -> None:
    everything = session.answer(b"g").decode()
    assert len(everything) == sum(each.bits // 4 for each in REGISTERS)
    rip = int.from_bytes(bytes.fromhex(everything[256:272]), "little")
    assert session.answer(b"p10") == everything[256:272].encode()
    code = session.answer(f"m{rip:x},4".encode())
    assert len(code) == 8
    assert session.answer(b"mffff800000000000,1") == b"E14"
    assert session.answer(b"m0,fffff") == b"E22"
    assert session.answer(b"Hgp1.2") == b"OK"
    assert session.answer(b"p10") != everything[256:272].encode()
    assert session.answer(b"Hgp1.9").startswith(b"E.")


def test_steps_breaks_and_the_way_back(session: GdbSession) -> None:
    assert session.answer(b"bs") == b"T05replaylog:begin;thread:p1.1;"
    assert session.answer(b"vCont;s:p1.1;c:p1.-1") == b"T05thread:p1.1;"
    assert session.timeline.position.instructions == 1
    assert session.answer(b"Z0,101e68,1") == b"OK"
    first = session.answer(b"vCont;c:p1.-1")
    assert first == b"T05swbreak:;thread:p1.1;"
    there = session.timeline.position
    session.answer(b"vCont;c:p1.-1")
    assert session.timeline.position > there
    assert session.answer(b"bc") == b"T05swbreak:;thread:p1.1;"
    assert session.timeline.position == there
    assert session.answer(b"bc") == b"T05replaylog:begin;thread:p1.1;"
    assert session.answer(b"z0,101e68,1") == b"OK"
    assert session.answer(b"c") == b"T05replaylog:end;thread:p1.1;"
    assert session.answer(b"k") == b"OK"
    assert session.done


def test_monitor_commands_and_their_complaints(session: GdbSession) -> None:
    assert bytes.fromhex(session.answer(b"qRcmd," + b"when".hex().encode()).decode()).startswith(b"instruction 0")
    assert b"no command" in bytes.fromhex(session.answer(b"qRcmd," + b"nonsense".hex().encode()).decode())
    assert session.answer(b"qRcmd,zz") == b"E22"


def test_no_packet_raises_or_ends_the_session(session: GdbSession) -> None:
    random = Random(7)
    starts = (
        b"m",
        b"p",
        b"Z0,",
        b"z0,",
        b"H",
        b"T",
        b"qXfer:features:read:",
        b"qRcmd,",
        b"qThreadExtraInfo,",
        b"vCont;",
        b"",
    )
    for _ in range(3000):
        tail = bytes(random.choice(b"0123456789abcdef,:;p.-\x00\xff$#g") for _ in range(random.randrange(12)))
        packet = random.choice([*starts, b""]) + tail
        if packet[:1] in (b"c", b"s", b"b", b"D", b"k") or packet.startswith((b"vCont;s", b"vCont;c")):
            continue
        assert isinstance(session.answer(packet), bytes)
    assert not session.done
