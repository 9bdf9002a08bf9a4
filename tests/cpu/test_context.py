"""A saved CPU goes on as if nothing had happened, in the same engine or another."""

from __future__ import annotations

import pytest

from shadowvm.addr import Hpa
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.errors import ConfigError
from tests.cpu.machine import CODE, HANDLERS, Machine

PROGRAM = """xor ecx,ecx
l: inc rcx
mov rax,rcx
imul rax,rax,0x10001
mov rdx,rax
and edx,0xff8
add [0x20000+rdx],rax
cvtsi2sd xmm0,rcx
sqrtsd xmm1,xmm0
addsd xmm2,xmm1
movq rbx,xmm2
fild qword [0x20000]
fsqrt
fistp qword [0x21000]
cmp rcx,3000
jne l
hlt"""


def finish(machine: Machine) -> tuple[object, ...]:
    assert machine.engine.enter() == CpuExit.HLT
    e = machine.engine
    return (*(e.get_reg(i) for i in range(16)), e.rip, e.rflags, e.instructions, bytes(machine.ram.b))


def test_a_run_goes_on_bit_for_bit() -> None:
    machine = Machine()
    machine.code(CODE, PROGRAM)
    machine.reset()
    machine.engine.set_budget(12345)
    assert machine.engine.enter() == CpuExit.QUANTUM
    machine.engine.set_budget(1 << 40)
    state, memory, roots = machine.engine.save(), bytes(machine.ram.b), machine.root
    assert machine.engine.save() == state
    end = finish(machine)
    other = Machine()
    for target in (machine, other):
        target.ram.b[:] = memory
        target.engine.restore(state)
        e = target.engine
        e.load_root(Hpa(roots), e.cr3, e.cr0, e.cr4, e.efer)
        assert target.engine.save() == state
        assert finish(target) == end


def test_a_queued_event_is_part_of_the_state() -> None:
    machine, other = Machine(), Machine()
    machine.engine.queue_event(Event(EventKind.EXCEPTION, 6))
    for m in (machine, other):
        m.code(HANDLERS, "mov eax,0x66\n hlt")
        m.gate(6, HANDLERS)
    other.engine.restore(machine.engine.save())
    other.load()
    assert other.engine.enter() == CpuExit.HLT
    assert other.reg(0) == 0x66


def test_msrs_that_unicorn_s_own_context_lacks_are_saved() -> None:
    def read(m: Machine, msr: int) -> tuple[int, int]:
        assert m.run(f"mov ecx,{msr}\n rdmsr\n hlt") == CpuExit.HLT
        return m.reg(0), m.reg(2)

    machine, other = Machine(), Machine()
    for n, msr in enumerate((0x2FF, 0x250, 0x26F, 0x200, 0x20F, 0x277, 0xC0000103)):
        value = (0x100 + n, 7)
        assert machine.run(f"mov ecx,{msr}\n mov eax,{value[0]}\n mov edx,7\n wrmsr\n hlt") == CpuExit.HLT
        assert read(other, msr) != value
        other.engine.restore(machine.engine.save())
        other.load()
        assert read(other, msr) == value


def test_code_translated_before_a_restore_is_forgotten() -> None:
    machine = Machine()
    machine.run("mov eax,1\n hlt")
    machine.engine.rip = CODE
    state = machine.engine.save()
    machine.ram.b[CODE + 1] = 2
    machine.engine.restore(state)
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(0) == 2


def test_a_damaged_state_is_refused() -> None:
    machine = Machine()
    with pytest.raises(ConfigError):
        machine.engine.restore(machine.engine.save()[:-1])
