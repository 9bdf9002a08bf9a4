from __future__ import annotations

import json

import pytest

from shadowvm.devices.clock import VirtualClock
from shadowvm.devices.irq import IrqLine
from shadowvm.devices.uart import COM1, Uart
from shadowvm.devices.uart_rx import CHARACTER_NS, FIFO_SIZE

DATA, IER, FCR, _, MCR, LSR = range(COM1, COM1 + 6)
IIR = FCR
LOOP, RDI, RLSI = 0x10, 1, 4
TEXT = b"the quick brown fox jumps"


class Line:
    """COM1 with `line` at its other end."""

    def __init__(self, line: bytes = TEXT) -> None:
        self.clock = VirtualClock(lambda: 0)
        self.irq = IrqLine()
        self.uart = Uart(lambda byte: None, self.clock, self.irq, line)

    def inb(self, port: int) -> int:
        return self.uart.port_read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.uart.port_write(port, 1, value)

    def wait(self, characters: int = 1) -> None:
        """Let time pass, in characters of the line."""
        end = self.clock.now() + characters * CHARACTER_NS
        while (deadline := self.clock.next_deadline()) is not None and deadline <= end:
            self.clock.skip_to_next()
            self.clock.run_due()
        self.clock.offset = end

    def poll(self) -> bytes:
        """What a polling guest reads until the line is quiet."""
        found = bytearray()
        while self.inb(LSR) & 1 or self.clock.next_deadline() is not None:
            self.wait(0 if self.inb(LSR) & 1 else 1)
            if self.inb(LSR) & 1:
                found.append(self.inb(DATA))
        return bytes(found)


@pytest.mark.parametrize("fcr", [0, 0x01, 0x41, 0xC1])
def test_a_guest_that_polls_reads_every_byte_once(fcr: int) -> None:
    line = Line()
    line.outb(FCR, fcr)
    assert line.poll() == TEXT
    assert (line.inb(LSR) & 1, line.inb(DATA), line.irq.level) == (0, 0, 0)


def test_the_line_is_silent_until_the_guest_listens() -> None:
    line = Line()
    line.wait(100)
    assert line.inb(DATA) == 0
    line.outb(IER, 2)
    assert line.clock.next_deadline() is None
    line.outb(IER, RDI)
    assert [line.inb(DATA), line.irq.level] == [0, 0], "a driver reads once to clear what may be left"
    line.wait()
    assert [line.irq.level, line.inb(IIR)] == [1, 4]
    line.wait(10)
    assert [line.inb(IIR), line.inb(DATA)] == [4, ord("t")], "only a FIFO has a timeout"
    assert [line.irq.level, line.inb(IIR)] == [0, 1]
    line.wait()
    assert [line.irq.level, line.inb(DATA)] == [1, ord("h")]


def test_nobody_hears_of_bytes_without_the_interrupt_enabled() -> None:
    line = Line()
    assert line.inb(LSR) & 1 == 0
    line.wait(3)
    assert [line.inb(LSR) & 1, line.irq.level] == [1, 0]
    line.outb(IER, RDI)
    assert line.irq.level == 1
    line.outb(IER, 0)
    assert line.irq.level == 0
    assert line.inb(DATA) == ord("t")


@pytest.mark.parametrize(("bits", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_the_fifo_interrupts_at_its_trigger(bits: int, trigger: int) -> None:
    line = Line()
    line.outb(FCR, bits)
    line.outb(IER, RDI)
    line.wait(trigger - 1)
    assert line.irq.level == 0
    line.wait()
    assert [line.irq.level, line.inb(IIR)] == [1, 0xC4]
    assert line.inb(DATA) == ord("t")
    assert line.irq.level == 0


def test_bytes_below_the_trigger_interrupt_after_four_characters_of_silence() -> None:
    line = Line(b"ab")
    line.outb(FCR, 0xC1)
    line.outb(IER, RDI)
    line.wait(2 + 3)
    assert line.irq.level == 0
    line.wait()
    assert [line.irq.level, line.inb(IIR), line.inb(DATA)] == [1, 0xCC, ord("a")]
    assert line.irq.level == 0
    line.wait(4)
    assert [line.inb(IIR), line.inb(DATA)] == [0xCC, ord("b")]
    line.wait(10)
    assert line.irq.level == 0


def test_the_line_waits_while_the_fifo_is_full() -> None:
    line = Line()
    line.outb(FCR, 0x01)
    line.outb(IER, RDI)
    line.wait(100)
    assert line.inb(LSR) & 3 == 1, "no overrun"
    assert bytes(line.inb(DATA) for _ in range(FIFO_SIZE + 1)) == TEXT[:FIFO_SIZE] + b"\0"
    assert line.poll() == TEXT[FIFO_SIZE:]


@pytest.mark.parametrize("throw_away", [(FCR, 0x03), (FCR, 0x00), (MCR, LOOP)])
def test_bytes_thrown_away_unread_come_again(throw_away: tuple[int, int]) -> None:
    line = Line()
    line.outb(FCR, 0x01)
    line.outb(IER, RDI)
    line.wait(5)
    assert line.inb(DATA) == ord("t")
    line.outb(*throw_away)
    assert [line.inb(LSR) & 1, line.inb(DATA), line.irq.level] == [0, 0, 0]
    line.outb(MCR, 0)
    assert line.poll() == TEXT[1:]


def test_the_loop_takes_the_line_s_place() -> None:
    line = Line()
    line.outb(IER, RDI)
    line.outb(MCR, LOOP)
    line.wait(5)
    assert line.irq.level == 0
    line.outb(DATA, 0xAE)
    assert [line.irq.level, line.inb(DATA), line.irq.level] == [1, 0xAE, 0]


def test_an_overrun_in_the_loop_is_told_once() -> None:
    line = Line()
    line.outb(IER, RLSI | RDI)
    line.outb(MCR, LOOP)
    line.outb(DATA, 1)
    line.outb(DATA, 2)
    assert [line.inb(IIR), line.inb(LSR) & 3, line.inb(IIR), line.inb(LSR) & 3] == [6, 3, 4, 1]
    assert line.inb(DATA) == 2
    line.outb(FCR, 0x01)
    for value in range(FIFO_SIZE + 1):
        line.outb(DATA, value)
    assert line.inb(LSR) & 2
    assert [line.inb(DATA) for _ in range(FIFO_SIZE)] == list(range(FIFO_SIZE))


def test_state_round_trip_with_a_character_on_its_way() -> None:
    line, other = Line(), Line()
    line.outb(FCR, 0x81)
    line.outb(IER, RDI)
    line.wait(3)
    other.clock.load(line.clock.state())
    other.uart.load(json.loads(json.dumps(line.uart.state())))
    assert other.uart.state() == line.uart.state()
    for each in (line, other):
        each.wait(5)
        assert [each.irq.level, each.inb(IIR)] == [1, 0xC4]
    assert other.poll() == TEXT
