"""Single steps and write windows: how a store to a write-protected page is carried out once."""

from __future__ import annotations

import pytest

from shadowvm.addr import Gva, Pfn
from shadowvm.cpu.engine import CpuExit, Event, EventKind
from tests.cpu.machine import CODE, HANDLERS, TO_USER, USER_CODE, Machine, P, U

DATA, FRAME = 0x200000, 0x30
VALUE = 0x1122334455667788
ABSENT_CODE = 0x11_2233_4455


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    machine = Machine(counting=request.param)
    machine.map(DATA, FRAME << 12, P | U)
    machine.map(DATA + 0x1000, (FRAME + 1) << 12, P | U)
    return machine


def step_through_window(machine: Machine, *pages: int) -> int:
    engine = machine.engine
    for n, page in enumerate(pages):
        engine.set_window(n, Gva(DATA + page * 0x1000), Pfn(FRAME + page))
    code = engine.step()
    engine.clear_windows()
    return code


@pytest.mark.parametrize(
    ("insn", "memory", "rax"),
    [
        ("mov [rdi],rax", VALUE, VALUE),
        ("add [rdi],rax", VALUE + 5, VALUE),
        ("lock xadd [rdi],rax", VALUE + 5, 5),
        ("xchg [rdi],rax", VALUE, 5),
        ("bts qword [rdi],4", 0x15, VALUE),
        ("push rax", VALUE, VALUE),
        ("call rax", CODE + 22, VALUE),
        ("movsq", 0x99, VALUE),
    ],
)
def test_one_store_goes_through_and_no_more(machine: Machine, insn: str, memory: int, rax: int) -> None:
    setup = f"mov rdi,{DATA + 8}\n mov rax,{VALUE}"
    if insn in ("push rax", "call rax"):
        setup = f"mov rax,{VALUE if insn == 'push rax' else ABSENT_CODE:#x}\n mov rsp,{DATA + 16}"
    length = machine.code(CODE, f"{setup}\n {insn}\n mov qword [{DATA + 8}],1\n hlt")
    assert length
    machine.ram.q[(FRAME * 4096 + 8) >> 3] = 5
    machine.reset()
    machine.write(0x20000, (0x99).to_bytes(8, "little"))
    machine.engine.set_reg(6, 0x20000)
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    start, before = machine.engine.rip, machine.engine.instructions
    assert step_through_window(machine, 0) == CpuExit.QUANTUM
    stored = machine.ram.q[(FRAME * 4096 + 8) >> 3]
    if insn == "call rax":
        assert stored == start + 2
        assert machine.engine.rip == ABSENT_CODE
        return
    assert stored == memory
    assert machine.reg(0) == rax
    assert machine.engine.rip > start
    if machine.engine.counting:
        assert machine.engine.instructions - before == 1
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert machine.ram.q[(FRAME * 4096 + 8) >> 3] == memory


def test_the_window_closes(machine: Machine) -> None:
    machine.code(CODE, f"mov rdi,{DATA}\n l: inc qword [rdi]\n jmp l")
    machine.reset()
    for n in range(1, 4):
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        assert step_through_window(machine, 0) == CpuExit.QUANTUM
        assert machine.ram.q[FRAME * 512] == n
    assert not machine.engine.may_cache_writable(Pfn(FRAME))


