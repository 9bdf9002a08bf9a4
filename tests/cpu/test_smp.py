"""Two CPUs over one RAM: code written by one is what the other executes."""

from __future__ import annotations

import struct
import time

import pytest

from shadowvm.addr import Gva, Hpa, Pfn
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.smp import changed_ranges, sync_code
from shadowvm.cpu.unicorn_engine import UnicornEngine
from tests.cpu.machine import CODE, GDT, GDT_ENTRIES, RAX, RBX, STACK, Machine, P, U, W

TARGET, ALIAS = 0x20000, 0x220000
WRITER = 0x21000


class Pair:
    """Two engines with one page table; b's code is a function at TARGET that returns a number in EAX."""

    def __init__(self, frames: int = 1024) -> None:
        self.machine = Machine(frames)
        self.a = self.machine.engine
        self.b = UnicornEngine(self.machine.ram, vcpu_id=1)
        self.machine.ram.code_caches += [self.a.drop_code, self.b.drop_code]
        self.machine.map(ALIAS, TARGET, P | W | U)
        self.machine.code(TARGET, "mov eax,1\n hlt")
        for engine in (self.a, self.b):
            self.start(engine, CODE)
            engine.load_root(Hpa(self.machine.root), engine.cr3, engine.cr0, engine.cr4, engine.efer)

    def start(self, engine: UnicornEngine, entry: int) -> None:
        e = engine
        table = struct.calcsize(f"<{len(GDT_ENTRIES)}Q") - 1
        e.init_long_mode(Gva(entry), self.machine.root, Gva(GDT), table, Gva(STACK))

    def run(self, engine: UnicornEngine, source: str | None = None, entry: int = TARGET) -> None:
        if source is not None:
            self.machine.code(entry, source)
        self.start(engine, entry)
        assert engine.enter() == CpuExit.HLT
        sync_code(engine, [self.b if engine is self.a else self.a])

    def call_b(self) -> int:
        self.run(self.b)
        return self.b.get_reg(RAX)


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.mark.parametrize("va", [TARGET, ALIAS])
def test_a_store_by_one_is_executed_by_the_other(pair: Pair, va: int) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    assert pair.call_b() == 1
    for value in (2, 3, 4):
        pair.a.set_reg(RBX, value)
        pair.run(pair.a, f"mov [{va + 1:#x}],bl\n hlt" if value == 2 else None, WRITER)
        assert pair.call_b() == value


def test_a_writable_entry_from_before_the_frame_became_code_is_seen(pair: Pair) -> None:
    pair.run(pair.a, f"mov byte [{TARGET + 0x800:#x}],5\n hlt", WRITER)
    assert pair.call_b() == 1
    pair.run(pair.a, f"mov byte [{TARGET + 1:#x}],7\n hlt", WRITER + 0x100)
    assert pair.call_b() == 7


def test_both_execute_and_both_write(pair: Pair) -> None:
    pair.run(pair.a)
    for n in range(2, 8):
        writer = pair.a if n % 2 else pair.b
        writer.set_reg(RBX, n)
        pair.run(writer, f"mov [{ALIAS + 1:#x}],bl\n hlt" if n == 2 else None, WRITER)
        assert pair.call_b() == n
        pair.run(pair.a)
        assert pair.a.get_reg(RAX) == n


def test_a_value_that_comes_back_is_seen_each_time(pair: Pair) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.call_b()
    for value in (9, 1, 9, 1):
        pair.a.set_reg(RBX, value)
        pair.run(pair.a, f"mov [{TARGET + 1:#x}],bl\n hlt" if value == 9 else None, WRITER)
        assert pair.call_b() == value


def test_a_host_write_between_two_stores_is_seen(pair: Pair) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.call_b()
    pair.a.set_reg(RBX, 4)
    pair.run(pair.a, f"mov [{TARGET + 1:#x}],bl\n hlt", WRITER)
    assert pair.call_b() == 4
    ram = pair.machine.ram
    ram.b[TARGET + 1] = 6
    ram.code_changed(Pfn(TARGET >> 12))
    assert pair.call_b() == 6
    pair.run(pair.a, None, WRITER)
    assert pair.call_b() == 4, "the copy that a's entry was compared with held a 4 already"


def test_data_beside_code_costs_no_flush(pair: Pair) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.call_b()
    pair.run(pair.a, f"inc dword [{TARGET + 0x800:#x}]\n hlt", WRITER)
    flushes = pair.b.box[mb.EPOCH]
    for _ in range(5):
        pair.run(pair.a, None, WRITER)
        assert pair.call_b() == 1
    assert pair.b.box[mb.EPOCH] == flushes
    assert pair.a.box[mb.SUSPECTS] == 1
    pair.a.flush_tlb()
    sync_code(pair.a, [pair.b])
    assert pair.a.box[mb.SUSPECTS] == 0


def test_more_code_frames_than_slots_are_all_seen() -> None:
    pair = Pair(2048)
    machine, count = pair.machine, mb.CODE_SLOTS + 20
    for i in range(count):
        machine.map(0x400000 + 4096 * i, (600 + i) << 12, P | W | U)
        machine.write((600 + i) << 12, bytes.fromhex("b801000000c3"))
    loop = "mov esi,0x400000\n xor ebp,ebp\n l: call rsi\n add ebp,eax\n add esi,4096\n cmp esi,{end:#x}\n jne l\n hlt"
    source = loop.format(end=0x400000 + 4096 * count)
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.run(pair.b, source, TARGET)
    assert pair.b.get_reg(5) == count
    store = source.replace("call rsi", "mov byte [rsi+1],3").replace("add ebp,eax", "nop")
    pair.run(pair.a, store, WRITER)
    pair.run(pair.b)
    assert pair.b.get_reg(5) == 3 * count


def test_locked_counters_of_two_cpus_add_up(pair: Pair) -> None:
    machine = pair.machine
    machine.code(TARGET, "l: lock inc qword [0x30000]\n dec ecx\n jnz l\n hlt")
    for engine in (pair.a, pair.b):
        pair.start(engine, TARGET)
        engine.set_reg(1, 1000)
    done = 0
    turn, other = pair.a, pair.b
    while done < 2:
        turn.set_budget(37)
        done += turn.enter() == CpuExit.HLT
        sync_code(turn, [other])
        turn, other = (other, turn) if done < 1 or turn.get_reg(1) == 0 else (turn, other)
    assert machine.ram.q[0x30000 >> 3] == 2000


def test_a_recycled_frame_is_no_code_any_more(pair: Pair) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.call_b()
    share = pair.b.code_share
    assert share is not None
    assert share._arena.b[TARGET >> 12] == 1
    pair.b.flush_tlb()
    pair.machine.ram.code_changed(Pfn(TARGET >> 12))
    assert share._arena.b[TARGET >> 12] == 0


def test_changed_ranges_are_whole_chunks() -> None:
    page = bytes(4096)
    assert changed_ranges(page, page) == []
    other = bytearray(page)
    other[0] = other[63] = other[64] = other[4095] = 1
    assert changed_ranges(page, bytes(other)) == [(0, 128), (4032, 4096)]


def test_a_switch_without_suspects_is_cheap(pair: Pair) -> None:
    pair.run(pair.a, "nop\n hlt", WRITER)
    pair.call_b()
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            sync_code(pair.a, [pair.b])
        best = min(best, time.perf_counter() - start)
    assert best / 100 < 5e-6
