"""Translated code and the frames it came from: self-modification, aliases, frames that get other contents."""

from __future__ import annotations

import pytest

from shadowvm.addr import Pfn
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import FETCH, CpuExit, WalkFault
from tests.cpu.machine import NX, Machine, P, U, W

FUNCTION = 0x20000
CALLS = """mov rbx,{function}
mov rdi,{store}
mov al,[rdi]
mov [rdi],al
call rbx
mov r8d,edx
mov byte [rdi],0x22
call rbx
mov r9d,edx
mov byte [rdi],0x33
call rbx
mov r10d,edx
mov byte [rdi],0x44
call rbx
mov r11d,edx
hlt"""


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


@pytest.mark.parametrize("store", [0x20001, 0x420001], ids=["same page", "alias"])
def test_code_that_is_stored_to_runs_in_its_new_form(machine: Machine, store: int) -> None:
    machine.map(0x420000, FUNCTION, P | W | U)
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    assert machine.run(CALLS.format(function=FUNCTION, store=store)) == CpuExit.HLT
    assert [machine.reg(r) for r in (8, 9, 10, 11)] == [0x11, 0x22, 0x33, 0x44]


def test_two_aliases_and_a_first_store_before_the_first_fetch(machine: Machine) -> None:
    machine.map(0x420000, FUNCTION, P | W | U)
    machine.map(0x520000, FUNCTION, P | W | U)
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    source = (
        f"mov byte [0x420001],0x12\n mov byte [0x520001],0x13\n mov rbx,{FUNCTION}\n call rbx\n mov r8d,edx\n"
        "mov byte [0x420001],0x14\n call rbx\n mov r9d,edx\n mov byte [0x520001],0x15\n call rbx\n hlt"
    )
    assert machine.run(source) == CpuExit.HLT
    assert (machine.reg(8), machine.reg(9), machine.reg(2)) == (0x13, 0x14, 0x15)


def test_a_store_to_an_executed_frame_does_not_open_the_page_to_fetches(machine: Machine) -> None:
    machine.map(0x420000, FUNCTION, P | W | U | NX)
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    source = f"mov rbx,{FUNCTION}\n call rbx\n mov rdi,0x420010\n mov [rdi],al\n mov [rdi+1],al\n jmp rdi"
    assert machine.run(source) == CpuExit.WALK_FAULT
    assert machine.exit[:2] == (0x420010, FETCH)
    assert machine.engine.box[mb.EXIT_WHY] == WalkFault.NX
    assert machine.engine.executed[FUNCTION >> 12] == 1


def test_stores_to_frames_that_never_ran_are_not_slow(machine: Machine) -> None:
    """A store with X in its TLB entry stays on the slow path for ever; a data page must not get one."""
    machine.map(0x420000, 0x40000, P | W | U)
    assert machine.run("mov rdi,0x420000\n mov [rdi],rax\n hlt") == CpuExit.HLT
    assert machine.engine.executed[0x40] == 0


def test_a_frame_with_new_contents_runs_them_after_drop_code(machine: Machine) -> None:
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    call = f"mov rbx,{FUNCTION}\n call rbx\n hlt"
    assert machine.run(call) == CpuExit.HLT
    machine.ram.b[FUNCTION + 1] = 0x77
    machine.engine.drop_code(Pfn(FUNCTION >> 12))
    assert machine.run(None) == CpuExit.HLT
    assert machine.reg(2) == 0x77


def test_drop_code_without_a_flush_still_sees_later_stores(machine: Machine) -> None:
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    source = (
        f"mov rbx,{FUNCTION}\n call rbx\n out 0x10,al\n call rbx\n mov r8d,edx\nmov byte [rbx+1],0x55\n call rbx\n hlt"
    )

    def rewrite(port: int, size: int, value: int) -> None:
        machine.ram.b[FUNCTION + 1] = 0x33
        machine.engine.drop_code(Pfn(FUNCTION >> 12))

    machine.engine.on_out(rewrite)
    assert machine.run(source) == CpuExit.HLT
    assert (machine.reg(8), machine.reg(2)) == (0x33, 0x55)


def test_a_frame_recycled_under_another_address(machine: Machine) -> None:
    """Frame A runs, is unmapped, comes back with other code at another address: no trace of the old."""
    machine.code(FUNCTION, "mov edx,0x11\n ret")
    at = machine.map(0x600000, FUNCTION, P | W | U)
    assert machine.run("mov rbx,0x600000\n call rbx\n hlt") == CpuExit.HLT
    machine.ram.q[at] = 0
    machine.engine.flush_tlb()
    machine.engine.drop_code(Pfn(FUNCTION >> 12))
    assert machine.engine.executed[FUNCTION >> 12] == 0
    machine.code(FUNCTION, "mov edx,0x99\n ret")
    machine.map(0x700000, FUNCTION, P | W | U)
    assert machine.run("mov rbx,0x700000\n call rbx\n hlt") == CpuExit.HLT
    assert machine.reg(2) == 0x99
    assert machine.run("mov rbx,0x600000\n call rbx\n hlt") == CpuExit.WALK_FAULT