def test_a_store_that_crosses_two_windows(machine: Machine) -> None:
    machine.code(CODE, f"mov rax,{VALUE}\n mov rdi,{DATA + 0xFFC}\n mov [rdi],rax\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert step_through_window(machine, 0, 1) == CpuExit.QUANTUM
    at = (FRAME << 12) + 0xFFC
    assert bytes(machine.ram.b[at : at + 8]) == VALUE.to_bytes(8, "little")


def test_a_crossing_store_with_one_window_changes_nothing(machine: Machine) -> None:
    machine.code(CODE, f"mov rax,{VALUE}\n mov rdi,{DATA + 0xFFC}\n mov [rdi],rax\n hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    start = machine.engine.rip
    assert step_through_window(machine, 0) == CpuExit.WALK_FAULT
    assert machine.engine.rip == start
    at = (FRAME << 12) + 0xFFC
    assert bytes(machine.ram.b[at : at + 8]) == bytes(8)


def test_a_rep_does_one_iteration_a_step(machine: Machine) -> None:
    machine.code(CODE, f"mov rdi,{DATA}\n mov eax,0x41\n mov ecx,3\n rep stosb\n hlt")
    machine.reset()
    for left in (2, 1, 0):
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        assert step_through_window(machine, 0) == CpuExit.QUANTUM
        assert machine.reg(1) == left
    assert machine.engine.enter() == CpuExit.HLT
    assert bytes(machine.ram.b[FRAME << 12 : (FRAME << 12) + 4]) == b"AAA\0"


def test_steps_walk_through_a_program_one_by_one(machine: Machine) -> None:
    source = "mov eax,1\n jmp b\n b: call f\n inc eax\n hlt\n f: push rbx\n pop rbx\n ret"
    machine.code(CODE, source)
    machine.reset()
    rips = []
    for _ in range(7):
        assert machine.engine.step() == CpuExit.QUANTUM
        rips.append(machine.engine.rip - CODE)
    assert rips == [5, 7, 15, 16, 17, 12, 14]
    assert machine.engine.step() == CpuExit.HLT
    assert machine.reg(0) == 2
    assert not machine.engine.rflags & 0x100


def test_a_step_of_a_faulting_instruction_is_its_exit(machine: Machine) -> None:
    machine.code(CODE, "mov rax,[0x7fff000]\n hlt")
    machine.reset()
    assert machine.engine.step() == CpuExit.WALK_FAULT
    assert machine.engine.rip == CODE
    assert not machine.engine.rflags & 0x100


def test_a_step_onto_an_absent_page_has_retired(machine: Machine) -> None:
    machine.code(CODE, "mov eax,0x7fff000\n jmp rax")
    machine.reset()
    assert machine.engine.step() == CpuExit.QUANTUM
    assert machine.engine.step() == CpuExit.QUANTUM
    assert machine.engine.rip == 0x7FFF000
    assert machine.engine.step() == CpuExit.WALK_FAULT


def test_a_step_at_cpl_3(machine: Machine) -> None:
    machine.code(CODE, TO_USER)
    machine.code(USER_CODE, f"mov rdi,{DATA}\n mov [rdi],rdi\n int3")
    machine.gate(3, HANDLERS, dpl=3)
    machine.code(HANDLERS, "hlt")
    machine.reset()
    assert machine.engine.enter() == CpuExit.WALK_FAULT
    assert step_through_window(machine, 0) == CpuExit.QUANTUM
    assert machine.engine.cpl == 3
    assert machine.ram.q[FRAME * 512] == DATA
    assert machine.engine.enter() == CpuExit.HLT


def test_a_pushf_stores_the_flags_of_the_guest(machine: Machine) -> None:
    machine.code(CODE, f"mov rsp,{DATA + 16}\n stc\n o16 pushf\n pushfq")
    machine.reset()
    for size in (2, 8):
        assert machine.engine.enter() == CpuExit.WALK_FAULT
        assert step_through_window(machine, 0) == CpuExit.QUANTUM
        at = machine.engine.get_reg(4) - DATA + FRAME * 4096
        assert int.from_bytes(machine.ram.b[at : at + size], "little") == 3


def test_a_delivery_stops_at_the_handler_with_its_frame_written(machine: Machine) -> None:
    engine = machine.engine
    machine.gate(13, HANDLERS, ist=1)
    machine.write(0x4024, (DATA + 0x1000).to_bytes(8, "little"))
    machine.code(HANDLERS, "mov rax,1\n hlt")
    machine.code(CODE, "hlt")
    machine.reset()
    event = Event(EventKind.EXCEPTION, 13, 0)
    assert engine.deliver(event) == CpuExit.WALK_FAULT
    assert engine.vectoring() == event
    engine.set_window(0, Gva(DATA), Pfn(FRAME))
    assert engine.deliver(event) == CpuExit.QUANTUM
    engine.clear_windows()
    assert engine.rip == HANDLERS
    assert engine.vectoring() is None
    assert machine.ram.q[FRAME * 512 + 507 : FRAME * 512 + 509].tolist() == [CODE, 8]
    assert engine.enter() == CpuExit.HLT
    assert machine.reg(0) == 1
