"""What the writer keeps in memory, and what it does when things end badly."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import pytest

from shadowvm.config import MIB, MachineConfig
from shadowvm.events import kvm_get_dirty_log, sched_wakeup
from shadowvm.guests import find_image
from shadowvm.machine import Machine
from shadowvm.trace.writer import CHUNK_EVENTS, CHUNK_LISTED, TraceWriter


class Pieces:
    """What was written, write by write."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)


@pytest.fixture(scope="module")
def machine() -> Any:
    machine = Machine(MachineConfig(find_image("hello")[1], "hello", 2 * MIB, 2 * MIB), lambda byte: None)
    yield machine
    machine.close()


def test_a_full_chunk_is_written_at_once(machine: Machine) -> None:
    file = Pieces()
    with TraceWriter(machine, file).watching():
        for _ in range(CHUNK_EVENTS - 1):
            sched_wakeup("kswapd0")
        assert len(file.pieces) == 1, "the head"
        sched_wakeup("kswapd0")
        assert len(file.pieces) == 2
        for _ in range(3):
            kvm_get_dirty_log(0, range(CHUNK_LISTED // 2), True)
        assert len(file.pieces) == 3, "long lists fill a chunk, too"
    assert [piece[:4] for piece in file.pieces[1:]] == [b"EVTS", b"EVTS", b"EVTS", b"TAIL"]


def test_what_was_recorded_is_written_when_the_run_fails(machine: Machine) -> None:
    file = Pieces()
    with suppress(KeyError), TraceWriter(machine, file).watching():
        sched_wakeup("kswapd0")
        raise KeyError
    assert [piece[:4] for piece in file.pieces[1:]] == [b"EVTS", b"TAIL"]
    assert not sched_wakeup.on


def test_a_write_that_fails_is_the_last_one(machine: Machine) -> None:
    class Full(Pieces):
        def write(self, data: bytes) -> None:
            super().write(data)
            if len(self.pieces) == 2:
                raise OSError

    file = Full()
    with suppress(OSError), TraceWriter(machine, file).watching():
        for _ in range(2 * CHUNK_EVENTS):
            sched_wakeup("kswapd0")
    assert len(file.pieces) == 2
    assert not sched_wakeup.on


def test_a_signal_while_a_chunk_is_written_ends_the_run_after_it(machine: Machine) -> None:
    class Interrupted(Pieces):
        def write(self, data: bytes) -> None:
            if len(self.pieces) == 1:
                signal.raise_signal(signal.SIGINT)
            super().write(data)

    file = Interrupted()
    ended = False
    try:
        with TraceWriter(machine, file).watching():
            for _ in range(CHUNK_EVENTS):
                sched_wakeup("kswapd0")
    except KeyboardInterrupt:
        ended = True
    assert ended
    assert [piece[:4] for piece in file.pieces[1:]] == [b"EVTS", b"TAIL"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
