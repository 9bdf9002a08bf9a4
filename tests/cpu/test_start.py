"""The states a CPU starts in, and the registers that describe them."""

from __future__ import annotations

import pytest

from shadowvm.addr import Hpa
from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.segments import CODE16_FLAGS, CS, DS, SS, Segment, TableRegister
from tests.cpu.machine import CODE, RAX, RBX, RDX, RESET_FRAME, RSP, FlatMachine, Machine


@pytest.fixture(params=[True, False], ids=["counting", "plain"])
def machine(request: pytest.FixtureRequest) -> FlatMachine:
    return FlatMachine(counting=request.param)


def test_reset_starts_at_the_reset_vector(machine: FlatMachine) -> None:
    machine.code(RESET_FRAME + 0xFF0, "mov ax,cs\n jmp 0:0x1000", 16, 0xFFF0)
    machine.code(CODE, "mov bx,cs\n mov byte [0x20],0x77\n hlt", 16)
    machine.engine.set_reg(RSP, 5)
    machine.engine.init_reset()
    e = machine.engine
    assert (e.rip, e.segment(CS)[:3], e.rflags, e.get_reg(RSP)) == (0xFFF0, (0xF000, 0xFFFF0000, 0xFFFF), 2, 0)
    assert (e.cr0, e.cr3, e.cr4, e.efer, e.idtr) == (0x60000010, 0, 0, 0, TableRegister(0, 0xFFFF))
    assert e.get_reg(RDX) >> 8 & 15 == 6
    machine.load()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RAX), machine.reg(RBX), machine.ram.b[0x20]) == (0xF000, 0, 0x77)
    assert e.segment(CS)[:2] == (0, 0)


def test_a_reset_leaves_long_mode(machine: FlatMachine) -> None:
    other = Machine()
    assert other.run("mov rax,1\n hlt") == CpuExit.HLT
    other.engine.init_reset()
    assert (other.engine.efer, other.engine.cpl) == (0, 0)
    machine.engine.restore(other.engine.save())
    machine.code(CODE, "mov ax,0x1234\n hlt", 16)
    machine.engine.set_segment(CS, Segment(0, 0, 0xFFFF, 0x9B00))
    machine.engine.rip = CODE
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.reg(RAX) == 0x1234
    assert machine.engine.rip == CODE + 4


def test_init_keeps_what_a_reset_clears(machine: FlatMachine) -> None:
    e = machine.engine
    for warm in (True, False):
        e.init_reset()
        e.set_msr(0x174, 0x1234)
        e.cr0 = 0x11
        e.env[0x338 // 8] = 0x55
        e.init_reset(warm=warm)
        assert e.get_msr(0x174) == (0x1234 if warm else 0)
        assert e.env[0x338 // 8] == (0x55 if warm else 0)
        assert e.cr0 == (0x10 if warm else 0x60000010)


def test_sipi_starts_at_the_vector_s_page(machine: FlatMachine) -> None:
    e = machine.engine
    e.init_reset(warm=True)
    e.init_sipi(0x12)
    assert (e.segment(CS)[:2], e.rip) == ((0x1200, 0x12000), 0)
    machine.code(0x12000, "mov ax,cs\n hlt", 16, 0)
    machine.load()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RAX), e.rip) == (0x1200, 3)


def test_multiboot_state_is_flat_32_bit_code(machine: FlatMachine) -> None:
    machine.code(CODE, "mov ecx,cs\n mov edx,eax\n mov [0x5000],ebx\n mov esp,0x8000\n push dword 0x99\n hlt", 32)
    e = machine.engine
    e.init_protected_mode(CODE, 0x2BADB002, 0x9500)
    assert (e.cr0 & 0x8000_0001, e.rflags, e.segment(SS).limit) == (1, 2, 0xFFFF_FFFF)
    machine.load()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(1), machine.reg(RDX), machine.ram.q[0x5000 >> 3]) == (8, 0x2BADB002, 0x9500)
    assert machine.ram.b[0x7FFC] == 0x99


