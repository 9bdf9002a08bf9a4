"""Registers: plain words of env, and those with more to them (flags, control registers, segments, long mode)."""

from __future__ import annotations

import ctypes
import struct

from .. import x86
from ..addr import Gva
from . import layout as lay
from .library import Library

CODE64_FLAGS = 0x00AF_9B00
DATA_FLAGS = 0x00CF_9300
TSS_FLAGS = 0x0000_8B00
LDT_FLAGS = 0x0000_8200
LONG_MODE_CR0 = x86.CR0_PG | x86.CR0_WP | x86.CR0_PE | 0x32
"""PG, WP, NE, ET, MP, PE."""
LONG_MODE_CR4 = x86.CR4_PAE | x86.CR4_PGE | 0x600
"""PAE, PGE, OSFXSR, OSXMMEXCPT."""
LONG_MODE_EFER = x86.EFER_SCE | x86.EFER_LME | x86.EFER_LMA | x86.EFER_NX
SEGMENT = struct.Struct("<IxxxxQII")
RFLAGS_FIXED = 2
MASK64 = (1 << 64) - 1
RIP = lay.ENV_EIP // 8
EFER = lay.ENV_EFER // 8
CR0, CR2, CR3, CR4 = (lay.ENV_CR // 8 + i for i in (0, 2, 3, 4))
HFLAGS = lay.ENV_HFLAGS // 8
DR6 = lay.ENV_DR // 8 + 6


def words(address: int, size: int) -> memoryview[int]:
    """Memory of this process as unsigned 64-bit words."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B").cast("Q")


def write_segment(env: int, offset: int, selector: int, base: int, limit: int, flags: int) -> None:
    """A SegmentCache of env; `flags` is the descriptor's second doubleword."""
    ctypes.memmove(env + offset, SEGMENT.pack(selector, base, limit, flags), SEGMENT.size)


def read_flags(lib: Library, env: int) -> int:
    """RFLAGS, computed from Unicorn's lazy flags."""
    return int(lib.helper_read_eflags(env)) | RFLAGS_FIXED


def write_flags(lib: Library, env: int, value: int) -> None:
    lib.helper_write_eflags(env, value, 0xFFFF_FFFF)
    ctypes.c_uint64.from_address(env + lay.ENV_EFLAGS).value |= RFLAGS_FIXED


def write_efer(lib: Library, env: int, value: int) -> None:
    """EFER with LMA as given; the derived state follows."""
    ctypes.c_uint64.from_address(env + lay.ENV_EFER).value = value
    lib.x86_update_hflags(env)


def enter_long_mode(
    lib: Library,
    env: int,
    entry: Gva,
    cr3: int,
    gdt: tuple[Gva, int],
    idt: tuple[Gva, int],
    cr0: int,
    cr4: int,
    efer: int,
) -> None:
    """64-bit mode at CPL 0: CS 0x08, data segments 0x10, no TSS, no LDT. General registers are left alone."""
    lib.cpu_x86_update_cr4(env, cr4)
    lib.cpu_x86_update_cr3(env, cr3)
    lib.cpu_x86_update_cr0(env, cr0)
    write_segment(env, lay.ENV_SEGS + lay.SEG_SIZE * lay.CS, 0x08, 0, 0xFFFF_FFFF, CODE64_FLAGS)
    for segment in (lay.ES, lay.SS, lay.DS, lay.FS, lay.GS):
        write_segment(env, lay.ENV_SEGS + lay.SEG_SIZE * segment, 0x10, 0, 0xFFFF_FFFF, DATA_FLAGS)
    write_segment(env, lay.ENV_TR, 0, 0, 0, TSS_FLAGS)
    write_segment(env, lay.ENV_LDT, 0, 0, 0, LDT_FLAGS)
    write_segment(env, lay.ENV_GDT, 0, gdt[0], gdt[1], 0)
    write_segment(env, lay.ENV_IDT, 0, idt[0], idt[1], 0)
    write_efer(lib, env, efer)
    write_flags(lib, env, RFLAGS_FIXED)
    ctypes.c_uint64.from_address(env + lay.ENV_EIP).value = entry


class Registers:
    """A CPU's registers by name. `env` is the live register file as 64-bit words: env[RIP], env[CR3]; writing a word
    there has no side effect, the properties' setters do what the instruction would (flush, derived state)."""

    def __init__(self, lib: Library, env_address: int) -> None:
        self._lib, self._env_address = lib, env_address
        self.env = words(env_address, lay.ENV_SAVED)

    def get_reg(self, i: int) -> int:
        """General register `i`: rax rcx rdx rbx rsp rbp rsi rdi r8-r15."""
        return self.env[i]

    def set_reg(self, i: int, value: int) -> None:
        self.env[i] = value & MASK64

    @property
    def rip(self) -> int:
        return self.env[RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self.env[RIP] = value & MASK64

    @property
    def rflags(self) -> int:
        return read_flags(self._lib, self._env_address)

    @rflags.setter
    def rflags(self, value: int) -> None:
        write_flags(self._lib, self._env_address, value)

    @property
    def cr0(self) -> int:
        return self.env[CR0]

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._lib.cpu_x86_update_cr0(self._env_address, value)

    @property
    def cr2(self) -> int:
        return self.env[CR2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.env[CR2] = value

    @property
    def cr3(self) -> int:
        return self.env[CR3]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._lib.cpu_x86_update_cr3(self._env_address, value)

    @property
    def cr4(self) -> int:
        return self.env[CR4]

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._lib.cpu_x86_update_cr4(self._env_address, value)

    @property
    def efer(self) -> int:
        return self.env[EFER]

    @efer.setter
    def efer(self, value: int) -> None:
        write_efer(self._lib, self._env_address, value)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.env[HFLAGS] & lay.HF_CPL_MASK
