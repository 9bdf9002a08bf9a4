from __future__ import annotations

import json
import struct

import pytest

from shadowvm.devices.acpi import acpi_files
from shadowvm.devices.bus import MmioBus, PortBus
from shadowvm.devices.pc import Pc, PcConfig, PcHooks


class Board:
    """A PC on its buses, with time moved by hand."""

    def __init__(self, **config):
        self.retired = 0
        self.calls = []
        hooks = PcHooks(
            reset=lambda: self.calls.append("reset"),
            power_off=lambda: self.calls.append("off"),
            a20=lambda enabled: self.calls.append(f"a20 {enabled}"),
            flush_page=lambda gpa: self.calls.append(hex(gpa)),
        )
        self.pc = Pc(PcConfig(**config), hooks, lambda: self.retired)
        self.ports, self.mmio = PortBus(), MmioBus()
        self.pc.register(self.ports, self.mmio)

    def out(self, port, value, size=1):
        self.ports.write(port, size, value)

    def advance(self, ns):
        end = self.pc.clock.now() + ns
        while (deadline := self.pc.clock.next_deadline()) is not None and deadline <= end:
            self.retired += max(0, deadline - self.pc.clock.now())
            self.pc.clock.run_due()
        self.retired += end - self.pc.clock.now()

    def interrupt(self, cpu=0):
        """What the vCPU does at an entry with interrupts open."""
        lapic = self.pc.lapics[cpu]
        if lapic.extint_pending:
            return self.pc.pic.acknowledge()
        return lapic.acknowledge() if lapic.pending_vector() is not None else None


@pytest.fixture
def board():
    return Board()


def test_after_the_bios_the_timer_ticks_through_the_8259(board):
    board.pc.bios_defaults()
    ticks = 0
    for _ in range(200):
        board.advance(5_000_000)
        if board.interrupt() == 0x08:
            ticks += 1
            board.out(0x20, 0x20)
    assert ticks == 18
    assert [board.ports.read(port, 1) for port in (0x21, 0xA1, 0x4D1, 0x64, 0x92)] == [
        0xB8,
        0x8E,
        0x0C,
        0x1C,
        2,
    ]


def test_the_same_timer_reaches_pin_2_of_the_ioapic(board):
    board.pc.bios_defaults()
    board.out(0x21, 0xFF)
    board.mmio.write(0xFEC00000, 4, 0x14)
    board.mmio.write(0xFEC00010, 4, 0x44)
    board.advance(60_000_000)
    assert board.interrupt() == 0x44


def test_keyboard_and_clock_have_their_vectors(board):
    board.pc.bios_defaults()
    board.out(0x60, 0xEE)
    assert board.interrupt() == 0x09
    board.ports.read(0x60, 1)
    board.out(0x20, 0x20)
    board.out(0x70, 0x120B, size=2)
    board.advance(10**9)
    vectors = []
    while (vector := board.interrupt()) is not None:
        vectors.append(vector)
        board.out(0xA0, 0x20)
        board.out(0x20, 0x20)
    assert 0x70 in vectors


def test_the_test_device_drives_lines_and_the_ioapic_delivers(board):
    board.pc.bios_defaults()
    board.mmio.write(0xFEC00000, 4, 0x10 + 2 * 14)
    board.mmio.write(0xFEC00010, 4, 0x76)
    board.out(0x200E, 1)
    board.out(0x200E, 0)
    assert board.pc.lapics[0].acknowledge() == 0x76


def test_hooks(board):
    board.out(0x64, 0xFE)
    board.out(0xCF9, 6)
    board.out(0x92, 0)
    board.out(0x604, 0x2000, size=2)
    board.out(0xE4, 0x5678, size=4)
    for letter in b"Shutdown":
        board.out(0x8900, letter)
    assert board.calls == ["reset", "reset", "a20 False", "off", "0x5000", "off"]


def test_firmware_finds_memory_and_cpus():
    board = Board(cpus=3, below_4g=3 << 30, above_4g=1 << 30)
    board.out(0x510, 3, size=2)
    size = bytes(board.ports.read(0x511, 1) for _ in range(8))
    assert int.from_bytes(size, "little") == 4 << 30
    board.out(0x70, 0x5F)
    assert board.ports.read(0x71, 1) == 2


def read_file(board, name):
    """A file of fw_cfg, as firmware finds it."""
    board.out(0x510, 0x19, size=2)
    read = lambda size: bytes(board.ports.read(0x511, 1) for _ in range(size))  # noqa: E731
    for _ in range(int.from_bytes(read(4), "big")):
        entry = read(64)
        if entry[8:].rstrip(b"\0") == name:
            board.out(0x510, int.from_bytes(entry[4:6], "big"), size=2)
            return read(int.from_bytes(entry[:4], "big"))
    raise LookupError(name)


def test_firmware_finds_the_map_and_acpi_tables():
    assert read_file(Board(), b"etc/e820") == struct.pack("<QQI", 0, 64 << 20, 1)
    board = Board(cpus=3, below_4g=3 << 30, above_4g=1 << 30)
    assert read_file(board, b"etc/e820") == struct.pack("<QQIQQI", 0, 3 << 30, 1, 4 << 30, 1 << 30, 1)
    for name, data in acpi_files(3).items():
        assert read_file(board, name.encode()) == data


def test_features_reach_the_local_apics():
    lapic = Board(x2apic=False, tsc_deadline=False).pc.lapics[0]
    assert not lapic.write_msr(0x1B, 0xFEE00D00)
    assert lapic.read_msr(0x6E0) is None


def test_reset_is_power_up_but_for_time_and_nvram(board):
    fresh = Board().pc.state()
    board.pc.bios_defaults()
    board.out(0x70, 0x0F)
    board.out(0x71, 0x0A)
    board.out(0x2005, 1)
    board.pc.lapics[0].write(0x380, 1000)
    board.advance(100_000_000)
    board.pc.reset()
    state = board.pc.state()
    assert {name for name in state if state[name] != fresh[name]} == {"clock", "rtc"}
    assert board.pc.clock.next_deadline() is None
    assert board.ports.read(0x71, 1) == 0x0A


def test_a_restored_pc_goes_on_as_the_first_would_have():
    boards = [Board(cpus=2), Board(cpus=2)]
    first, second = boards
    first.pc.bios_defaults()
    first.pc.lapics[1].write(0xF0, 0x1FF)
    first.pc.lapics[1].write(0x320, 0x200E0)
    first.pc.lapics[1].write(0x380, 12345)
    first.out(0x70, 0x0B)
    first.out(0x71, 0x52)
    first.advance(77_777_777)
    second.retired = first.retired
    second.pc.load(json.loads(json.dumps(first.pc.state())))
    assert second.pc.state() == first.pc.state()
    histories = []
    for board in boards:
        history = []
        for _ in range(300):
            board.advance(1_000_003)
            history.append((board.interrupt(0), board.interrupt(1)))
            board.out(0x20, 0x20)
            board.pc.lapics[1].end_of_interrupt()
        histories.append(history)
    assert histories[0] == histories[1]
    assert {vector for pair in histories[0] for vector in pair} == {None, 0x08, 0x70, 0xE0}
