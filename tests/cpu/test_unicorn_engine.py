"""TLB epochs and flushes, roots and CR3 switches, exits of every kind, wild guests, determinism."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from shadowvm.addr import Gva, Hpa, Pfn
from shadowvm.cpu import layout as lay
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.check import peek
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.registers import CR3, RIP
from shadowvm.x86 import CR4_SMAP, CR4_SMEP, PT_ACCESSED
from tests.cpu.machine import CODE, LOW, Machine, P, U, W


def test_epochs_say_what_the_tlb_may_hold() -> None:
    machine = Machine()
    machine.map(0x200000, 0x20000, P | W | U)
    machine.map(0x201000, 0x21000, P | W | U)
    engine = machine.engine
    assert machine.run("mov rax,[0x200000]\n mov [0x201000],rax\n hlt") == CpuExit.HLT
    assert engine.may_cache(Pfn(0x20))
    assert not engine.may_cache_writable(Pfn(0x20))
    assert engine.may_cache(Pfn(0x21))
    assert engine.may_cache_writable(Pfn(0x21))
    assert engine.may_cache(Pfn(CODE >> 12))
    assert not engine.may_cache(Pfn(0x22))
    engine.flush_tlb()
    assert not any(engine.may_cache(Pfn(n)) for n in range(machine.ram.nr_frames))


def test_a_stale_entry_is_used_until_it_is_flushed() -> None:
    machine = Machine()
    at = machine.map(0x200000, 0x20000, P | W | U)
    machine.ram.q[0x20000 >> 3], machine.ram.q[0x21000 >> 3] = 111, 222
    engine = machine.engine
    machine.run("l: mov rax,[0x200000]\n hlt\n jmp l")
    machine.ram.q[at] = 0x21000 | P | W | U
    engine.enter()
    assert machine.reg(0) == 111
    engine.flush_page(Gva(0x200000))
    engine.enter()
    assert machine.reg(0) == 222
    machine.ram.q[at] = 0x20000 | P | W | U
    engine.flush_tlb()
    engine.enter()
    assert machine.reg(0) == 111


def test_invlpg_is_the_guest_s_own() -> None:
    machine = Machine()
    at = machine.map(0x200000, 0x20000, P | W | U)
    table = at >> 9 << 12
    machine.map(0x300000, table, P | W | U)
    machine.ram.q[0x21000 >> 3] = 222
    store = f"mov qword [{0x300000 + (at & 511) * 8}],{0x21000 | P | W | U}"
    source = f"mov rax,[0x200000]\n {store}\n mov rbx,[0x200000]\n invlpg [0x200000]\n mov rcx,[0x200000]\n hlt"
    assert machine.run(source) == CpuExit.HLT
    assert [machine.reg(i) for i in (0, 3, 1)] == [0, 0, 222]


def second_root(machine: Machine) -> int:
    """A table like the machine's, but 0x20000 leads to frame 0x21."""
    first, machine.root = machine.root, machine.new_table()
    for page in range(0, LOW, 4096):
        machine.map(page, 0x21000 if page == 0x20000 else page, P | W | U)
    second, machine.root = machine.root, first
    return second


SWITCH = "l: mov cr3,rbx\n mov rax,[0x20000]\n mov cr3,rcx\n mov rdx,[0x20000]\n dec r8\n jnz l\n hlt"


def test_cr3_writes_exit_once_and_then_switch_between_kept_roots() -> None:
    machine = Machine()
    second, engine = second_root(machine), machine.engine
    machine.ram.q[0x20000 >> 3], machine.ram.q[0x21000 >> 3] = 111, 222
    machine.code(CODE, SWITCH)
    machine.reset()
    cr3 = engine.cr3
    for register, value in ((3, 0x5000), (1, cr3), (8, 10)):
        engine.set_reg(register, value)
    assert engine.enter() == CpuExit.CR_ACCESS
    assert engine.env[CR3] == 0x5000
    assert engine.rip == CODE + 3
    engine.load_root(Hpa(second), 0x5000, engine.cr0, engine.cr4, engine.efer)
    assert engine.kept_roots() == [(cr3, machine.root)]
    assert engine.enter() == CpuExit.HLT
    assert (machine.reg(0), machine.reg(2)) == (222, 111)
    assert engine.box[mb.CR3_HITS] == 19
    assert engine.box[mb.ROOT] == machine.root
    assert engine.kept_roots() == [(0x5000, second)]


