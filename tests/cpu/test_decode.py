"""The native decoder of memory operands against Capstone, on random INVLPG encodings of all address sizes."""

from __future__ import annotations

import random

import pytest

from shadowvm.cpu import mailbox as mb
from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.segments import CODE16_FLAGS, CS, DS, FS, SS, Segment
from tests.cpu.machine import CODE, FlatMachine, Machine

capstone = pytest.importorskip("capstone")
NAMES64 = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
NAMES32 = "eax ecx edx ebx esp ebp esi edi r8d r9d r10d r11d r12d r13d r14d r15d".split()
NAMES16 = "ax cx dx bx sp bp si di".split()
SEGMENTS = "es cs ss ds fs gs".split()
MASKS = {16: 0xFFFF, 32: 0xFFFF_FFFF, 64: (1 << 64) - 1}


def encoding(rng: random.Random, bits: int) -> bytes:
    prefixes = [rng.choice((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67)) for _ in range(rng.choice((0, 0, 1, 2)))]
    if bits == 64 and rng.random() < 0.6:
        prefixes.append(rng.randrange(0x40, 0x50))
    modrm = rng.randrange(3) << 6 | 7 << 3 | rng.randrange(8)
    return bytes((*prefixes, 0x0F, 0x01, modrm, *rng.randbytes(5)))


def expected(machine: Machine, insn: object, bits: int) -> int:
    """The linear address that Capstone's operand means."""
    e = machine.engine
    operand = insn.operands[0].mem  # type: ignore[attr-defined]
    values = {name: e.get_reg(i) & (1 << 64) - 1 for i, name in enumerate(NAMES64)}
    values |= {name: e.get_reg(i) & MASKS[32] for i, name in enumerate(NAMES32)}
    values |= {name: e.get_reg(i) & MASKS[16] for i, name in enumerate(NAMES16)}
    values |= {"rip": insn.address + insn.size, "eip": insn.address + insn.size}  # type: ignore[attr-defined]
    name = insn.reg_name  # type: ignore[attr-defined]
    base, index = (name(r) if r else None for r in (operand.base, operand.index))
    total = operand.disp + sum(values.get(r, 0) * scale for r, scale in ((base, 1), (index, operand.scale)) if r)
    total &= MASKS[8 * insn.addr_size]  # type: ignore[attr-defined]
    default = "ss" if base in ("rsp", "rbp", "esp", "ebp", "bp", "sp") else "ds"
    segment = name(operand.segment) if operand.segment else default
    if bits == 64 and segment not in ("fs", "gs"):
        return total
    return total + e.segment(SEGMENTS.index(segment)).base & MASKS[64 if bits == 64 else 32]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_addresses_and_lengths_are_capstone_s(bits: int) -> None:
    rng = random.Random(bits)
    machine = Machine() if bits == 64 else FlatMachine()
    e = machine.engine
    e.controls.invlpg = True
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    machine.reset()
    for i, base in ((DS, 0x1000), (SS, 0x2000), (0, 0x3000), (FS, 0x4000), (5, 0x5000)):
        e.set_segment(i, Segment(0, base, 0xFFFFFFFF, 0xCF9300))
    if bits == 16:
        e.set_segment(CS, Segment(0, 0, 0xFFFF, CODE16_FLAGS))
    done = 0
    for _ in range(600):
        code = encoding(rng, bits)
        insn = next(decoder.disasm(code, CODE), None)
        if insn is None or insn.mnemonic != "invlpg":
            continue
        machine.write(CODE, code)
        e.drop_code(CODE >> 12)
        for i in range(16):
            e.set_reg(i, rng.getrandbits(64 if bits == 64 else 32))
        e.rip = CODE
        assert e.enter() == CpuExit.INVLPG
        assert (e.box[mb.EXIT_INSN_LEN], hex(e.box[mb.EXIT_VA])) == (insn.size, hex(expected(machine, insn, bits))), (
            insn,
            code.hex(),
        )
        done += 1
    assert done > 300
