from __future__ import annotations

from random import Random

from shadowvm.debug.rsp import INTERRUPT, Packets, frame


def test_a_packet_is_framed_and_read_back_however_it_is_cut() -> None:
    random = Random(1)
    for _ in range(200):
        sent = [bytes(random.randrange(256) for _ in range(random.randrange(1, 40))) for _ in range(5)]
        stream = b"".join(frame(each) for each in sent)
        packets, got = Packets(), []
        while stream:
            size = random.randrange(1, 9)
            got += list(packets.feed(stream[:size]))
            stream = stream[size:]
        assert got == sent
        assert packets.replies == b"+" * len(sent)


def test_a_damaged_packet_is_asked_for_again() -> None:
    packets = Packets()
    assert list(packets.feed(b"$g#00$g#67")) == [b"g"]
    assert packets.replies == b"-+"
    assert list(packets.feed(b"$g#zz\x03$?#3f")) == [INTERRUPT, b"?"]


def test_without_acknowledgements_none_are_sent() -> None:
    packets = Packets()
    packets.acks = False
    assert list(packets.feed(b"+$g#67")) == [b"g"]
    assert packets.replies == b""


def test_what_never_ends_is_dropped() -> None:
    packets = Packets()
    for _ in range(100):
        assert list(packets.feed(b"$" + b"a" * 4096)) == []
    assert list(packets.feed(b"#00$g#67"))[-1:] == [b"g"]