def test_cr3_exits_can_be_wanted_always_and_roots_be_dropped() -> None:
    machine = Machine()
    second, engine = second_root(machine), machine.engine
    machine.code(CODE, SWITCH)
    machine.reset()
    cr3, mode = engine.cr3, (engine.cr0, engine.cr4, engine.efer)
    for register, value in ((3, 0x5000), (1, cr3), (8, 1)):
        engine.set_reg(register, value)
    engine.load_root(Hpa(second), 0x5000, *mode)
    engine.load_root(Hpa(machine.root), cr3, *mode)
    engine.box[mb.CR3_EXITS] = 1
    assert engine.enter() == CpuExit.CR_ACCESS
    engine.box[mb.CR3_EXITS] = 0
    engine.drop_root(0x5000)
    assert engine.enter() == CpuExit.CR_ACCESS
    engine.load_root(Hpa(second), 0x5000, *mode)
    assert engine.enter() == CpuExit.HLT
    engine.drop_all_roots()
    engine.flush_tlb()
    assert engine.kept_roots() == []
    engine.env[RIP] = CODE
    assert engine.enter() == CpuExit.CR_ACCESS


def test_no_more_than_three_roots_are_kept_latest_first() -> None:
    machine = Machine()
    engine = machine.engine
    for n in range(1, 6):
        engine.load_root(Hpa(n << 12), n << 12, engine.cr0, engine.cr4, engine.efer)
    assert engine.kept_roots() == [(n << 12, n << 12) for n in (4, 3, 2)]
    engine.load_root(Hpa(3 << 12), 3 << 12, engine.cr0, engine.cr4, engine.efer)
    assert engine.kept_roots() == [(n << 12, n << 12) for n in (5, 4, 2)]
    engine.load_root(Hpa(9 << 12), 3 << 12, engine.cr0, engine.cr4 | CR4_SMEP, engine.efer)
    assert engine.kept_roots() == []


@pytest.mark.parametrize(
    "source",
    [
        f"mov rax,cr4\n or eax,{CR4_SMEP | CR4_SMAP}\n mov cr4,rax\n nop\n hlt",
        "mov rax,cr0\n btr rax,16\n mov cr0,rax\n nop\n hlt",
        "mov ecx,0xc0000080\n rdmsr\n btr eax,11\n wrmsr\n mov rax,cr3\n mov cr3,rax\n hlt",
    ],
)
def test_a_change_of_paging_mode_exits(source: str) -> None:
    machine = Machine()
    engine = machine.engine
    assert machine.run(source) == CpuExit.CR_ACCESS
    engine.load_root(Hpa(machine.root), engine.cr3, engine.cr0, engine.cr4 & ~(CR4_SMEP | CR4_SMAP), engine.efer)
    engine.box[mb.MASK_CR4] &= ~(CR4_SMEP | CR4_SMAP)
    for page in range(0, LOW, 4096):
        machine.map(page, page, P | W)
    assert engine.enter() == CpuExit.HLT


def test_hlt_ends_after_itself() -> None:
    machine = Machine()
    assert machine.run("nop\n hlt\n inc eax\n hlt") == CpuExit.HLT
    assert machine.engine.rip == CODE + 2
    before = machine.reg(0)
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(0) == before + 1


