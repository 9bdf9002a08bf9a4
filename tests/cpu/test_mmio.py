"""MMIO windows: a step's accesses reach the handlers once, whole, and in order."""

from __future__ import annotations

import pytest

from shadowvm.addr import Gpa, Gva
from shadowvm.cpu.engine import READ, WRITE, CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, RAX, RBX, RCX, Machine, P, U, W

VA, GPA = 0x200000, 0xFEE00000


class Device:
    """Registers at GPA that log what is done to them."""

    def __init__(self, machine: Machine) -> None:
        self.log: list[tuple[str, int, int, int]] = []
        self.value = 0x1122334455667788
        machine.engine.on_mmio(self.read, self.write)

    def read(self, gpa: int, size: int) -> int:
        value = self.value & (1 << 8 * size) - 1
        self.log.append(("r", gpa, size, value))
        self.value += 1
        return value

    def write(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("w", gpa, size, value))


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(counting=request.param)


def step(machine: Machine, source: str) -> tuple[int, Device]:
    """One step of `source` at CODE, windows opened as its walk faults ask for them."""
    e = machine.engine
    device = Device(machine)
    machine.code(CODE, source)
    machine.reset()
    e.set_reg(RAX, 0xAABBCCDD11223344)
    e.set_reg(RBX, VA)
    code = e.enter()
    while code == CpuExit.WALK_FAULT and VA <= machine.exit[0] < VA + 0x1000:
        e.set_mmio_window(0, Gva(machine.exit[0]), Gpa(GPA))
        code = e.step()
    e.clear_windows()
    return code, device


@pytest.mark.parametrize(
    ("source", "log"),
    [
        ("mov al,[rbx+0x20]", [("r", 0x20, 1, 0x88)]),
        ("mov ax,[rbx+0x20]", [("r", 0x20, 2, 0x7788)]),
        ("mov eax,[rbx+0x20]", [("r", 0x20, 4, 0x55667788)]),
        ("mov rax,[rbx+0x20]", [("r", 0x20, 8, 0x1122334455667788)]),
        ("mov [rbx+0xfff],al", [("w", 0xFFF, 1, 0x44)]),
        ("mov [rbx+0x30],ax", [("w", 0x30, 2, 0x3344)]),
        ("mov [rbx+0x30],eax", [("w", 0x30, 4, 0x11223344)]),
        ("mov [rbx+0x30],rax", [("w", 0x30, 8, 0xAABBCCDD11223344)]),
        ("add dword [rbx],5", [("r", 0, 4, 0x55667788), ("w", 0, 4, 0x5566778D)]),
        ("lock or byte [rbx+4],1", [("r", 4, 1, 0x88), ("w", 4, 1, 0x89)]),
        ("xchg eax,[rbx+8]", [("r", 8, 4, 0x55667788), ("w", 8, 4, 0x11223344)]),
        ("movups xmm0,[rbx]", [("r", 0, 8, 0x1122334455667788), ("r", 8, 8, 0x1122334455667789)]),
        ("test dword [rbx+0xf0],0x100", [("r", 0xF0, 4, 0x55667788)]),
    ],
)
def test_each_access_of_an_instruction_is_seen_once_and_whole(
    machine: Machine, source: str, log: list[tuple[str, int, int, int]]
) -> None:
    code, device = step(machine, f"{source}\n hlt")
    assert code == CpuExit.QUANTUM
    assert device.log == [(kind, GPA + offset, size, value) for kind, offset, size, value in log]
    before = machine.engine.instructions
    assert not machine.engine.counting or before == 1
    assert machine.engine.enter() == CpuExit.HLT


def test_results_of_reads_reach_registers_and_flags(machine: Machine) -> None:
    code, _ = step(machine, "mov rax,[rbx]\n hlt")
    assert (code, machine.reg(RAX)) == (CpuExit.QUANTUM, 0x1122334455667788)
    code, _ = step(machine, "cmp dword [rbx],0x55667788\n setz cl\n hlt")
    assert code == CpuExit.QUANTUM
    assert machine.engine.rflags & 0x40


