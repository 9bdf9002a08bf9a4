"""Watchpoints stop after the instruction that accesses, and only there; the TLB goes on as without them."""

from __future__ import annotations

import pytest

from shadowvm.addr import Gva
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.watchpoints import WatchRow
from tests.cpu.machine import CODE, HANDLERS, RSI, FlatMachine, Machine, P, U, W


def stops(machine: Machine, *rows: WatchRow) -> list[tuple[int, int]]:
    """(RIP, bits of the rows that were hit) at each stop, to the HLT."""
    engine, found = machine.engine, []
    engine.watchpoints.set(rows)
    while True:
        reason = engine.watchpoints.enter(engine)
        if reason == CpuExit.DEBUG and engine.watchpoints.is_suspect():
            engine.watchpoints.begin()
            engine.set_budget(1)
            reason = engine.watchpoints.enter(engine)
            engine.set_budget(mb.UNLIMITED)
            engine.watchpoints.end()
        if engine.watchpoints.hits:
            found.append((engine.rip, engine.watchpoints.hits))
            engine.watchpoints.forget()
        elif reason not in (CpuExit.DEBUG, CpuExit.QUANTUM):
            assert reason == CpuExit.HLT
            return found


def reads(address: int, size: int) -> WatchRow:
    return WatchRow(address, size, reads=True)


def writes(address: int, size: int) -> WatchRow:
    return WatchRow(address, size, writes=True)


PATTERNS = (
    # What is watched, an access, whether it hits.
    (writes(0x6004, 4), "mov dword [0x6000],1", False),
    (writes(0x6004, 4), "mov dword [0x6004],1", True),
    (writes(0x6004, 4), "mov dword [0x6008],1", False),
    (writes(0x6004, 4), "mov dword [0x6001],1", True),
    (writes(0x6004, 4), "mov byte [0x6007],1", True),
    (writes(0x6004, 4), "mov byte [0x6003],1", False),
    (writes(0x6004, 4), "mov eax,[0x6004]", False),
    (writes(0x6005, 1), "mov qword [0x6000],rax", True),
    (writes(0x6007, 1), "movups [0x6001],xmm0", True),
    (writes(0x6011, 1), "movups [0x6001],xmm0", False),
    (writes(0x6000, 4), "lock xadd [0x6000],eax", True),
    (writes(0x6000, 4), "inc dword [0x6000]", True),
    (reads(0x6000, 4), "inc dword [0x6000]", True),
    (reads(0x6000, 4), "mov eax,[0x6000]", True),
    (reads(0x6000, 4), "mov [0x6000],eax", False),
    (reads(0x6002, 1), "mov ax,[0x6001]", True),
    (reads(0x6003, 1), "mov ax,[0x6001]", False),
    (reads(0x6000, 1), "cmp byte [0x6000],1", True),
    (writes(0x7FF8, 8), "push rax\n pop rax", True),
    (reads(0x7FF8, 8), "push rax\n add rsp,8", False),
    # Across a page.
    (writes(0x7000, 2), "mov [0x6ffe],eax\n nop", True),
    (writes(0x7002, 2), "mov [0x6ffe],eax\n nop", False),
    (writes(0x6FFE, 1), "mov [0x6ffe],eax", True),
    (writes(0x6FFD, 1), "mov [0x6ffe],eax", False),
    (reads(0x7000, 2), "mov eax,[0x6ffe]", True),
    (reads(0x7002, 2), "mov eax,[0x6ffe]", False),
    (reads(0x6FFC, 2), "mov eax,[0x6ffe]", False),
    (reads(0x6FFF, 1), "mov rax,[0x6ff9]", True),
    (reads(0x7006, 2), "mov rax,[0x6ffe]", False),
    (writes(0x7010, 1), "mov rax,[0x6ffe]", False),
)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("warm", [False, True])
def test_exactly_the_accesses_to_watched_bytes_stop(machine: Machine, warm: bool) -> None:
    wrong = []
    for row, access, hits in PATTERNS:
        length = machine.code(CODE, access)
        machine.code(CODE, f"{access}\n hlt")
        for physical in (False, True):
            machine.engine.watchpoints.set([])
            machine.reset()
            if warm:
                assert machine.engine.enter() == CpuExit.HLT
                machine.engine.rip = CODE
                machine.engine.set_reg(4, 0x8000)
            found = stops(machine, row._replace(physical=physical))
            if not hits:
                wrong += [(row, access, found)] * (found != [])
            elif len(found) != 1 or not CODE < found[0][0] <= CODE + length:
                wrong.append((row, access, found))
    assert not wrong


