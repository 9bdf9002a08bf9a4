"""Proof, once per process, that this libunicorn behaves as the engine needs: a few instructions in a scratch CPU.

check.py compares offsets at rest; this runs what depends on code paths: the walker and its exit, the block hook's way
to its block, the count after a fault, an exception delivered through an IDT, a port handler's stop, an exit control.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .. import x86
from ..addr import PAGE_SHIFT, Gva, Hpa
from ..errors import ConfigError
from ..phys import Ram
from . import mailbox as mb
from .engine import CpuExit

if TYPE_CHECKING:
    from .unicorn_engine import UnicornEngine

TABLES, CODE, GDT, IDT, STACK = 0x1000, 0x5000, 0x6000, 0x7000, 0x9000
FRAMES = 10
PROGRAM = bytes.fromhex(
    "b805000000"  # mov eax, 5
    "31db"  # xor ebx, ebx
    "cc"  # int3: the handler is the IRETQ below
    "e680"  # out 0x80, al: the handler asks to stop
    "ffc3"  # inc ebx
    "488b0c2500002000"  # mov rcx, [0x200000]: not mapped
    "48cf"  # iretq
)
CONTROLLED = bytes.fromhex(
    "0fa2"  # cpuid: an exit
    "31c9"  # xor ecx, ecx
    "0f01ee"  # rdpkru
    "f4"  # hlt
)
CONTROLLED_AT = CODE + 0x100
KEYS = 0x1234_5670
HANDLER = CODE + len(PROGRAM) - 2
AFTER_OUT, AT_FAULT, UNMAPPED = CODE + 10, CODE + 12, 0x200000
COUNT_AT_STOP, COUNT_AT_FAULT, COUNT_AT_END = 5, 6, 10


def run(engine: UnicornEngine) -> list[str]:
    """What went wrong in a scratch engine over `FRAMES` frames; empty if nothing."""
    _build(engine.ram)
    engine.init_long_mode(Gva(CODE), TABLES, Gva(GDT), 0x17, Gva(STACK), idt_base=IDT, idt_limit=0xFFF)
    engine.load_root(Hpa(TABLES), engine.cr3, engine.cr0, engine.cr4, engine.efer)
    engine.on_out(lambda port, size, value: engine.request_stop())
    wrong = []
    stopped = (engine.enter(), engine.rip, engine.instructions, engine.get_reg(0), engine.get_reg(3))
    if stopped != (CpuExit.STOPPED, AFTER_OUT, COUNT_AT_STOP, 5, 0):
        wrong.append(f"stop {stopped}")
    fault = (engine.enter(), engine.rip, engine.instructions, engine.box[mb.EXIT_VA], engine.get_reg(3))
    if fault != (CpuExit.WALK_FAULT, AT_FAULT, COUNT_AT_FAULT, UNMAPPED, 1):
        wrong.append(f"fault {fault}")
    if engine.box[mb.VECTOR_COUNTS + x86.BP_VECTOR] != 1 or engine.box[mb.MISCOUNTS]:
        wrong.append("exception")
    return wrong + _run_controlled(engine)


def _run_controlled(engine: UnicornEngine) -> list[str]:
    """The exit controls, and PKRU's place."""
    engine.rip = CONTROLLED_AT
    engine.controls.cpuid = True
    engine.cr4 |= x86.CR4_PKE
    engine.load_root(Hpa(TABLES), engine.cr3, engine.cr0, engine.cr4, engine.efer)
    engine.pkru = KEYS
    code = engine.enter(), engine.rip, engine.box[mb.EXIT_INSN_LEN]
    if code != (CpuExit.CPUID, CONTROLLED_AT, 2):
        return [f"control {code}"]
    engine.skip_instruction()
    end = engine.enter(), engine.get_reg(0), engine.instructions
    return [] if end == (CpuExit.HLT, KEYS, COUNT_AT_END) else [f"keys {end}"]


def _build(ram: Ram) -> None:
    rights = x86.PT_PRESENT | x86.PT_WRITABLE
    for level in range(3):
        table = TABLES + (level << PAGE_SHIFT)
        ram.q[table >> 3] = table + (1 << PAGE_SHIFT) | rights
    for pfn in range(FRAMES):
        ram.q[(TABLES + (3 << PAGE_SHIFT) >> 3) + pfn] = pfn << PAGE_SHIFT | rights
    ram.b[CODE : CODE + len(PROGRAM)] = PROGRAM
    ram.b[CONTROLLED_AT : CONTROLLED_AT + len(CONTROLLED)] = CONTROLLED
    ram.b[GDT : GDT + 24] = struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, 8, 0, 0x8E, 0, 0, 0)
    ram.b[IDT + 16 * x86.BP_VECTOR : IDT + 16 * x86.BP_VECTOR + 16] = gate


def require(make: type[UnicornEngine]) -> None:
    """Run the self-test on an engine of its own.

    Raises:
        ConfigError: this build of Unicorn behaves otherwise.
    """
    engine = make(Ram(FRAMES << PAGE_SHIFT), vcpu_id=-1)
    wrong = run(engine)
    engine.close()
    if wrong:
        raise ConfigError("this build of Unicorn 2.1.4 is not known: self-test: " + "; ".join(wrong))