def test_a_multiboot_kernel_that_goes_to_real_mode_finds_its_vectors_at_0(machine: FlatMachine) -> None:
    leave = "jmp 8:there\n there: mov eax,cr0\n and al,0xfe\n mov cr0,eax\n jmp 0:real\n real: xor ax,ax\n mov ds,ax\n"
    machine.code(CODE, f"{leave} mov ss,ax\n mov sp,0x8000\n mov ebx,5\n int 0x11\n mov ecx,7\n hlt", 16)
    machine.code(0x3000, "inc ebx\n iret", 16)
    machine.write(0x2000, bytes(8) + bytes.fromhex("ffff0000009b0000"))
    e = machine.engine
    e.init_protected_mode(CODE, 0, 0, 0x2000, 15)
    e.set_segment(CS, e.segment(CS)._replace(flags=CODE16_FLAGS))
    machine.vector(0x11, 0x3000)
    machine.load()
    code = e.enter()
    while code == CpuExit.CR_ACCESS:
        machine.load()
        code = e.enter()
    assert (code, machine.reg(RBX), machine.reg(1)) == (CpuExit.HLT, 6, 7)


def test_protected_mode_can_be_left_for_real_mode_and_back(machine: FlatMachine) -> None:
    machine.system_tables()
    machine.code(0x2040, "dw 0\n dw 0x3f\n dd 0x2000", 16)
    source = (
        "cli\n lgdt [0x2042]\n mov eax,cr0\n or al,1\n mov cr0,eax\n jmp 0x30:p32\n bits 32\n p32: mov eax,0x10\n"
        " mov ds,eax\n mov ss,eax\n mov dword [0x6000],0x12345678\n mov ebx,[0x6000]\n hlt"
    )
    machine.write(0x2030, bytes.fromhex("ffff0000009bcf00"))
    assert machine.real(source) == CpuExit.CR_ACCESS
    e = machine.engine
    assert e.cr0 & 1
    machine.load()
    assert e.enter() == CpuExit.HLT
    assert (machine.reg(RBX), e.segment(CS).selector, e.segment(DS).limit) == (0x12345678, 0x30, 0xFFFFFFFF)


def test_segments_and_tables_read_back(machine: FlatMachine) -> None:
    e = machine.engine
    e.init_reset()
    value = Segment(0x28, 0x1234_5000, 0xABCDE, 0x0040_F300)
    e.set_segment(DS, value)
    e.tr = value._replace(flags=0x8B00)
    e.ldtr = value._replace(flags=0x8200)
    e.gdtr = TableRegister(0x77000, 0x1F)
    assert (e.segment(DS), e.segment(DS).dpl, e.tr.flags, e.ldtr.base) == (value, 3, 0x8B00, 0x1234_5000)
    assert e.gdtr == (0x77000, 0x1F)


def test_msrs_and_debug_registers_are_those_of_the_instructions() -> None:
    machine = Machine()
    e = machine.engine
    msrs = (0x174, 0x175, 0x176, 0x277, 0xC0000081, 0xC0000083, 0xC0000084, 0xC0000101, 0xC0000102, 0xC0000103)
    machine.reset()
    for i, index in enumerate(msrs):
        e.set_msr(index, 0x1000 + i)
        assert e.get_msr(index) == 0x1000 + i
    source = "".join(f"mov ecx,{index}\n rdmsr\n mov [{0x6000 + 8 * i}],eax\n" for i, index in enumerate(msrs))
    machine.code(CODE, source + "mov rbx,dr3\n mov rdx,dr7\n hlt")
    e.set_dr(3, 0xABC)
    e.set_dr(7, 0x402)
    assert e.enter() == CpuExit.HLT
    assert [machine.ram.q[(0x6000 >> 3) + i] for i in range(len(msrs))] == [0x1000 + i for i in range(len(msrs))]
    assert (machine.reg(RBX), machine.reg(RDX), e.dr(3)) == (0xABC, 0x402, 0xABC)


@pytest.mark.parametrize(("register", "bit"), [("cr4", 1 << 22), ("efer", 1 << 11), ("cr0", 1 << 16)])
def test_changing_what_a_translation_depends_on_empties_the_tlb(register: str, bit: int) -> None:
    machine = Machine()
    assert machine.run("mov rax,[0x5000]\n hlt") == CpuExit.HLT
    e = machine.engine
    machine.code(CODE + 0x100, "mov rax,[0x5000]\n hlt")
    fills = []
    for turn in (False, True):
        e.rip = CODE + 0x100
        if turn:
            setattr(e, register, getattr(e, register) ^ bit)
            e.load_root(Hpa(machine.root), e.cr3, e.cr0, e.cr4, e.efer)
        before = e.box[mb.FILLS]
        assert e.enter() == CpuExit.HLT
        fills.append(e.box[mb.FILLS] - before)
    assert fills[0] == 0
    assert fills[1] >= 2
