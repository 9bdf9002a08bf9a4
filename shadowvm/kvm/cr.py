"""Writes to control registers and EFER: what is legal, where the CPU underneath is too lax (arch/x86/kvm/x86.c).

Each function returns whether the value may be loaded; False is #GP(0) (SDM vol. 3, 2.5 and 4.1.2). The caller loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import PAGE_SHIFT, Gfn, Hva
from ..mm.fault import VmFault
from ..mm.uaccess import read_user_u64
from ..x86 import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    PT_PRESENT,
)
from .mmu.paging_mode import MAXPHYADDR, PDPTR_RSVD

if TYPE_CHECKING:
    from .cpuid import CpuModel
    from .vcpu import Vcpu

CR0_NW, CR0_CD = 1 << 29, 1 << 30
CR0_RESERVED = 0x1FFAFFC0
"""Bits of CR0 that are ignored when written and read as zero (SDM vol. 3, 2.5)."""
PDPTR_CR0, PDPTR_CR4 = CR0_PG | CR0_CD | CR0_NW, CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP
"""A MOV that changes one of these loads the PAE pointers, if PAE paging is in use after it (SDM vol. 3, 4.4.1)."""
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_MCE, CR4_PCE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8
CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_FSGSBASE, CR4_OSXSAVE = 1 << 9, 1 << 10, 1 << 16, 1 << 18
_CR4_BY_FEATURE = {
    "tsc": CR4_TSD,
    "de": CR4_DE,
    "pse": CR4_PSE,
    "pae": CR4_PAE,
    "mce": CR4_MCE,
    "pge": CR4_PGE,
    "fxsr": CR4_OSFXSR,
    "sse": CR4_OSXMMEXCPT,
    "smep": CR4_SMEP,
    "smap": CR4_SMAP,
    "pku": CR4_PKE,
    "la57": CR4_LA57,
    "fsgsbase": CR4_FSGSBASE,
    "xsave": CR4_OSXSAVE,
}


def is_valid_cr0(value: int, *, cr4: int, efer: int, cs_long: bool) -> bool:
    """kvm_set_cr0(). `cs_long`: CS.L, in which paging can be neither turned on nor off."""
    if value >> 32 or (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return False
    if value & CR0_PG and efer & EFER_LME and not efer & EFER_LMA:
        return bool(cr4 & CR4_PAE) and not cs_long
    return bool(value & CR0_PG) or not (efer & EFER_LMA and cs_long)


def cr4_reserved_bits(model: CpuModel) -> int:
    """Bits of CR4 that the CPU model does not know."""
    known = CR4_PCE
    for feature, bit in _CR4_BY_FEATURE.items():
        if model.has(feature):
            known |= bit
    return ~known


def is_valid_cr4(value: int, *, model: CpuModel, old: int, efer: int) -> bool:
    """kvm_set_cr4()."""
    if value & cr4_reserved_bits(model):
        return False
    if efer & EFER_LMA:
        return bool(value & CR4_PAE) and not (value ^ old) & CR4_LA57
    return True


def is_valid_cr3(value: int, *, efer: int) -> bool:
    """kvm_set_cr3(): address bits that the CPU does not have are reserved in long mode."""
    return not (efer & EFER_LMA and value >> MAXPHYADDR)


def is_valid_efer(value: int, *, model: CpuModel, old: int, cr0: int) -> bool:
    """set_efer(). LMA is read-only: a write that differs in it is not refused."""
    known = EFER_LMA
    known |= EFER_SCE if model.has("syscall") else 0
    known |= EFER_LME if model.has("lm") else 0
    known |= EFER_NX if model.has("nx") else 0
    if value & ~known:
        return False
    return not (cr0 & CR0_PG and (value ^ old) & EFER_LME)


def load_pdptrs(vcpu: Vcpu, cr3: int) -> list[int] | None:
    """The four PAE pointers at CR3; None (#GP) if a present one has reserved bits, or memory is not there."""
    gfn = Gfn((cr3 & 0xFFFFFFE0) >> PAGE_SHIFT)
    slot = vcpu.memslots.find(gfn)
    if slot is None:
        return None
    pdptrs = []
    for index in range(4):
        hva = Hva(slot.vpn(gfn) << PAGE_SHIFT | cr3 & 0xFE0 | index << 3)
        value = read_user_u64(vcpu.kvm.mm, hva)
        if isinstance(value, VmFault) or (value & PT_PRESENT and value & PDPTR_RSVD):
            return None
        pdptrs.append(value)
    return pdptrs
