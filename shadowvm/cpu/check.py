"""Is this the Unicorn that layout.py describes? Every offset is compared with what the public API says.

`check_layout` looks at one engine's objects before anything is patched. selftest.py then runs a few instructions in
a scratch engine, once per process, to prove the rest: the hooks, the translated block's fields, the exit.
"""

from __future__ import annotations

import ctypes
import struct

from ..errors import ConfigError
from . import layout as lay
from .library import Library

REG_EFLAGS, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP = 25, 35, 36, 37, 38, 39, 40, 41
REG_RSI, REG_RSP, REG_CR0, REG_CR2, REG_CR3, REG_CR4, REG_R8 = 43, 44, 50, 52, 53, 54, 106
REG_IDTR, REG_GDTR, REG_LDTR, REG_TR, REG_MSR = 242, 243, 244, 245, 248
GENERAL = (REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, *range(REG_R8, REG_R8 + 8))
CLASS_WORDS = 64


def peek(address: int, size: int = 8) -> int:
    """An unsigned little-endian field of this process."""
    return int.from_bytes(ctypes.string_at(address, size), "little")


class _Probe:
    """Writes through the public API and reads back at an offset; collects what differs."""

    def __init__(self, lib: Library, uc: int, env: int) -> None:
        self.lib, self.uc, self.env = lib, uc, env
        self.wrong: list[str] = []

    def expect(self, name: str, address: int, want: int, size: int = 8) -> None:
        if peek(address, size) != want:
            self.wrong.append(name)

    def register(self, name: str, reg: int, offset: int, value: int) -> None:
        """Write a register, compare, and put the old value back."""
        old, new = ctypes.c_uint64(), ctypes.c_uint64(value)
        self.lib.uc_reg_read(self.uc, reg, ctypes.byref(old))
        self.lib.uc_reg_write(self.uc, reg, ctypes.byref(new))
        self.expect(name, self.env + offset, value)
        self.lib.uc_reg_write(self.uc, reg, ctypes.byref(old))

    def table(self, name: str, reg: int, offset: int) -> None:
        """Write a descriptor-table register (struct uc_x86_mmr: selector, base, limit, flags)."""
        base, limit = 0x7AB_CDEF_0000 + reg, 0x1234
        mmr = ctypes.create_string_buffer(struct.pack("<HxxxxxxQII", 0x28, base, limit, 0x8B00), 24)
        self.lib.uc_reg_write(self.uc, reg, mmr)
        self.expect(f"{name}.base", self.env + offset + lay.SEG_BASE, base)
        self.expect(f"{name}.limit", self.env + offset + lay.SEG_LIMIT, limit, 4)
        self.lib.uc_reg_write(self.uc, reg, ctypes.create_string_buffer(24))

    def msr(self, number: int, offset: int) -> None:
        for value in (0x5A5A_0000 + number & 0xFFFF_FFFF, peek(self.env + offset)):
            pair = ctypes.create_string_buffer(struct.pack("<IxxxxQ", number, value), 16)
            self.lib.uc_reg_write(self.uc, REG_MSR, pair)
            self.expect(f"msr {number:#x}", self.env + offset, value)


def check_layout(lib: Library, uc: int, cpu: int) -> None:
    """Compare the offsets of `layout` with an engine that has just been made.

    Raises:
        ConfigError: this build of Unicorn keeps something elsewhere.
    """
    env = cpu + lay.CPU_ENV
    probe = _Probe(lib, uc, env)
    probe.expect("cpu.env_ptr", cpu + lay.CPU_ENV_PTR, env)
    probe.expect("cpu.uc", cpu + lay.CPU_UC, uc)
    probe.expect("cpu.icount_decr_ptr", cpu + lay.CPU_ICOUNT_DECR_PTR, env + lay.ICOUNT_HIGH - 2)
    probe.expect("cpu.cflags_next_tb", cpu + lay.CPU_CFLAGS_NEXT_TB, 0xFFFF_FFFF, 4)
    probe.expect("cpu.interrupt_request", cpu + lay.CPU_INTERRUPT_REQUEST, 0, 4)
    for mmu_idx in range(3):
        probe.expect(f"tlb[{mmu_idx}].mask", env + lay.TLB_FAST + 16 * mmu_idx, 255 * lay.TLB_ENTRY_SIZE)
    if probe.wrong:
        raise _unknown(probe.wrong)
    for i, reg in enumerate(GENERAL):
        probe.register(f"regs[{i}]", reg, lay.ENV_REGS + 8 * i, 0x5A00_C0DE_0000_0000 + i)
    probe.register("eip", REG_RIP, lay.ENV_EIP, 0x7AC0_DE00_0000)
    probe.register("cr2", REG_CR2, lay.ENV_CR + 16, 0x7AC0_DE01_0000)
    probe.register("cr3", REG_CR3, lay.ENV_CR + 24, 0x7AC0_DE02_0000)
    for name, reg, offset in (
        ("gdt", REG_GDTR, lay.ENV_GDT),
        ("idt", REG_IDTR, lay.ENV_IDT),
        ("ldt", REG_LDTR, lay.ENV_LDT),
        ("tr", REG_TR, lay.ENV_TR),
    ):
        probe.table(name, reg, offset)
    for number, offset in (
        (0x175, lay.ENV_SYSENTER_ESP),
        (0x176, lay.ENV_SYSENTER_EIP),
        (0x1A0, lay.ENV_MISC_ENABLE),
        (0x277, lay.ENV_PAT),
        (0xC000_0081, lay.ENV_STAR),
        (0xC000_0082, lay.ENV_LSTAR),
        (0xC000_0084, lay.ENV_FMASK),
        (0xC000_0083, lay.ENV_CSTAR),
        (0xC000_0102, lay.ENV_KERNEL_GS_BASE),
        (0xC000_0103, lay.ENV_TSC_AUX),
    ):
        probe.msr(number, offset)
    if probe.wrong:
        raise _unknown(probe.wrong)


def _unknown(names: list[str]) -> ConfigError:
    return ConfigError("this build of Unicorn 2.1.4 is not known: " + ", ".join(names) + " elsewhere than expected")


def class_slot(lib: Library, cpu: int, function: str) -> int:
    """Address of the CPUClass pointer that holds an exported function.

    Raises:
        ConfigError: no such pointer, or several.
    """
    at, want = peek(cpu + lay.CPU_CLASS), lib.address(function)
    hits = [at + 8 * i for i in range(CLASS_WORDS) if peek(at + 8 * i) == want]
    if len(hits) != 1:
        raise _unknown([f"CPUClass.{function}"])
    return hits[0]
