"""What gdb asks and gets; a real gdb is in tests/cli/test_gdbserver.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

import pytest

from shadowvm.debug.gdb_query import PACKET_SIZE
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
    timeline.repeat([])
    session.answer(b"qSupported:multiprocess+;swbreak+")
    return session


def test_the_beginning_of_a_session(session: GdbSession) -> None:
    assert b"ReverseStep+" in session.answer(b"qSupported:multiprocess+;swbreak+")
    assert session.answer(b"vMustReplyEmpty") == session.answer(b"qCRC:100000,10") == b""
    assert session.answer(b"qC") == b"QCp1.1"
    assert session.answer(b"QStartNoAckMode") == b"OK"
    assert session.no_acks
    assert session.answer(b"qfThreadInfo").startswith(b"mp1.1,p1.2")
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
    assert session.answer(b"Hgp1.9") == b"E22"


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
    assert session.take_said() == [b"O" + b"The guest has ended: debug-exit, status 0\n".hex().encode()]
    assert session.answer(b"?") == b"T05replaylog:end;thread:p1.1;"
    assert session.take_said() == []
    assert session.answer(b"k") == b"OK"
    assert session.done


def test_monitor_commands_and_their_complaints(session: GdbSession) -> None:
    def monitor(command: str) -> str:
        return bytes.fromhex(session.answer(b"qRcmd," + command.encode().hex().encode()).decode()).decode()

    session.answer(b"qRcmd," + b"until *main".hex().encode())
    assert "flush" not in monitor("when")
    assert session.answer(b"qRcmd," + b"info tlb".hex().encode()) == b"OK"
    pieces = session.take_said()
    assert max(len(piece) for piece in pieces) <= PACKET_SIZE
    tlb = b"".join(bytes.fromhex(piece[1:].decode()) for piece in pieces).decode()
    assert tlb.splitlines() == session.monitor.execute("info tlb")
    for moved in ("stepi", "set $rax = 7"):
        assert monitor(moved).endswith("gdb does not know that yet: maintenance flush register-cache\n")
    session.timeline.repeat([])
    assert monitor("when").startswith("instruction 0")
    assert b"no command" in bytes.fromhex(session.answer(b"qRcmd," + b"nonsense".hex().encode()).decode())
    assert session.answer(b"qRcmd,zz") == b"E22"


def test_watchpoints_stop_after_the_access_and_back_before_it(session: GdbSession) -> None:
    assert session.answer(b"Z2,300000,10") == b"OK"
    stops = []
    while (reply := session.answer(b"vCont;c:p1.-1")).startswith(b"T05watch:300000;thread:p1.1;"):
        stops.append(session.timeline.position)
        assert session.answer(b"bs").startswith(b"T05thread")
        before = session.answer(b"m300000,10")
        assert session.answer(b"vCont;s:p1.1").startswith(b"T05watch:300000;thread:p1.1;")
        assert session.answer(b"m300000,10") != before
        assert session.timeline.position == stops[-1]
    assert b"replaylog:end" in reply
    assert len(stops) == 2
    for stop in reversed(stops):
        assert session.answer(b"bc") == b"T05watch:300000;thread:p1.1;"
        assert session.timeline.position.instructions == stop.instructions - 1
    assert b"replaylog:begin" in session.answer(b"bc")
    assert session.answer(b"z2,300000,10") == b"OK"
    assert session.answer(b"Z4,300000,0") == b"E22"


def test_writes_are_kept_over_the_way_back(session: GdbSession) -> None:
    session.answer(b"qRcmd," + b"until 400000".hex().encode())
    code = session.answer(b"m101e68,4")
    assert session.answer(b"P3=7856341200000000") == b"OK"
    assert session.answer(b"p3") == b"7856341200000000"
    assert session.answer(b"M101e68,4:" + code) == b"OK"
    assert session.answer(b"X300000,3:ab\xff") == b"OK"
    assert session.answer(b"m300000,3") == b"6162ff"
    here, state = session.timeline.position, session.timeline.call("state_hash")
    session.timeline.back(1000)
    assert session.answer(b"m300000,3") == b"000000"
    session.timeline.go_to(here)
    assert session.timeline.call("state_hash") == state
    everything = bytearray(session.answer(b"g"))
    everything[16 * 9 : 16 * 10] = b"11" * 8
    assert session.answer(b"G" + bytes(everything)) == b"OK"
    assert session.answer(b"p9") == b"11" * 8


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"Mffff800000000000,1:00", b"E14"),
        (b"Mfee00000,1:00", b"E14"),
        (b"M300000,2:00", b"E22"),
        (b"P3=12", b"E22"),
        (b"P999=12", b"E22"),
        (b"P2a=0000008000000000", b"E.cr0 does not take 0x80000000: to the guest it would be #GP"),
        (b"vCont;x", b"E22"),
        (b"vCont;t", b"OK"),
        (b"Z0,10000000000000000,1", b"E22"),
        (b"vFile:open:2f6574632f706173737764,0,0", b"F-1,2"),
        (b"qXfer:threads:read::-1,5", b"E22"),
    ],
)
def test_what_is_refused_changes_nothing(session: GdbSession, packet: bytes, reply: bytes) -> None:
    here = session.timeline.position
    assert session.answer(packet) == reply
    assert session.timeline.position == here


def test_nothing_is_written_inside_of_an_event(session: GdbSession) -> None:
    session.timeline.seek_event(3000)
    assert session.answer(b"P3=7856341200000000").startswith(b"E.inside of an event")
    assert session.answer(b"p3") != b"7856341200000000"


def test_host_threads_are_threads(session: GdbSession) -> None:
    session.answer(b"qRcmd," + b"break mm_vmscan_kswapd_wake".hex().encode())
    reply = session.answer(b"vCont;c:p1.-1")
    said = bytes.fromhex(session.take_said()[0][1:].decode()).decode()
    assert re.fullmatch(r"break \d+ of the monitor: mm_vmscan_kswapd_wake: .+\n", said)
    number = reply.rpartition(b"p1.")[2].rstrip(b";")
    assert int(number, 16) >= 100
    xml = session.answer(b"qXfer:threads:read::0,fff").decode()
    assert f'<thread id="p1.{number.decode()}" name="kswapd0">can run</thread>' in xml
    assert b"kswapd0: can run".hex().encode() == session.answer(b"qThreadExtraInfo,p1." + number)
    assert not set(session.answer(b"g")) - set(b"0x")
    assert session.answer(b"P3=7856341200000000").startswith(b"E.kswapd0 is no vCPU")
    assert session.answer(b"Hgp1.2") == b"OK"
    assert session.answer(b"p10").strip(b"0")


def test_a_range_is_stepped_through_in_one_go(session: GdbSession) -> None:
    session.answer(b"Z0,101e68,1")
    session.answer(b"vCont;c")
    session.answer(b"z0,101e68,1")
    at = session.timeline.position.instructions
    assert session.answer(b"vCont;r101e60,101e83:p1.1;c") == b"T05thread:p1.1;"
    assert session.timeline.position.instructions > at + 2
    rip = int.from_bytes(bytes.fromhex(session.answer(b"p10").decode()), "little")
    assert not 0x101E60 <= rip < 0x101E83


def test_the_image_can_be_read_and_nothing_else(session: GdbSession) -> None:
    path = session.answer(b"qXfer:exec-file:read::0,fff")[1:]
    assert path.endswith(b".elf")
    assert session.answer(b"vFile:open:" + path.hex().encode() + b",0,0") == b"F5"
    assert session.answer(b"vFile:pread:5,4,0") == b"F4;\x7fELF"
    assert session.answer(b"vFile:pread:5,4,fffffffffffffffff") == b"F0;"
    assert session.answer(b"vFile:open:" + path.hex().encode() + b",1,0") == b"F-1,d"


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
