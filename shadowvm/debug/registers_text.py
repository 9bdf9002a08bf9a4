"""Registers as QEMU's `info registers` and Bochs' `creg` print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cpu.registers import GENERAL
from ..cpu.segments import CS, DB, SEGMENTS, L, Segment
from ..kvm.mp_state import MpState
from .peek import vcpu_of

if TYPE_CHECKING:
    from ..kvm.vcpu import Vcpu
    from .target import Target

_ORDER64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_SEGMENT_ORDER = ("es", "cs", "ss", "ds", "fs", "gs")
_FLAGS = ((1 << 11, "O"), (1 << 10, "D"), (1 << 7, "S"), (1 << 6, "Z"), (1 << 4, "A"), (1 << 2, "P"), (1, "C"))
_CR0 = (
    (31, "pg"),
    (30, "cd"),
    (29, "nw"),
    (18, "ac"),
    (16, "wp"),
    (5, "ne"),
    (4, "et"),
    (3, "ts"),
    (2, "em"),
    (1, "mp"),
    (0, "pe"),
)
_CR4 = (
    *((22, "pke"), (21, "smap"), (20, "smep"), (18, "osxsave"), (17, "pcid"), (16, "fsgsbase"), (12, "la57")),
    *((11, "umip"), (10, "osxmmexcpt"), (9, "osfxsr"), (8, "pce"), (7, "pge"), (6, "mce"), (5, "pae"), (4, "pse")),
    *((3, "de"), (2, "tsd"), (1, "pvi"), (0, "vme")),
)
_EFER = ((14, "ffxsr"), (12, "svme"), (11, "nxe"), (10, "lma"), (8, "lme"), (0, "sce"))


def info_registers(target: Target, number: int | None = None) -> list[str]:
    """All of a vCPU: 64-bit names in a 64-bit code segment, else 32-bit ones."""
    vcpu = vcpu_of(target, number)
    engine = vcpu.engine
    flags = engine.segment(CS).flags
    return [
        f"CPU#{vcpu.id}",
        *(_general64(vcpu) if flags & L else _general32(vcpu)),
        *(f"{name.upper():<3}={_segment(engine.segment(SEGMENTS[name]))}" for name in _SEGMENT_ORDER),
        *(
            f"{name}=     {table.base:016x} {table.limit:08x}"
            for name, table in (("GDT", engine.gdtr), ("IDT", engine.idtr))
        ),
        f"CR0={engine.cr0:08x} CR2={engine.cr2:016x} CR3={engine.cr3:016x} CR4={engine.cr4:08x}",
        f"CR8={engine.cr8:x} EFER={engine.efer:016x}",
    ]


def _general64(vcpu: Vcpu) -> list[str]:
    engine = vcpu.engine
    texts = [f"{name.upper():<3}={engine.get_reg(GENERAL[name]):016x}" for name in _ORDER64]
    rows = [" ".join(texts[at : at + 4]) for at in range(0, len(texts), 4)]
    return [*rows, f"RIP={engine.rip:016x} RFL={engine.rflags:08x} {_status(vcpu)}"]


def _general32(vcpu: Vcpu) -> list[str]:
    engine = vcpu.engine
    texts = [f"E{name[1:].upper()}={engine.get_reg(GENERAL[name]) & 0xFFFF_FFFF:08x}" for name in _ORDER64[:8]]
    rows = [" ".join(texts[at : at + 4]) for at in range(0, len(texts), 4)]
    return [*rows, f"EIP={engine.rip:08x} EFL={engine.rflags:08x} {_status(vcpu)}"]


def _status(vcpu: Vcpu) -> str:
    engine = vcpu.engine
    flags = "".join(name if engine.rflags & bit else "-" for bit, name in _FLAGS)
    halted = int(vcpu.mp_state is not MpState.RUNNABLE)
    return f"[{flags}] CPL={engine.segment(CS).selector & 3} A20={int(not vcpu.kvm.a20_closed)} HLT={halted}"


def _segment(segment: Segment) -> str:
    """Selector, base, limit, the descriptor's upper half, and what it means."""
    flags = segment.flags & 0x00F0_FF00
    text = f"{segment.selector:04x} {segment.base:016x} {segment.limit:08x} {flags:08x} DPL={segment.dpl} "
    if not flags >> 12 & 1:
        return text.rstrip()
    kind = flags >> 8 & 15
    if kind & 8:
        width = "CS64" if flags & L else "CS32" if flags & DB else "CS16"
        return f"{text}{width} [{'C' if kind & 4 else '-'}{'R' if kind & 2 else '-'}{'A' if kind & 1 else '-'}]"
    width = "DS  " if flags & DB else "DS16"
    return f"{text}{width} [{'E' if kind & 4 else '-'}{'W' if kind & 2 else '-'}{'A' if kind & 1 else '-'}]"


def creg(target: Target, number: int | None = None) -> list[str]:
    """Control registers, the names of set bits in capitals."""
    engine = vcpu_of(target, number).engine
    return [
        f"CR0={engine.cr0:#010x}: {_bits(engine.cr0, _CR0)}",
        f"CR2=page fault laddr={engine.cr2:#018x}",
        f"CR3={engine.cr3:#014x}",
        f"    PCD=page-level cache disable={engine.cr3 >> 4 & 1}",
        f"    PWT=page-level write-through={engine.cr3 >> 3 & 1}",
        f"CR4={engine.cr4:#010x}: {_bits(engine.cr4, _CR4)}",
        f"CR8: {engine.cr8:#x}",
        f"EFER={engine.efer:#010x}: {_bits(engine.efer, _EFER)}",
    ]


def _bits(value: int, names: tuple[tuple[int, str], ...]) -> str:
    return " ".join(name.upper() if value >> bit & 1 else name for bit, name in names)
