"""The states a CPU starts in: reset, INIT and SIPI, and what a loader of protected mode leaves.

Sources: SDM vol. 3, table 9-1 (reset and INIT) and 8.4 (SIPI); Multiboot specification 0.6.96, 3.2.
"""

from __future__ import annotations

from .. import x86
from . import layout as lay
from . import segments as seg
from .registers import CR0_CACHE_BITS, MSR_RESET, PKRU_RESET, RFLAGS_FIXED, Registers
from .segments import Segment, TableRegister, real_mode

PROTECTED_MODE_CR0 = x86.CR0_PE | 0x10
RESET_CR0 = 0x6000_0010
REAL_MODE_IDTR = TableRegister(0, 0x3FF)
RESET_DR6, RESET_DR7 = 0xFFFF_0FF0, 0x400


def protected_mode(cpu: Registers, entry: int, gdtr: TableRegister) -> None:
    """32-bit mode without paging at CPL 0: flat CS 0x08 and data segments 0x10. General registers are 0.

    IDTR is still that of real mode, as a PC's loaders leave it: a kernel that goes back there finds its vectors at 0.
    """
    _leave_long_mode(cpu, PROTECTED_MODE_CR0)
    cpu.set_flat_segments(seg.CODE32_FLAGS)
    cpu.gdtr, cpu.idtr = gdtr, REAL_MODE_IDTR
    _clear_general(cpu)
    cpu.rip = entry


def _leave_long_mode(cpu: Registers, cr0: int) -> None:
    cpu.cr0 = cr0
    cpu.cr4 = cpu.cr3 = 0
    cpu.env[lay.ENV_CR // 8 + 2] = 0
    cpu.efer = 0


def _clear_general(cpu: Registers) -> None:
    for i in range(16):
        cpu.env[i] = 0
    cpu.rflags = RFLAGS_FIXED


def reset(cpu: Registers, signature: int, *, is_init: bool) -> None:
    """Real mode at F000:FFF0 with the CS base 0xffff0000; RDX is `signature`.

    INIT keeps CR0.CD and CR0.NW, the x87 and SSE registers and the MSRs except EFER.
    """
    kept = cpu.cr0 & CR0_CACHE_BITS if is_init else RESET_CR0 & CR0_CACHE_BITS
    _leave_long_mode(cpu, RESET_CR0 & ~CR0_CACHE_BITS | kept)
    for i in (seg.ES, seg.SS, seg.DS, seg.FS, seg.GS):
        cpu.set_segment(i, real_mode(0))
    cpu.set_segment(seg.CS, Segment(0xF000, 0xFFFF_0000, 0xFFFF, seg.CODE16_FLAGS))
    cpu.tr, cpu.ldtr = Segment(0, 0, 0xFFFF, seg.TSS_FLAGS), Segment(0, 0, 0xFFFF, seg.LDT_FLAGS)
    cpu.gdtr = cpu.idtr = TableRegister(0, 0xFFFF)
    _clear_general(cpu)
    cpu.set_reg(lay.RDX, signature)
    for i in range(4):
        cpu.set_dr(i, 0)
    cpu.set_dr(6, RESET_DR6)
    cpu.set_dr(7, RESET_DR7)
    cpu.rip = 0xFFF0
    if not is_init:
        _reset_the_rest(cpu)


def _reset_the_rest(cpu: Registers) -> None:
    for index, value in MSR_RESET.items():
        cpu.set_msr(index, value)
    cpu.pkru, cpu.xcr0 = PKRU_RESET, 1
    cpu.reset_fpu()


def sipi(cpu: Registers, vector: int) -> None:
    """Start-up IPI to a CPU after INIT: real mode at `vector` << 12."""
    cpu.set_segment(seg.CS, Segment(vector << 8, vector << 12, 0xFFFF, seg.CODE16_FLAGS))
    cpu.rip = 0
