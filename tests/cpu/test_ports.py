"""Port I/O: handlers, privilege, stopping after the instruction, exceptions of handlers."""

from __future__ import annotations

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from shadowvm.cpu.segments import Segment
from tests.cpu.machine import CODE, HANDLERS, TO_USER, TSS, USER_CODE, FlatMachine, Machine, P, U, W


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


def bitmap(machine: Machine, *denied: int) -> None:
    """A TSS whose I/O bitmap starts at 0x68 and denies these ports only."""
    machine.write(TSS + 0x68, bytes(0x200) + b"\xff")
    for port in denied:
        machine.ram.b[TSS + 0x68 + port // 8] |= 1 << port % 8
    machine.engine.tr = Segment(0x28, TSS, 0x68 + 0x200, 0x8B00)


def as_user(machine: Machine, source: str, *denied: int) -> list[tuple[int, ...]]:
    """Run user code under a bitmap; the port accesses. #GP leaves RIP in r10."""
    calls: list[tuple[int, ...]] = []
    machine.engine.on_out(lambda *a: calls.append(a))
    machine.engine.on_in(lambda port, size: calls.append((port, size)) or 0x5A)
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, f"{source}\n int3")
    machine.code(HANDLERS, "hlt")
    machine.gate(3, HANDLERS, dpl=3)
    machine.code(HANDLERS + 16, "mov r9,[rsp]\n mov r10,[rsp+8]\n hlt")
    machine.gate(13, HANDLERS + 16)
    machine.reset()
    bitmap(machine, *denied)
    machine.engine.set_reg(10, 0)
    assert machine.engine.enter() == CpuExit.HLT
    return calls


@pytest.mark.parametrize(
    ("source", "denied", "rip"),
    [
        ("out 0x80,al", (), None),
        ("out 0x80,al", (0x80,), 0),
        ("mov dx,0x3f\n in eax,dx", (), None),
        ("mov dx,0x3f\n in eax,dx", (0x42,), 4),
        ("mov dx,0x3f\n in eax,dx", (0x43,), None),
        ("mov dx,0xfff\n in al,dx", (), None),
        ("mov dx,0xfff\n in ax,dx", (), 4),
        ("mov dx,0x1000\n in al,dx", (), 4),
    ],
)
def test_the_bitmap_of_the_tss_decides_for_each_port(
    machine: Machine, source: str, denied: tuple[int, ...], rip: int | None
) -> None:
    calls = as_user(machine, source, *denied)
    assert len(calls) == (rip is None)
    assert machine.reg(10) == (0 if rip is None else USER_CODE + rip)


def test_an_absent_tss_page_is_a_walk_fault_at_the_instruction(machine: Machine) -> None:
    calls: list[int] = []
    machine.engine.on_out(lambda *a: calls.append(1))
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, "mov ecx,3\n out 0x80,al\n hlt")
    machine.reset()
    bitmap(machine)
    at = machine.map(TSS, TSS, 0)
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert (machine.exit[0], machine.engine.rip, calls) == (TSS + 0x66, USER_CODE + 5, [])
    assert (machine.engine.box[mb.EXIT_USER], machine.engine.vectoring()) == (0, None)
    machine.ram.q[at] = TSS | P | W | U
    machine.gate(13, HANDLERS)
    machine.code(HANDLERS, "hlt")
    assert machine.engine.enter() == CpuExit.HLT
    assert calls == [1]


def test_string_io_under_a_bitmap_moves_each_item_once(machine: Machine) -> None:
    machine.write(0x6000, bytes(range(1, 5)))
    source = "mov esi,0x6000\n mov edi,0x6010\n mov ecx,4\n mov dx,0x60\n rep outsb\n mov ecx,3\n rep insb"
    calls = as_user(machine, source)
    assert calls == [(0x60, 1, n) for n in range(1, 5)] + [(0x60, 1)] * 3
    assert bytes(machine.ram.b[0x6010:0x6014]) == b"\x5a\x5a\x5a\0"


