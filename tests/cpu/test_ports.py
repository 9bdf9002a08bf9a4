"""Port I/O: handlers, privilege, stopping after the instruction, exceptions of handlers."""

from __future__ import annotations

import pytest

from shadowvm.cpu.engine import CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, TO_USER, USER_CODE, Machine


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


def test_handlers_get_port_size_and_value(machine: Machine) -> None:
    seen: list[tuple[int, ...]] = []
    machine.engine.on_out(lambda *a: seen.append(a))
    machine.engine.on_in(lambda port, size: seen.append((port, size)) or 0x11223344)
    source = (
        "mov eax,0xaabbccdd\n out 0x80,al\n mov dx,0x3f8\n out dx,ax\n out dx,eax\n"
        "mov rax,-1\n in al,0x60\n mov rbx,rax\n mov rax,-1\n in ax,dx\n mov rcx,rax\n mov rax,-1\n in eax,dx\n hlt"
    )
    assert machine.run(source) == CpuExit.HLT
    assert seen == [
        (0x80, 1, 0xDD),
        (0x3F8, 2, 0xCCDD),
        (0x3F8, 4, 0xAABBCCDD),
        (0x60, 1),
        (0x3F8, 2),
        (0x3F8, 4),
    ]
    assert machine.reg(3) == 0xFFFF_FFFF_FFFF_FF44
    assert machine.reg(1) == 0xFFFF_FFFF_FFFF_3344
    assert machine.reg(0) == 0x11223344


@pytest.mark.parametrize("source", ["out 0x80,al", "in al,dx", "mov dx,5\n outsb"])
def test_a_user_without_iopl_gets_a_general_protection_fault(machine: Machine, source: str) -> None:
    calls: list[int] = []
    machine.engine.on_out(lambda *a: calls.append(1))
    machine.engine.on_in(lambda *a: calls.append(1) or 0)
    machine.code(CODE, TO_USER)
    start = machine.code(USER_CODE, "mov dx,5\n cmp dx,5") if "outsb" not in source else 0
    machine.code(USER_CODE + start, source)
    machine.code(HANDLERS, "mov r9,[rsp]\n mov r10,[rsp+8]\n mov r11,[rsp+24]\n hlt")
    machine.gate(13, HANDLERS)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert not calls
    assert machine.reg(9) == 0
    assert machine.reg(10) == USER_CODE + (start or 4)
    assert not start or machine.reg(11) & 0x40, "the flags pushed are those of the CMP"


def test_a_user_with_iopl_3_may(machine: Machine) -> None:
    calls: list[int] = []
    machine.engine.on_out(lambda *a: calls.append(1))
    machine.code(CODE, TO_USER.replace("0x202", "0x3202"))
    machine.code(USER_CODE, "out 0x80,al\n int3")
    machine.code(HANDLERS, "hlt")
    machine.gate(3, HANDLERS, dpl=3)
    machine.reset()
    assert machine.engine.enter() == CpuExit.HLT
    assert calls == [1]


@pytest.mark.parametrize(
    ("out", "length"),
    [("out 0x80,al", 2), ("out dx,al", 1), ("out dx,ax", 2), ("out 0x80,eax", 2)],
)
def test_a_stop_comes_right_after_the_out(machine: Machine, out: str, length: int) -> None:
    machine.engine.on_out(lambda *a: machine.engine.request_stop())
    assert machine.run(f"mov ebx,1\n {out}\n inc ebx\n {out}\n inc ebx\n hlt") == CpuExit.STOPPED
    assert (machine.engine.rip, machine.reg(3)) == (CODE + 5 + length, 1)
    counted = machine.engine.instructions
    assert machine.engine.enter() == CpuExit.STOPPED
    assert (machine.engine.rip, machine.reg(3)) == (CODE + 7 + 2 * length, 2)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(3) == 3
    if machine.engine.counting:
        assert (counted, machine.engine.instructions) == (2, 6)


def test_a_stop_at_an_in_keeps_its_value_and_the_flags(machine: Machine) -> None:
    def handler(port: int, size: int) -> int:
        machine.engine.request_stop()
        return 0x5A

    machine.engine.on_in(handler)
    assert machine.run("mov rax,-1\n cmp eax,eax\n in al,0x60\n jz z\n mov eax,0\n z: hlt") == CpuExit.STOPPED
    assert machine.reg(0) == 0xFFFF_FFFF_FFFF_FF5A
    assert machine.engine.rflags & 0x40
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(0) == 0xFFFF_FFFF_FFFF_FF5A


def test_a_stop_inside_a_string_out_does_nothing_twice(machine: Machine) -> None:
    seen: list[int] = []

    def handler(port: int, size: int, value: int) -> None:
        seen.append(value)
        if value == 3:
            machine.engine.request_stop()

    machine.engine.on_out(handler)
    machine.write(0x20000, bytes(range(1, 9)))
    code = machine.run("mov esi,0x20000\n mov ecx,8\n mov dx,0x3f8\n rep outsb\n mov ebx,7\n hlt")
    assert code == CpuExit.STOPPED
    assert machine.reg(6) == 0x20000 + len(seen)
    before = len(seen)
    assert 3 <= before < 8
    assert machine.engine.enter() == CpuExit.HLT
    assert seen == list(range(1, 9))
    assert machine.reg(3) == 7
    if machine.engine.counting:
        assert machine.engine.instructions == 3 + 8 + 1 + 2


def test_an_interrupt_that_a_handler_queues_comes_soon(machine: Machine) -> None:
    machine.code(HANDLERS, "mov r8,rbx\n iretq")
    machine.gate(0x41, HANDLERS)
    machine.engine.on_out(lambda *a: machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x41)))
    source = "sti\n xor ebx,ebx\n out 0x80,al\n jmp $+2\n l: inc ebx\n cmp ebx,1000\n jne l\n hlt"
    assert machine.run(source) == CpuExit.HLT
    assert machine.reg(8) <= 1
    assert machine.reg(3) == 1000
    if machine.engine.counting:
        assert machine.engine.instructions == 4 + 3 * 1000 + 1 + 2


class Oops(Exception):
    pass


def test_an_exception_of_a_handler_is_raised_by_enter(machine: Machine) -> None:
    def handler(*_: int) -> None:
        raise Oops

    machine.engine.on_out(handler)
    with pytest.raises(Oops):
        machine.run("mov ebx,1\n out 0x80,al\n mov ebx,2\n hlt")
    assert (machine.engine.rip, machine.reg(3)) == (CODE + 7, 1)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(3) == 2