def test_a_repeated_step_does_not_read_twice(machine: Machine) -> None:
    source = "mov rsi,rbx\n mov edi,0x300000\n hlt"
    code, device = step(machine, f"push qword [rbx]\n{source}")
    assert (code, len(device.log)) == (CpuExit.QUANTUM, 1)
    machine.code(CODE, "movsd\n hlt")
    machine.reset()
    e = machine.engine
    device = Device(machine)
    e.set_reg(6, VA)
    e.set_reg(7, 0x300000)
    assert e.enter() == CpuExit.WALK_FAULT
    e.set_mmio_window(0, Gva(VA), Gpa(GPA))
    assert e.step() == CpuExit.WALK_FAULT
    assert machine.exit[:2] == (0x300000, WRITE)
    machine.map(0x300000, 0x30000, P | W | U)
    assert e.step() == CpuExit.QUANTUM
    assert device.log == [("r", GPA, 4, 0x55667788)]
    assert machine.ram.q[0x30000 >> 3] & 0xFFFFFFFF == 0x55667788
    e.clear_windows()
    assert e.enter() == CpuExit.HLT


def test_a_rep_store_is_one_item_a_step(machine: Machine) -> None:
    e = machine.engine
    device = Device(machine)
    machine.code(CODE, "rep stosd\n hlt")
    machine.reset()
    e.set_reg(7, VA)
    e.set_reg(RCX, 3)
    for n in range(3):
        e.set_mmio_window(0, Gva(VA), Gpa(GPA))
        assert e.step() == CpuExit.QUANTUM
        assert len(device.log) == n + 1
    e.clear_windows()
    assert [entry[1] - GPA for entry in device.log] == [0, 4, 8]


def test_two_windows_serve_two_pages(machine: Machine) -> None:
    e = machine.engine
    device = Device(machine)
    machine.code(CODE, "movsd\n hlt")
    machine.reset()
    e.set_reg(6, VA + 8)
    e.set_reg(7, 0x300010)
    e.set_mmio_window(0, Gva(VA), Gpa(GPA))
    e.set_mmio_window(1, Gva(0x300000), Gpa(0xFEC00000))
    assert e.step() == CpuExit.QUANTUM
    assert device.log == [("r", GPA + 8, 4, 0x55667788), ("w", 0xFEC00010, 4, 0x55667788)]


def test_a_closed_window_is_closed(machine: Machine) -> None:
    code, device = step(machine, "mov eax,[rbx]\n mov ecx,[rbx]\n hlt")
    assert code == CpuExit.QUANTUM
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert (machine.exit[:2], len(device.log)) == ((VA, READ), 1)


def test_an_interrupt_that_a_handler_queues_comes_after_the_step(machine: Machine) -> None:
    e = machine.engine
    e.on_mmio(lambda gpa, size: 0, lambda *a: e.queue_event(Event(EventKind.INTERRUPT, 0x40)))
    machine.code(CODE, "sti\n nop\n mov [rbx],eax\n mov ecx,7\n hlt")
    machine.code(HANDLERS, "mov rdx,[rsp]\n hlt")
    machine.gate(0x40, HANDLERS)
    machine.reset()
    e.set_reg(RBX, VA)
    e.set_reg(RCX, 1)
    assert e.enter() == CpuExit.WALK_FAULT
    e.set_mmio_window(0, Gva(VA), Gpa(GPA))
    assert e.step() == CpuExit.QUANTUM
    e.clear_windows()
    assert (e.rip, e.irq_pending) == (CODE + 4, True)
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(2), machine.reg(RCX)) == (CODE + 4, 1)
    if e.counting:
        assert e.instructions == 5


class Oops(Exception):
    pass


def test_an_exception_of_a_handler_is_raised_and_the_instruction_is_done_once(machine: Machine) -> None:
    e = machine.engine
    calls: list[int] = []

    def write(gpa: int, size: int, value: int) -> None:
        calls.append(value)
        raise Oops

    e.on_mmio(lambda gpa, size: 5, write)
    machine.code(CODE, "add [rbx],eax\n mov ecx,7\n hlt")
    machine.reset()
    e.set_reg(RBX, VA)
    e.set_reg(RAX, 1)
    e.set_mmio_window(0, Gva(VA), Gpa(GPA))
    with pytest.raises(Oops):
        e.step()
    e.clear_windows()
    assert calls == [6]
    e.on_mmio(lambda gpa, size: 5, lambda *a: None)
    while e.enter() == CpuExit.STOPPED:
        pass
    assert machine.reg(RCX) == 7
