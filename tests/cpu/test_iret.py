"""IRET while FS or GS is loaded: the bases stay when the selectors become null."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from tests.cpu.machine import CODE, HANDLERS, STACK, TO_USER, USER_CODE, Machine, P, U, W

RCX, RBX, RSP, RSI, RDI = 1, 3, 4, 6, 7
R8, R9, R12 = 8, 9, 12
LOAD = "mov fs,eax\n mov gs,eax\n int 0x44\n "
"""The INT lets the engine see the selectors; in a kernel any exit does."""
BASES = "mov ecx,0xc0000100\n mov eax,0x5000\n xor edx,edx\n wrmsr\n inc ecx\n mov eax,0x5800\n wrmsr\n "
PUSH = f"sub rsp,20\n mov dword [rsp],there\n mov dword [rsp+4],8\n mov dword [rsp+8],2\n mov dword [rsp+12],{STACK}\n "


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    machine = Machine(counting=request.param)
    machine.code(HANDLERS, "iretq")
    machine.gate(0x44, HANDLERS)
    machine.code(0x1F000, "hlt")
    machine.gate(0xF0, 0x1F000, dpl=3)
    return machine


def run(machine: Machine, source: str) -> int:
    machine.code(CODE, source)
    machine.reset()
    return machine.engine.enter()


def test_fs_and_gs_keep_their_bases_at_cpl_3(machine: Machine) -> None:
    machine.write(0x5000, b"\x11" * 8)
    machine.write(0x5800, b"\x22" * 8)
    machine.code(USER_CODE, "mov r8,[fs:abs 0]\n mov r9,[gs:abs 0]\n mov esi,fs\n mov edi,gs\n int 0xf0")
    assert run(machine, f"mov eax,0x10\n {LOAD}{BASES}{TO_USER}") == CpuExit.HLT
    assert (machine.reg(R8), machine.reg(R9)) == (0x1111111111111111, 0x2222222222222222)
    assert (machine.reg(RSI), machine.reg(RDI)) == (0, 0)


def test_a_selector_for_cpl_3_stays(machine: Machine) -> None:
    machine.code(USER_CODE, "mov esi,fs\n int 0xf0")
    assert run(machine, f"mov eax,0x1b\n {LOAD}{TO_USER}") == CpuExit.HLT
    assert machine.reg(RSI) == 0x1B


@pytest.mark.parametrize(("selector", "expected"), [(0, 0), (0x10, 2)])
def test_null_selectors_cost_nothing(machine: Machine, selector: int, expected: int) -> None:
    assert run(machine, f"mov eax,{selector}\n {LOAD}int 0x44\n hlt") == CpuExit.HLT
    assert machine.engine.box[mb.INTERCEPTS] == expected


@pytest.mark.parametrize("insn", ["iretd", "rep iretd"])
def test_the_operand_size_counts(machine: Machine, insn: str) -> None:
    source = f"mov eax,0x10\n {LOAD}{PUSH}mov dword [rsp+16],0x10\n {insn}\n hlt\n there: mov ebx,7\n hlt"
    assert run(machine, source) == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RSP)) == (7, STACK)


def test_16_bit_operands(machine: Machine) -> None:
    frame = f"sub rsp,10\n mov word [rsp],there\n mov word [rsp+2],8\n mov word [rsp+4],2\n mov word [rsp+6],{STACK}\n "
    source = f"mov eax,0x10\n {LOAD}{frame}mov word [rsp+8],0x10\n o16 iret\n hlt\n there: mov ebx,7\n hlt"
    assert run(machine, source) == CpuExit.HLT
    assert (machine.reg(RBX), machine.reg(RSP)) == (7, STACK)


@pytest.mark.parametrize("selector", [0, 0x10])
def test_a_single_step_traps_after_iret(machine: Machine, selector: int) -> None:
    handler = "inc r12\n mov r8,[rsp]\n cmp r12d,4\n jb go\n and qword [rsp+16],~0x100\n go: iretq"
    machine.code(HANDLERS + 0x400, handler)
    machine.gate(1, HANDLERS + 0x400)
    frame = "mov rbx,rsp\n push 0x10\n push rbx\n push 0x102\n push 8\n push there\n "
    step = "pushfq\n or qword [rsp],0x100\n popfq\n nop\n iretq\n hlt\n there: nop\n nop\n mov r9,there\n hlt"
    assert run(machine, f"xor r12,r12\n mov eax,{selector}\n {LOAD}{frame}{step}") == CpuExit.HLT
    assert machine.reg(R12) == 4
    assert machine.reg(R8) == machine.reg(R9) + 2


def test_a_fault_on_its_stack_is_an_exit_and_it_goes_again(machine: Machine) -> None:
    at = machine.map(0x6000, 0x6000, P | W | U)
    frame = "mov rbx,rsp\n mov rsp,0x7000\n push 0x10\n push rbx\n push 2\n push 8\n push there\n out 0x80,al\n "
    machine.engine.on_out(lambda port, size, value: machine.engine.request_stop())
    assert run(machine, f"mov eax,0x10\n {LOAD}{frame}back: iretq\n hlt\n there: mov r9,back\n hlt") == CpuExit.STOPPED
    machine.ram.q[at] = 0
    machine.engine.flush_tlb()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    where = machine.engine.rip
    machine.ram.q[at] = 0x6000 | P | W | U
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(R9) == where