def test_the_access_is_done_and_nothing_after_it(machine: Machine) -> None:
    machine.code(CODE, "mov dword [0x6000],7\n mov dword [0x6000],8\n mov ecx,1\n mov dword [0x6000],9\n hlt")
    machine.reset()
    machine.engine.watchpoints.set([writes(0x6000, 4)])
    for value in (7, 8, 9):
        assert machine.engine.enter() == CpuExit.DEBUG
        assert machine.ram.q[0x6000 >> 3] & 0xFF != value
        machine.engine.watchpoints.begin()
        machine.engine.set_budget(1)
        machine.engine.enter()
        assert machine.ram.q[0x6000 >> 3] & 0xFF == value
        machine.engine.watchpoints.end()
        machine.engine.watchpoints.forget()
        machine.engine.set_budget(mb.UNLIMITED)
    assert machine.engine.enter() == CpuExit.HLT


def test_a_string_instruction_stops_each_time_round_that_hits(machine: Machine) -> None:
    machine.code(CODE, "mov esi,0x6000\n mov edi,0x7000\n mov ecx,6\n rep movsw\n hlt")
    machine.reset()
    found = stops(machine, reads(0x6004, 4), writes(0x7008, 1))
    assert [bits for _, bits in found] == [1, 1, 2]
    assert machine.reg(RSI) == 0x600C


def test_one_instruction_that_hits_several(machine: Machine) -> None:
    machine.code(CODE, "push qword [0x6000]\n hlt")
    machine.reset()
    assert [bits for _, bits in stops(machine, reads(0x6000, 1), writes(0x7FF8, 1), writes(0x6000, 1))] == [3]


def test_delivery_of_an_event_stops_before_its_handler(machine: Machine) -> None:
    machine.code(HANDLERS, "hlt")
    machine.gate(6, HANDLERS)
    machine.code(CODE, "mov ebx,1\n ud2")
    machine.reset()
    assert stops(machine, writes(0x7FE0, 8)) == [(HANDLERS, 1)]


def test_an_instruction_that_faults_has_hit_nothing(machine: Machine) -> None:
    machine.code(HANDLERS, "hlt")
    machine.gate(0, HANDLERS)
    machine.code(CODE, "xor ecx,ecx\n div dword [0x6000]")
    machine.write(0x6000, bytes(4))
    machine.reset()
    assert stops(machine, reads(0x6000, 4)) == []
    assert machine.engine.rip == HANDLERS + 1


def test_real_mode() -> None:
    machine = FlatMachine()
    machine.real("hlt")
    machine.code(CODE, "mov ax,0x500\n mov ds,ax\n mov byte [0x1000],1\n mov ax,[0x1002]\n hlt", 16)
    machine.engine.rip = CODE
    assert [rip - CODE for rip, _ in stops(machine, writes(0x6000, 4), reads(0x6003, 1))] == [10, 13]


@pytest.mark.parametrize("mask", [3, 7])
def test_the_tlb_misses_as_without_watchpoints(mask: int) -> None:
    """Pages that share places of the TLB, in turn; entries of some are watched. Those of 4 MiB fit into TLB and victim
    TLB, which is where many are found then; those of 8 do not."""
    source = f"""
    mov ecx,300
    l: mov rax,rcx
    and eax,{mask}
    shl eax,20
    mov edx,ecx
    and edx,3
    shl edx,12
    add eax,edx
    inc dword [rax+0x200000]
    mov [rax+0x201000],cl
    mov ebx,[rax+0x200ffe]
    test ecx,31
    jnz n
    invlpg [rax+0x200000]
    n: loop l
    hlt"""
    beside = [reads(0x200500 + 0x1000 * n, 0x10) for n in range(3)]
    beside.append(WatchRow(0x7500, 8, reads=True, writes=True, physical=True))
    counts, found = [], []
    for rows in ((), beside, [reads(0x200000, 1 << 24)]):
        machine = Machine()
        for n in range(8):
            for page in range(5):
                machine.map(0x200000 + (n << 20) + (page << 12), 0x5000 + (page << 12) * (n % 2 + 1), P | W | U)
        machine.code(CODE, source)
        machine.reset()
        found.append(len(stops(machine, *rows)))
        counts.append((machine.engine.box[mb.FILLS], bytes(machine.ram.b[: 1 << 20])))
        machine.engine.close()
    assert found[0] == found[1] == 0
    assert found[2] == 2 * 300
    assert counts[0] == counts[1]
    assert counts[0][1] == counts[2][1]
    assert (counts[0][0] < 150) == (mask == 3)


def test_a_page_that_is_flushed_is_looked_up_again(machine: Machine) -> None:
    entry = machine.map(0x300000, 0x6000, P | W | U)
    machine.code(CODE, "mov eax,[0x300000]\n hlt\n mov ebx,[0x300000]\n hlt")
    machine.write(0x6000, b"\1\0\0\0")
    machine.write(0x7000, b"\2\0\0\0")
    machine.reset()
    row = WatchRow(0x300000, 4, reads=True)
    assert len(stops(machine, row)) == 1
    machine.ram.q[entry] = 0x7000 | P | W | U
    machine.engine.flush_page(Gva(0x300000))
    assert len(stops(machine, row)) == 1
    assert (machine.reg(0), machine.reg(3)) == (1, 2)
