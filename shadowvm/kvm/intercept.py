"""Instructions that leave the guest: MOV to control registers, RDMSR, WRMSR, CPUID, INVLPG (vmx.c, handle_cr and kin).

The CPU underneath takes any value. Here it is checked first; what is refused is #GP(0) at the instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..addr import Gva
from ..cpu.layout import HF_CS64_MASK
from ..cpu.mailbox import EXIT_CR, EXIT_GPR, EXIT_VA
from ..cpu.registers import HFLAGS
from ..events import kvm_cpuid, kvm_cr, kvm_msr
from ..x86 import EFER_LMA, EFER_LME
from .cpuid import cpuid
from .cr import CR0_RESERVED, PDPTR_CR0, PDPTR_CR4, is_valid_cr0, is_valid_cr3, is_valid_cr4, load_pdptrs
from .exit import KvmRun
from .inject import inject_gp
from .mmu.paging_mode import MAXPHYADDR, PagingMode, paging_mode
from .mmu.root import kvm_mmu_free_roots, root_of_cr3
from .mmu.sync import kvm_mmu_invlpg, kvm_mmu_sync_roots
from .mmu.unsync import vcpu_update_flush_exits
from .msr import kvm_get_msr, kvm_set_msr

if TYPE_CHECKING:
    from .vcpu import Vcpu

RAX, RCX, RDX, RBX = 0, 1, 2, 3
_LOW = 0xFFFFFFFF
CR3_RESERVED = ((1 << 64) - 1) & ~((1 << MAXPHYADDR) - 1)
"""What engine.controls.cr3_reserved has to be."""


def exit_cr_write(vcpu: Vcpu) -> KvmRun | None:
    """MOV to CR0, CR4, CR8, or to CR3: in PAE mode, with bits that may be reserved, or while pages are unsync."""
    engine = vcpu.engine
    register, value = engine.box[EXIT_CR], engine.get_reg(engine.box[EXIT_GPR])
    if not _is_64bit(vcpu):
        value &= _LOW
    if kvm_cr.on:
        kvm_cr(register, value)
    if not kvm_set_cr(vcpu, register, value):
        return inject_gp(vcpu)
    engine.skip_instruction()
    return None


def kvm_set_cr(vcpu: Vcpu, register: int, value: int) -> bool:
    """Load CR0, CR3, CR4 or CR8 as MOV does; False, and nothing has changed, for what that refuses."""
    engine = vcpu.engine
    if register == 0:
        value &= ~CR0_RESERVED
    if not _may_load(vcpu, register, value) or not _load_pdptrs(vcpu, register, value):
        return False
    if register == 0:
        engine.cr0 = value
    elif register == 3:
        engine.cr3 = value
        kvm_mmu_sync_roots(vcpu, root_of_cr3(vcpu, value))
    elif register == 4:
        engine.cr4 = value
        # A change of PGE flushes everything. What leads to another root is synced when that is loaded.
        kvm_mmu_sync_roots(vcpu, vcpu.root)
    else:
        engine.cr8 = value
        if vcpu.irq is not None:
            vcpu.irq.chip.cr8 = value
            vcpu.irq.check = True
    return True


def _load_pdptrs(vcpu: Vcpu, register: int, value: int) -> bool:
    """Before `value` goes into CR0, CR3 or CR4: load the PAE pointers if that does it; False is #GP.

    They stay what they are until the next such MOV, whatever is stored in memory. In PAE mode each MOV to CR3 exits.
    """
    engine = vcpu.engine
    cr0, cr3, cr4 = (value if register == n else old for n, old in ((0, engine.cr0), (3, engine.cr3), (4, engine.cr4)))
    long_mode = engine.efer & (EFER_LMA | EFER_LME)
    is_pae = not long_mode and paging_mode(cr0, cr4, 0) is PagingMode.PAE
    changed = register == 3 or (cr0 ^ engine.cr0) & PDPTR_CR0 or (cr4 ^ engine.cr4) & PDPTR_CR4
    if is_pae and changed:
        pdptrs = load_pdptrs(vcpu, cr3)
        if pdptrs is None:
            return False
        vcpu.pdptrs, vcpu.pdptrs_cr3 = pdptrs, cr3
        engine.load_pdptrs(cr3, pdptrs)
        if not vcpu.kvm.tdp_enabled:
            kvm_mmu_free_roots(vcpu)
    elif not is_pae:
        vcpu.pdptrs_cr3 = -1
    vcpu_update_flush_exits(vcpu)
    return True


def _is_64bit(vcpu: Vcpu) -> bool:
    """CS.L: 64-bit mode."""
    return bool(vcpu.engine.env[HFLAGS] & HF_CS64_MASK)


def _may_load(vcpu: Vcpu, register: int, value: int) -> bool:
    engine = vcpu.engine
    if register == 0:
        return is_valid_cr0(value, cr4=engine.cr4, efer=engine.efer, cs_long=_is_64bit(vcpu))
    if register == 3:
        return is_valid_cr3(value, efer=engine.efer)
    if register == 4:
        return is_valid_cr4(value, model=vcpu.kvm.cpu_model, old=engine.cr4, efer=engine.efer)
    return not value >> 4


def exit_invlpg(vcpu: Vcpu) -> KvmRun | None:
    """INVLPG while pages are unsync."""
    engine = vcpu.engine
    gva = Gva(engine.box[EXIT_VA])
    kvm_mmu_invlpg(vcpu, gva)
    engine.flush_page(gva)
    engine.skip_instruction()
    return None


def exit_msr_read(vcpu: Vcpu) -> KvmRun | None:
    """RDMSR of an MSR that the CPU does not hold itself."""
    engine = vcpu.engine
    index = engine.get_reg(RCX) & _LOW
    value = kvm_get_msr(vcpu, index)
    if kvm_msr.on:
        kvm_msr(0, index, value or 0, value is None)
    if value is None:
        return inject_gp(vcpu)
    engine.set_reg(RAX, value & _LOW)
    engine.set_reg(RDX, value >> 32)
    engine.skip_instruction()
    return None


def exit_msr_write(vcpu: Vcpu) -> KvmRun | None:
    """WRMSR of an MSR that the CPU does not hold itself."""
    engine = vcpu.engine
    index = engine.get_reg(RCX) & _LOW
    value = engine.get_reg(RAX) & _LOW | (engine.get_reg(RDX) & _LOW) << 32
    done = kvm_set_msr(vcpu, index, value)
    if kvm_msr.on:
        kvm_msr(1, index, value, not done)
    if not done:
        return inject_gp(vcpu)
    engine.skip_instruction()
    return None


def exit_cpuid(vcpu: Vcpu) -> KvmRun | None:
    """CPUID answers by the configured model."""
    engine = vcpu.engine
    leaf, subleaf = engine.get_reg(RAX) & _LOW, engine.get_reg(RCX) & _LOW
    enabled = vcpu.irq is not None and vcpu.irq.chip.apic_enabled
    result = cpuid(vcpu.kvm.cpu_model, vcpu.id, engine.cr4, enabled, leaf, subleaf)
    if kvm_cpuid.on:
        kvm_cpuid(leaf, subleaf, *result)
    for register, value in zip((RAX, RBX, RCX, RDX), result, strict=True):
        engine.set_reg(register, value)
    engine.skip_instruction()
    return None