@pytest.mark.parametrize("seed", range(6))
def test_garbage_as_code_ends_in_an_exit(seed: int) -> None:
    """Random bytes, random registers: whatever happens, it is an exit."""
    rng = random.Random(seed)
    machine = Machine(counting=bool(seed & 1))
    engine = machine.engine
    keep = bytes(machine.ram.b)
    for _ in range(120):
        machine.ram.b[:] = keep
        machine.write(CODE, rng.randbytes(256))
        engine.drop_code(Pfn(CODE >> 12))
        machine.reset()
        if machine.engine.counting:
            engine.set_budget(2000)
        for i in range(16):
            engine.set_reg(i, rng.choice((rng.getrandbits(64), rng.getrandbits(20), STACKISH)))
        code = engine.enter() if engine.counting else engine.step()
        assert CpuExit(code) is not CpuExit.UNSUPPORTED or engine.error


STACKISH = 0x8000


def tlb_entries(machine: Machine, mmu_idx: int = 2) -> int:
    """Size of the supervisor's TLB."""
    return peek(machine.engine._env_address + lay.TLB_FAST + 16 * mmu_idx) // lay.TLB_ENTRY_SIZE + 1


def touch(machine: Machine, pages: int) -> int:
    """Load from as many pages, flush; the misses."""
    engine = machine.engine
    engine.set_reg(7, 0x40000000)
    engine.set_reg(1, pages)
    engine.rip = CODE
    before = engine.box[mb.FILLS]
    assert engine.enter() == CpuExit.HLT
    engine.flush_tlb()
    return engine.box[mb.FILLS] - before


def touching_machine() -> Machine:
    machine = Machine(frames=4096 + 64)
    machine.map(0x40000000, 0, P | W | U | 0x80, level=3)
    machine.code(CODE, "l: mov rax,[rdi]\n add rdi,4096\n dec rcx\n jnz l\n hlt")
    machine.reset()
    return machine


def test_the_tlb_s_size_does_not_depend_on_time() -> None:
    """Unicorn alone shrinks it after 100 ms of little use: the misses of a run would depend on the host."""

    def misses(pause: float) -> list[int]:
        machine, seen = touching_machine(), []
        for pages in (3000, 3000, 3000, 3000, 3000, 20, 20, 3000, 3000):
            seen.append(touch(machine, pages))
            if pages == 20:
                time.sleep(pause)
                machine.engine.flush_tlb()
        return seen

    assert misses(0.15) == misses(0)


def test_the_tlb_grows_with_use_and_shrinks_after_many_flushes_of_little_use() -> None:
    machine = touching_machine()
    for _ in range(6):
        touch(machine, 3000)
    assert tlb_entries(machine) == 8192
    sizes = []
    for _ in range(2 * mb.TLB_WINDOW_PERIODS + 2):
        touch(machine, 20)
        sizes.append(tlb_entries(machine))
    assert sizes[: mb.TLB_WINDOW_PERIODS // 2] == [8192] * (mb.TLB_WINDOW_PERIODS // 2)
    assert sizes[-1] == 64
    assert sorted(sizes, reverse=True) == sizes


def test_accessed_bits_are_the_same_in_two_runs() -> None:
    def bits() -> list[int]:
        machine = Machine()
        machine.run("mov rax,[0x5000]\n mov [0x6000],rax\n call f\n hlt\n f: ret")
        return [i for i, entry in enumerate(machine.ram.q) if entry & PT_ACCESSED]

    assert bits() == bits()


def test_running_guests_imports_neither_numba_nor_llvm() -> None:
    code = (
        "import sys; from tests.cpu.machine import Machine; Machine()\n"
        "sys.exit(any(name in sys.modules for name in ('numba', 'llvmlite', 'unicorn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_several_engines_share_one_ram() -> None:
    machine = Machine()
    other = type(machine.engine)(machine.ram, vcpu_id=1)
    machine.code(CODE, "mov rax,[0x20000]\n inc rax\n mov [0x20000],rax\n hlt")
    first = machine.engine
    for n in range(1, 7):
        machine.engine = other if n & 1 else first
        machine.reset()
        assert machine.engine.enter() == CpuExit.HLT
        assert machine.ram.q[0x20000 >> 3] == n