@pytest.mark.parametrize("insn", ["rep insb", "rep outsb", "insw", "outsd"])
def test_string_io_to_an_absent_page_is_a_fault_before_the_port(machine: Machine, insn: str) -> None:
    calls: list[int] = []
    machine.engine.on_out(lambda *a: calls.append(1))
    machine.engine.on_in(lambda *a: calls.append(1) or 0x77)
    machine.map(0x1FF000, 0x20000, P | W | U)
    step = 4 if insn == "outsd" else 2 if insn == "insw" else 1
    count = 2 if "rep" in insn else 0
    source = f"mov esi,{0x200000 - count:#x}\n mov edi,esi\n mov ecx,4\n mov dx,0x60\n {insn}\n hlt"
    assert machine.run(source) == CpuExit.WALK_FAULT
    assert (machine.exit[0], len(calls), machine.engine.rip) == (0x200000, count, CODE + 16)
    assert machine.reg(1) == 4 - count
    before = machine.engine.instructions
    assert not machine.engine.counting or before == 4 + count
    machine.map(0x200000, 0x21000, P | W | U)
    assert machine.engine.enter() == CpuExit.HLT
    assert len(calls) == (4 if "rep" in insn else 1)
    assert machine.reg(6 if "outs" in insn else 7) == 0x200000 - count + (4 if count else step)


def test_real_mode_has_no_port_privileges() -> None:
    machine = FlatMachine()
    calls: list[tuple[int, ...]] = []
    machine.engine.on_out(lambda *a: calls.append(a))
    machine.write(0x600, b"ab")
    assert machine.real("mov si,0x600\n mov cx,2\n mov dx,0x3f8\n rep outsb\n out 0x80,al\n hlt") == CpuExit.HLT
    assert calls[:2] == [(0x3F8, 1, 0x61), (0x3F8, 1, 0x62)]
    assert len(calls) == 3


@pytest.mark.parametrize(("denied", "allowed"), [((), True), ((0x80,), False)])
def test_virtual_8086_mode_always_asks_the_bitmap(denied: tuple[int, ...], allowed: bool) -> None:
    machine = FlatMachine()
    calls: list[int] = []
    machine.engine.on_out(lambda *a: calls.append(1))
    machine.code(0x10000, "out 0x80,al\n ud2", 16, 0)
    machine.code(HANDLERS, "mov ebx,[esp+4]\n hlt", 32)
    machine.gate(13, HANDLERS)
    machine.gate(6, HANDLERS)
    segments = "".join("push 0x200\n" for _ in range(4))
    machine.code(CODE, f"{segments} push 0x100\n push 0x800\n push 0x23202\n push 0x1000\n push 0\n iret", 32)
    machine.reset()
    bitmap(machine, *denied)
    assert machine.engine.enter() == CpuExit.HLT
    assert len(calls) == allowed
    assert machine.reg(3) == (0x1000 if allowed else 0)


@pytest.mark.parametrize("insn", ["insb", "rep insb", "insd"])
def test_an_event_queued_by_the_handler_of_a_string_in_does_not_repeat_it(machine: Machine, insn: str) -> None:
    calls: list[int] = []

    def handler(port: int, size: int) -> int:
        calls.append(port)
        if len(calls) == 1:
            machine.engine.queue_event(Event(EventKind.INTERRUPT, 0x41))
        return 0x10 + len(calls)

    machine.engine.on_in(handler)
    machine.gate(0x41, HANDLERS)
    machine.code(HANDLERS, "inc ebx\n iretq")
    source = f"sti\n xor ebx,ebx\n mov edi,0x6000\n mov ecx,3\n mov dx,0x60\n {insn}\n jmp $+2\n cli\n nop\n hlt"
    assert machine.run(source) == CpuExit.HLT
    count = 3 if "rep" in insn else 1
    assert (len(calls), machine.reg(3), machine.ram.b[0x6000]) == (count, 1, 0x11)
    if machine.engine.counting:
        assert machine.engine.instructions == 5 + (4 if "rep" in insn else 1) + 4 + 2


def test_a_fault_after_a_kick_does_not_lose_budget() -> None:
    machine = Machine()
    e = machine.engine
    e.on_out(lambda *a: e.queue_event(Event(EventKind.INTERRUPT, 0x41)))
    machine.code(CODE, "nop\n out 0x80,al\n mov eax,[0x200000]\n nop\n nop\n hlt")
    machine.reset()
    e.set_budget(100)
    assert e.enter() == CpuExit.WALK_FAULT
    assert (e.instructions, e.box[mb.BUDGET]) == (2, 98)
