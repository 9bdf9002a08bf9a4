"""Instructions of a guest as text, with its symbols. Bytes that are none are `(bad)`, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import capstone

from ..addr import PAGE_SIZE
from ..cpu.segments import CS
from .peek import peek_virtual

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .symbols import Symbol, Symbols

MAX_LENGTH = 15


class Instruction(NamedTuple):
    """size: in bytes. words: the mnemonic with its prefixes; operands: the rest."""

    address: int
    size: int
    mnemonic: str
    operands: str = ""


def instructions(vcpu: Vcpu, at: int, count: int) -> Iterator[Instruction]:
    """Up to `count` from a linear address, in the mode of the vCPU's code segment; fewer where no memory is."""
    flags = vcpu.engine.segment(CS).flags
    mode = capstone.CS_MODE_64 if flags >> 21 & 1 else capstone.CS_MODE_32 if flags >> 22 & 1 else capstone.CS_MODE_16
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    code, start = b"", at
    for _ in range(count):
        if len(code) < MAX_LENGTH:
            end = start + len(code)
            code += peek_virtual(vcpu, end, PAGE_SIZE - end % PAGE_SIZE) or b""
        if not code:
            return
        one = next(decoder.disasm_lite(code[:MAX_LENGTH], start, 1), None)
        found = Instruction(start, 1, "(bad)") if one is None else Instruction(*one)
        yield found
        code, start = code[found.size :], start + found.size


def instruction_text(one: Instruction, symbols: Symbols) -> str:
    """`0x101d70 <main+4>:  call 0x100040 <memset>`."""
    return f"{one.address:#x}{symbols.text(one.address)}:  {words_text(one, symbols)}"


def words_text(one: Instruction, symbols: Symbols) -> str:
    """The same without its address."""
    target = symbols.text(int(one.operands, 16)) if re.fullmatch(r"0x[0-9a-f]+", one.operands) else ""
    return f"{one.mnemonic} {one.operands}".rstrip() + target


def body(vcpu: Vcpu, function: Symbol) -> Iterator[Instruction]:
    """All instructions of a function."""
    for one in instructions(vcpu, function.address, function.size):
        if one.address >= function.address + function.size:
            return
        yield one


def leaves(one: Instruction, function: Symbol) -> bool:
    """Whether an instruction returns from its function, or may jump out of it."""
    if one.mnemonic.startswith(("ret", "iret", "sysret", "sysexit")):
        return True
    is_jump = one.mnemonic.startswith("j") and re.fullmatch(r"0x[0-9a-f]+", one.operands)
    return bool(is_jump) and not 0 <= int(one.operands, 16) - function.address < function.size


def is_call(one: Instruction) -> bool:
    """Whether execution comes back after an instruction once something else has run: a call, or a repeated one."""
    return one.mnemonic.startswith(("call", "lcall", "rep", "int", "syscall", "sysenter", "loop"))
