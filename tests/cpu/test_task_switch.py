"""Task switches that a missing page interrupts: they go on where they were, and happen once."""

from __future__ import annotations

import struct

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.segments import Segment
from tests.cpu.machine import CODE, GDT, HANDLERS, IDT, TSS, FlatMachine, P, U, W

RAX, RCX, RDX, RBX, RSP = range(5)
OTHER, LDT, OTHER_STACK = 0x6000, 0xA000, 0xC000
OTHER_TASK, OTHER_LDT, IN_LDT = 0x40, 0x48, 0xC
NESTED = 1 << 14
BUSY_TASK, FREE_TASK = 0x8B, 0x89


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> FlatMachine:
    return FlatMachine(counting=request.param)


def two_tasks(machine: FlatMachine, source: str, handler: str, vector: int, ds: int = 0x10) -> None:
    """The second task runs `handler` when `vector` comes or its TSS is called; its LDT has one data segment."""
    state = [0] * 26
    state[8], state[9], state[14], state[10] = HANDLERS, 2, OTHER_STACK + 8, 0x55  # eip, eflags, esp, eax
    state[18:24], state[24] = [0x10, 8, 0x10, ds, 0x10, 0x10], OTHER_LDT
    machine.code(HANDLERS, handler, 32)
    machine.code(CODE, source, 32)
    machine.reset()
    machine.write(OTHER, struct.pack("<26I", *state))
    machine.write(GDT + OTHER_TASK, struct.pack("<QQ", *(task(OTHER, FREE_TASK), 0xFF | LDT << 16 | 0x82 << 40)))
    machine.engine.gdtr = machine.engine.gdtr._replace(limit=0x57)
    machine.write(LDT + 8, struct.pack("<Q", 0x00CF93000000FFFF))
    machine.write(IDT + 8 * vector, struct.pack("<HHBBH", 0, OTHER_TASK, 0, 0x85, 0))


def task(base: int, kind: int) -> int:
    return 0x67 | base << 16 | kind << 40


def pte(machine: FlatMachine, page: int) -> int:
    """Index of the entry that maps a page of the low megabyte."""
    directory = machine.ram.q[machine.root >> 3] & 0xFFFFFFFFFF000
    return ((machine.ram.q[directory >> 3] & 0xFFFFFFFFFF000) >> 3) + (page >> 12)


def run_with_holes(machine: FlatMachine, *pages: int) -> list[int]:
    """Run with `pages` absent until each is missed; what was missed."""
    for page in pages:
        machine.ram.q[pte(machine, page)] = 0
    machine.engine.flush_tlb()
    missed = []
    code = machine.engine.enter()
    while code == CpuExit.WALK_FAULT and len(missed) < 10:
        assert machine.engine.vectoring() is None or machine.engine.tr.base == TSS
        missed.append(machine.exit[0] & ~0xFFF)
        machine.ram.q[pte(machine, missed[-1])] = missed[-1] | P | W | U
        event = machine.engine.vectoring()
        if event is not None:
            machine.engine.requeue(event)
        code = machine.engine.enter()
    assert code == CpuExit.HLT
    return missed


def test_an_error_code_reaches_a_stack_that_was_missing(machine: FlatMachine) -> None:
    handler = "pop edx\n mov esi,esp\n mov edi,[0x6000]\n hlt"
    two_tasks(machine, "mov ebx,7\n mov fs,[0x1f00]\n mov ecx,8\n hlt", handler, 13)
    machine.write(0x1F00, struct.pack("<H", 0x7770))
    assert run_with_holes(machine, OTHER_STACK) == [OTHER_STACK]
    assert (machine.reg(RDX), machine.reg(6), machine.reg(7)) == (0x7770, OTHER_STACK + 8, 0x28)
    assert machine.engine.rflags & NESTED
    assert struct.unpack_from("<I", machine.ram.b, TSS + 0x20)[0] == CODE + 5
    assert machine.engine.box[mb.TASK_PENDING] == 0


@pytest.mark.parametrize("entry", ["int 0x20", f"call {OTHER_TASK}:0", f"jmp {OTHER_TASK}:0"])
def test_an_ldt_that_was_missing_is_read_when_it_is_there(machine: FlatMachine, entry: str) -> None:
    back = "iret" if "jmp" not in entry else "jmp 0x28:0"
    handler = f"inc eax\n mov dx,ds\n mov [0x1f00],dx\n {back}"
    two_tasks(machine, f"mov ebx,7\n {entry}\n mov ecx,8\n hlt", handler, 0x20, IN_LDT)
    assert run_with_holes(machine, LDT) == [LDT]
    assert (machine.reg(RBX), machine.reg(RCX)) == (7, 8)
    assert struct.unpack_from("<H", machine.ram.b, 0x1F00)[0] == IN_LDT
    assert struct.unpack_from("<I", machine.ram.b, OTHER + 40)[0] == 0x56
    assert machine.ram.b[GDT + 0x28 + 5] == BUSY_TASK
    assert machine.ram.b[GDT + OTHER_TASK + 5] == FREE_TASK


def test_pages_may_be_missing_one_after_the_other(machine: FlatMachine) -> None:
    two_tasks(machine, "mov ebx,7\n mov fs,[0x1f00]\n hlt", "pop edx\n mov esi,esp\n hlt", 13, IN_LDT)
    machine.write(0x1F00, struct.pack("<H", 0x7770))
    assert sorted(run_with_holes(machine, LDT, OTHER_STACK, OTHER)) == [OTHER, LDT, OTHER_STACK]
    assert (machine.reg(RDX), machine.reg(6), machine.reg(RBX)) == (0x7770, OTHER_STACK + 8, 0)
    assert machine.engine.tr == Segment(OTHER_TASK, OTHER, 0x67, machine.engine.tr.flags)
    assert struct.unpack_from("<I", machine.ram.b, TSS + 0x34)[0] == 7
