"""Registers: plain words of env, and those with more to them (flags, control and debug registers, segments, MSRs)."""

from __future__ import annotations

import ctypes

from .. import x86
from ..addr import Gva
from . import layout as lay
from . import segments as seg
from .library import Library
from .segments import Segment, TableRegister

LONG_MODE_CR0 = x86.CR0_PG | x86.CR0_WP | x86.CR0_PE | 0x32
"""PG, WP, NE, ET, MP, PE."""
LONG_MODE_CR4 = x86.CR4_PAE | x86.CR4_PGE | 0x600
"""PAE, PGE, OSFXSR, OSXMMEXCPT."""
LONG_MODE_EFER = x86.EFER_SCE | x86.EFER_LME | x86.EFER_LMA | x86.EFER_NX
FLAT_LIMIT = 0xFFFF_FFFF
GENERAL = {
    "rax": lay.RAX,
    "rbx": lay.RBX,
    "rcx": lay.RCX,
    "rdx": lay.RDX,
    "rsi": lay.RSI,
    "rdi": lay.RDI,
    "rbp": lay.RBP,
    "rsp": lay.RSP,
    **{f"r{number}": number for number in range(8, 16)},
}
"""General registers by name, in gdb's order."""
RFLAGS_FIXED, RFLAGS_TF = 2, 1 << 8
MASK64 = (1 << 64) - 1
RIP = lay.ENV_EIP // 8
EFLAGS = lay.ENV_EFLAGS // 8
EFER = lay.ENV_EFER // 8
CR0, CR2, CR3, CR4 = (lay.ENV_CR // 8 + i for i in (0, 2, 3, 4))
HFLAGS = lay.ENV_HFLAGS // 8
DR = lay.ENV_DR // 8
DR6, DR7 = DR + 6, DR + 7
CR0_CACHE_BITS = 0x6000_0000
"""CD and NW."""
DR7_ENABLE_BITS = 0xFF
PKRU_RESET = 0
MXCSR_RESET = 0x1F80

MSR_OFFSETS = {
    0x174: lay.ENV_SYSENTER_CS,
    0x175: lay.ENV_SYSENTER_ESP,
    0x176: lay.ENV_SYSENTER_EIP,
    0x1A0: lay.ENV_MISC_ENABLE,
    0x277: lay.ENV_PAT,
    0xC000_0081: lay.ENV_STAR,
    0xC000_0082: lay.ENV_LSTAR,
    0xC000_0083: lay.ENV_CSTAR,
    0xC000_0084: lay.ENV_FMASK,
    0xC000_0100: seg.offset_of(seg.FS) + lay.SEG_BASE,
    0xC000_0101: seg.offset_of(seg.GS) + lay.SEG_BASE,
    0xC000_0102: lay.ENV_KERNEL_GS_BASE,
    0xC000_0103: lay.ENV_TSC_AUX,
}
"""The MSRs that Unicorn itself keeps, and where in env."""
EFER_INDEX, SYSENTER_CS_INDEX = 0xC000_0080, 0x174
MSR_RESET = {**dict.fromkeys(MSR_OFFSETS, 0), 0x277: 0x0007_0406_0007_0406, 0x1A0: 1}


def words(address: int, size: int) -> memoryview[int]:
    """Memory of this process as unsigned 64-bit words."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B").cast("Q")


def read_flags(lib: Library, env: int) -> int:
    """RFLAGS, computed from Unicorn's lazy flags."""
    return int(lib.helper_read_eflags(env)) | RFLAGS_FIXED


def write_flags(lib: Library, env: int, value: int) -> None:
    lib.helper_write_eflags(env, value, 0xFFFF_FFFF)
    ctypes.c_uint64.from_address(env + lay.ENV_EFLAGS).value |= RFLAGS_FIXED


def update_hflags(lib: Library, env: int) -> None:
    """Recompute the state that is derived from segments, control registers and EFER."""
    lib.x86_update_hflags(env)
    ctypes.c_uint32.from_address(env + lay.ENV_HFLAGS).value &= ~lay.HF_OF_EFLAGS


def write_efer(lib: Library, env: int, value: int) -> None:
    """EFER with LMA as given; the derived state follows."""
    ctypes.c_uint64.from_address(env + lay.ENV_EFER).value = value
    update_hflags(lib, env)


def write_flat_segments(env: int, code_flags: int) -> None:
    """CS 0x08 and data segments 0x10 over all addresses, no TSS, no LDT. The caller updates the derived state."""
    seg.write(env, seg.offset_of(seg.CS), Segment(0x08, 0, FLAT_LIMIT, code_flags))
    for i in (seg.ES, seg.SS, seg.DS, seg.FS, seg.GS):
        seg.write(env, seg.offset_of(i), Segment(0x10, 0, FLAT_LIMIT, seg.DATA_FLAGS))
    seg.write(env, lay.ENV_TR, Segment(0, 0, 0, seg.TSS_FLAGS))
    seg.write(env, lay.ENV_LDT, Segment(0, 0, 0, seg.LDT_FLAGS))


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
    write_flat_segments(env, seg.CODE64_FLAGS)
    seg.write(env, lay.ENV_GDT, Segment(0, *gdt, 0))
    seg.write(env, lay.ENV_IDT, Segment(0, *idt, 0))
    write_efer(lib, env, efer)
    write_flags(lib, env, RFLAGS_FIXED)
    ctypes.c_uint64.from_address(env + lay.ENV_EIP).value = entry


def data_breakpoints(dr7: int) -> int:
    """How many breakpoints on data DR7 has on."""
    return sum(bool(dr7 >> 2 * i & 3) and dr7 >> 16 + 4 * i & 3 in (1, 3) for i in range(4))


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
    def linear_rip(self) -> int:
        """CS.base + RIP."""
        return self.segment(seg.CS).base + self.rip & MASK64

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
        turned = value ^ self.env[CR4]
        self._lib.cpu_x86_update_cr4(self._env_address, value)
        if turned & x86.CR4_PKE:
            self._lib.tlb_flush(self._env_address - lay.CPU_ENV)

    @property
    def cr8(self) -> int:
        """Task priority as MOV from CR8 reads it."""
        return ctypes.c_uint8.from_address(self._env_address + lay.ENV_V_TPR).value

    @cr8.setter
    def cr8(self, value: int) -> None:
        ctypes.c_uint8.from_address(self._env_address + lay.ENV_V_TPR).value = value & 15

    @property
    def efer(self) -> int:
        return self.env[EFER]

    @efer.setter
    def efer(self, value: int) -> None:
        """As WRMSR, but LMA is taken as given. A change of NX empties the TLB."""
        turned = value ^ self.env[EFER]
        write_efer(self._lib, self._env_address, value)
        if turned & x86.EFER_NX:
            self._lib.tlb_flush(self._env_address - lay.CPU_ENV)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.env[HFLAGS] & lay.HF_CPL_MASK

    def segment(self, i: int) -> Segment:
        """Segment register `i`: es cs ss ds fs gs."""
        return seg.read(self._env_address, seg.offset_of(i))

    def set_segment(self, i: int, segment: Segment) -> None:
        """Load a segment register with its cached descriptor; the SS descriptor's DPL is the CPL."""
        self._set_cache(seg.offset_of(i), segment)

    def set_flat_segments(self, code_flags: int) -> None:
        """See write_flat_segments."""
        write_flat_segments(self._env_address, code_flags)
        update_hflags(self._lib, self._env_address)

    def _set_cache(self, offset: int, segment: Segment) -> None:
        seg.write(self._env_address, offset, segment)
        update_hflags(self._lib, self._env_address)

    @property
    def tr(self) -> Segment:
        """The task register; its TSS is busy."""
        cached = seg.read(self._env_address, lay.ENV_TR)
        return cached._replace(flags=cached.flags | seg.BUSY) if cached.flags & seg.P else cached

    @tr.setter
    def tr(self, segment: Segment) -> None:
        self._set_cache(lay.ENV_TR, segment._replace(flags=segment.flags & ~seg.BUSY))

    @property
    def ldtr(self) -> Segment:
        return seg.read(self._env_address, lay.ENV_LDT)

    @ldtr.setter
    def ldtr(self, segment: Segment) -> None:
        self._set_cache(lay.ENV_LDT, segment)

    @property
    def gdtr(self) -> TableRegister:
        table = seg.read(self._env_address, lay.ENV_GDT)
        return TableRegister(table.base, table.limit)

    @gdtr.setter
    def gdtr(self, table: TableRegister) -> None:
        self._set_cache(lay.ENV_GDT, Segment(0, table.base, table.limit, 0))

    @property
    def idtr(self) -> TableRegister:
        table = seg.read(self._env_address, lay.ENV_IDT)
        return TableRegister(table.base, table.limit)

    @idtr.setter
    def idtr(self, table: TableRegister) -> None:
        self._set_cache(lay.ENV_IDT, Segment(0, table.base, table.limit, 0))

    def dr(self, i: int) -> int:
        """Debug register 0-3, 6 or 7."""
        return self.env[DR + i]

    def set_dr(self, i: int, value: int) -> None:
        """Set a debug register; breakpoints follow."""
        if i == 6:
            self.env[DR6] = value
            return
        dr7 = value if i == 7 else self.env[DR7]
        self._lib.cpu_x86_update_dr7(self._env_address, self.env[DR7] & ~DR7_ENABLE_BITS)
        if i < 4:
            self.env[DR + i] = value
        self._lib.cpu_x86_update_dr7(self._env_address, dr7)
        self._breakpoints_changed()

    def _breakpoints_changed(self) -> None:
        """For those who watch data breakpoints."""

    def get_msr(self, index: int) -> int:
        """An MSR of MSR_OFFSETS, or EFER; KeyError for any other."""
        if index == EFER_INDEX:
            return self.efer
        value = self.env[MSR_OFFSETS[index] // 8]
        return value & 0xFFFF_FFFF if index == SYSENTER_CS_INDEX else value

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR of MSR_OFFSETS, or EFER, without any check; KeyError for any other."""
        if index == EFER_INDEX:
            self.efer = value
        elif index == SYSENTER_CS_INDEX:
            ctypes.c_uint32.from_address(self._env_address + lay.ENV_SYSENTER_CS).value = value
        else:
            self.env[MSR_OFFSETS[index] // 8] = value & MASK64

    @property
    def pkru(self) -> int:
        return ctypes.c_uint32.from_address(self._env_address + lay.ENV_PKRU).value

    @pkru.setter
    def pkru(self, value: int) -> None:
        """The caller flushes the TLB."""
        ctypes.c_uint32.from_address(self._env_address + lay.ENV_PKRU).value = value

    @property
    def xcr0(self) -> int:
        return self.env[lay.ENV_XCR0 // 8]

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.env[lay.ENV_XCR0 // 8] = value

    def reset_fpu(self) -> None:
        """x87, SSE and their control words as FNINIT and a reset leave them."""
        start, end = lay.ENV_XMM_REGS, lay.ENV_XMM_REGS + lay.XMM_SIZE * 32
        self._lib.helper_fninit(self._env_address)
        self.env.cast("B")[lay.ENV_FPREGS : lay.ENV_FPREGS + 16 * 8] = bytes(16 * 8)
        self.env.cast("B")[start:end] = bytes(end - start)
        self._lib.helper_ldmxcsr(self._env_address, MXCSR_RESET)
