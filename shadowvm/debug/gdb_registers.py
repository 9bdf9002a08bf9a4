"""The registers of a vCPU as gdb numbers and describes them (gdb/features/i386 in the gdb manual's appendix G)."""

from __future__ import annotations

from typing import NamedTuple

from ..cpu.registers import GENERAL
from ..cpu.segments import SEGMENTS


class Register(NamedTuple):
    """One register: gdb's name and ours, its bits and type; ours is "" for one that is not available."""

    name: str
    ours: str
    bits: int
    type: str


_FPU_CONTROL = "fctrl fstat ftag fiseg fioff foseg fooff fop".split()
_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr"}

CORE = (
    *(Register(name, name, 64, _POINTERS.get(name, "int64")) for name in GENERAL),
    Register("rip", "rip", 64, "code_ptr"),
    Register("eflags", "rflags", 32, "x64_eflags"),
    *(Register(name, name, 32, "int32") for name in SEGMENTS),
    *(Register(f"st{number}", "", 80, "i387_ext") for number in range(8)),
    *(Register(name, "", 32, "int") for name in _FPU_CONTROL),
)
SYSTEM = (
    Register("fs_base", "fs_base", 64, "int64"),
    Register("gs_base", "gs_base", 64, "int64"),
    Register("cr0", "cr0", 64, "cr0"),
    Register("cr2", "cr2", 64, "int64"),
    Register("cr3", "cr3", 64, "int64"),
    Register("cr4", "cr4", 64, "cr4"),
    Register("cr8", "cr8", 64, "int64"),
    Register("efer", "efer", 64, "efer"),
)
REGISTERS = (*CORE, *SYSTEM)

_FLAGS: dict[str, tuple[int, dict[str, int]]] = {
    "x64_eflags": (4, {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14}),
    "cr0": (
        8,
        {"PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5} | {"WP": 16, "AM": 18, "NW": 29, "CD": 30, "PG": 31},
    ),
    "cr4": (
        8,
        {"VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8, "OSFXSR": 9}
        | {"OSXMMEXCPT": 10, "LA57": 12, "FSGSBASE": 16, "PCIDE": 17, "OSXSAVE": 18, "SMEP": 20, "SMAP": 21, "PKE": 22},
    ),
    "efer": (8, {"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11}),
}


def target_xml() -> str:
    """The description that gdb asks for."""
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        "<architecture>i386:x86-64</architecture>"
        f"{_feature('org.gnu.gdb.i386.core', CORE, ('x64_eflags',))}"
        f"{_feature('org.shadowvm.x86.system', SYSTEM, ('cr0', 'cr4', 'efer'))}</target>"
    )


def _feature(name: str, registers: tuple[Register, ...], types: tuple[str, ...]) -> str:
    parts = [f'<feature name="{name}">']
    for each in types:
        size, flags = _FLAGS[each]
        parts.append(f'<flags id="{each}" size="{size}">')
        parts += [f'<field name="{flag}" start="{bit}" end="{bit}"/>' for flag, bit in flags.items()]
        parts.append("</flags>")
    parts += [f'<reg name="{each.name}" bitsize="{each.bits}" type="{each.type}"/>' for each in registers]
    return "".join([*parts, "</feature>"])


def encode(register: Register, values: dict[str, int]) -> str:
    """Hex of one register, low byte first; x for what is not available."""
    size = register.bits // 8
    if register.ours not in values:
        return "xx" * size
    return (values[register.ours] & (1 << register.bits) - 1).to_bytes(size, "little").hex()


def decode(register: Register, digits: str) -> int:
    """The value of what encode() gives. ValueError: it is not that long, or no hex."""
    data = bytes.fromhex(digits)
    if len(data) != register.bits // 8:
        raise ValueError(f"{register.name} has {register.bits} bits")
    return int.from_bytes(data, "little")
