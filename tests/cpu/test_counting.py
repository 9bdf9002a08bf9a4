"""Instruction counts and budgets: exact against a bare Unicorn that calls a hook for every instruction."""

from __future__ import annotations

import mmap
import random

import numpy as np
import pytest
from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn.x86_const import UC_X86_REG_RDX, UC_X86_REG_RSP

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.errors import ModelBug
from tests.cpu.asm import asm
from tests.cpu.machine import CODE, HANDLERS, STACK, TO_USER, USER_CODE, Machine, P, U, W

MIXED = """mov r15,3
o: xor ecx,ecx
l: inc rcx
mov rax,[rsp]
add rax,rcx
mov [rsp],rax
test cl,1
jz e
rol rbx,3
xor rbx,rax
call f
e: cmp rcx,rdx
jne l
mov rdi,0x20000
mov rsi,0x21000
push rcx
mov ecx,100
rep movsb
pop rcx
dec r15
jnz o
hlt
f: imul rbx,rbx,0x1001
add rbx,rcx
bswap rbx
ret"""


def state(machine: Machine) -> tuple[int, ...]:
    e = machine.engine
    return (*(e.get_reg(i) for i in range(16)), e.rip, e.rflags, *machine.ram.q[0x7F80 >> 3 : 0x8008 >> 3].tolist())


def bare_count(source: str, rdx: int) -> int:
    """Instructions by UC_HOOK_CODE on an engine with nothing of ours."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    ram = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    uc.mem_map_ptr(0, len(ram), UC_PROT_ALL, ram.ctypes.data)
    uc.mem_write(CODE, asm(source, CODE))
    uc.reg_write(UC_X86_REG_RSP, STACK)
    uc.reg_write(UC_X86_REG_RDX, rdx)
    count = 0

    def code(*_: object) -> None:
        nonlocal count
        count += 1

    uc.hook_add(UC_HOOK_CODE, code)
    uc.emu_start(CODE, 0)
    return count


def prepare(source: str, rdx: int = 0) -> Machine:
    machine = Machine()
    machine.code(CODE, source)
    machine.reset()
    machine.engine.set_reg(2, rdx)
    return machine


def test_the_count_is_that_of_a_hook_on_every_instruction() -> None:
    machine = prepare(MIXED, 500)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == bare_count(MIXED, 500)
    assert machine.engine.box[mb.MISCOUNTS] == 0


@pytest.mark.parametrize("seed", range(4))
def test_quanta_of_any_size_end_in_the_same_state(seed: int) -> None:
    whole = prepare(MIXED, 500)
    whole.engine.enter()
    machine, rng, total = prepare(MIXED, 500), random.Random(seed), 0
    while True:
        quantum = rng.randint(1, 300)
        machine.engine.set_budget(quantum)
        before = machine.engine.instructions
        code = machine.engine.enter()
        total += machine.engine.instructions - before
        if code == CpuExit.HLT:
            break
        assert code == CpuExit.QUANTUM
        assert machine.engine.instructions - before == quantum
    assert total == whole.engine.instructions
    assert state(machine) == state(whole)


def test_every_single_instruction_boundary_is_a_place_to_stop() -> None:
    machine = prepare("mov eax,1\n mov ebx,2\n add eax,ebx\n push rax\n pop rcx\n hlt")
    rips = []
    for _ in range(5):
        machine.engine.set_budget(1)
        assert machine.engine.enter() == CpuExit.QUANTUM
        rips.append(machine.engine.rip - CODE)
    assert rips == [5, 10, 12, 13, 14]
    machine.engine.set_budget(0)
    assert machine.engine.enter() == CpuExit.QUANTUM
    assert machine.engine.rip - CODE == 14


def test_a_block_cut_short_by_a_fault_counts_what_it_executed() -> None:
    machine = prepare("mov eax,1\n mov rbx,[0x200000]\n mov ecx,3\n mov rdx,[0x201000]\n hlt")
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.engine.instructions == 1
    machine.map(0x200000, 0x20000, P | W | U)
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.engine.instructions == 3
    machine.map(0x201000, 0x20000, P | W | U)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == 5


@pytest.mark.parametrize(
    ("source", "vector", "handler", "count"),
    [
        ("mov eax,1\n ud2", 6, "add qword [rsp],2\n iretq", 1 + 2),
        ("xor ecx,ecx\n nop\n div ecx", 0, "add qword [rsp],2\n iretq", 2 + 2),
        ("nop\n int3\n nop", 3, "iretq", 3 + 1),
        ("nop\n int 0x50\n nop", 0x50, "iretq", 3 + 1),
        ("nop\n cli\n nop", 13, "add rsp,8\n inc qword [rsp]\n iretq", 2 + 3),
    ],
)
def test_exceptions_do_not_spoil_the_count(source: str, vector: int, handler: str, count: int) -> None:
    machine = Machine()
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, source + "\n int 0xf0")
    machine.code(HANDLERS, handler)
    machine.code(HANDLERS + 0x100, "hlt")
    machine.gate(vector, HANDLERS, dpl=3)
    machine.gate(0xF0, HANDLERS + 0x100, dpl=3)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == 6 + count + 2
    assert machine.engine.box[mb.MISCOUNTS] == 0


def test_an_interrupt_between_blocks_counts_nothing() -> None:
    machine = prepare("sti\n nop\n nop\n nop\n hlt")
    machine.code(HANDLERS, "iretq")
    machine.gate(0x40, HANDLERS)
    machine.engine.set_budget(3)
    assert machine.engine.enter() == CpuExit.QUANTUM
    machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x40))
    machine.engine.set_budget(100)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == 5 + 1


def test_self_modifying_code_is_counted_exactly() -> None:
    # The store changes the immediate of a later instruction of its own block.
    machine = prepare("mov eax,1\n mov dword [x+1],7\n nop\n x: mov ebx,5\n mov ecx,2\n hlt")
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(3) == 7
    assert machine.engine.instructions == 6
    assert machine.engine.box[mb.MISCOUNTS] == 0


def test_rdtsc_is_the_instruction_count() -> None:
    machine = prepare("nop\n nop\n rdtsc\n mov ebx,eax\n nop\n rdtscp\n hlt")
    machine.engine.box[mb.TSC_OFFSET] = 1000
    assert machine.engine.enter() == CpuExit.HLT
    assert (machine.reg(3), machine.reg(0), machine.reg(2)) == (1002, 1005, 0)


def test_without_counting_rdtsc_still_grows_and_repeats() -> None:
    seen = []
    for _ in range(2):
        machine = Machine(counting=False)
        machine.run("rdtsc\n mov ebx,eax\n rdtsc\n sub eax,ebx\n hlt")
        seen.append((machine.reg(3), machine.reg(0)))
    assert seen[0] == seen[1]
    assert seen[0][1] > 0


def test_a_plain_engine_has_no_budget() -> None:
    machine = Machine(counting=False)
    with pytest.raises(ModelBug):
        machine.engine.set_budget(5)
    machine.run("nop\n hlt")
    assert machine.engine.instructions == 0


def test_pause_and_string_instructions_with_a_zero_count() -> None:
    source = "mov esi,0x20000\n mov edi,0x21000\n xor ecx,ecx\n rep movsb\n pause\n mov ecx,3\n rep stosb\n hlt"
    machine = prepare(source)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == bare_count(source, 0)


def test_many_blocks_in_one_page_do_not_confuse_the_count() -> None:
    source = "mov ecx,50\n l:\n" + "jmp $+2\n nop\n" * 600 + "dec ecx\n jnz l\n hlt"
    machine = prepare(source)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.instructions == 1 + 50 * (1200 + 2) + 1
