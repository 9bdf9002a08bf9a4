"""Model specific registers: which exist, what they hold, what is refused (arch/x86/kvm/x86.c; SDM vol. 4).

`read` gives None and `write` False for #GP(0): an MSR that does not exist, a value that it cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .apf_msr import APF_READERS, APF_WRITERS
from .cr import is_valid_efer

if TYPE_CHECKING:
    from .vcpu import Vcpu

IA32_TSC, IA32_TSC_ADJUST = 0x10, 0x3B
IA32_FEATURE_CONTROL, IA32_BIOS_SIGN_ID, IA32_MTRRCAP = 0x3A, 0x8B, 0xFE
IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP = 0x174, 0x175, 0x176
IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MISC_ENABLE = 0x179, 0x17A, 0x1A0
IA32_PAT, IA32_MTRR_DEF_TYPE = 0x277, 0x2FF
IA32_EFER, IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK = 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103
NR_VARIABLE_MTRRS = 8

NATIVE = (
    *(IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP),
    *(IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK),
    *(IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_TSC_AUX),
)
"""Held by the CPU itself; the guest reads and writes them without an exit."""
CHECKED = (
    *(IA32_SYSENTER_ESP, IA32_SYSENTER_EIP, IA32_LSTAR, IA32_CSTAR),
    *(IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_TSC_AUX),
)
"""Those of NATIVE that do not take every value: writes are looked at, of addresses by the engine itself."""

IA32_PLATFORM_ID, EBL_CR_POWERON, EBC_FREQUENCY_ID, IA32_PERF_STATUS, IA32_PERF_CTL = 0x17, 0x2A, 0x2C, 0x198, 0x199
_LAST_BRANCHES = range(0x1DB, 0x1DF)
_RAPL = (0x606, 0x611, 0x619, 0x639, 0x641)

_FIXED = {IA32_FEATURE_CONTROL: 1, IA32_MCG_CAP: 0, IA32_MTRRCAP: 0x500 | NR_VARIABLE_MTRRS}
_FIXED |= dict.fromkeys((IA32_PLATFORM_ID, EBL_CR_POWERON, IA32_PERF_CTL, *_LAST_BRANCHES, *_RAPL), 0)
_FIXED |= {EBC_FREQUENCY_ID: 1 << 24, IA32_PERF_STATUS: 4 << 40 | 1000}
"""What kvm_get_msr_common() answers for everybody: kernels read these of an Intel CPU without care."""
_STORED = {IA32_BIOS_SIGN_ID: 0, IA32_MCG_STATUS: 0, IA32_MISC_ENABLE: 1, IA32_MTRR_DEF_TYPE: 0, IA32_TSC_ADJUST: 0}
_PAT_RESET = 0x0007040600070406
_MTRR_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MEMORY_TYPES = frozenset((0, 1, 4, 5, 6))
_PAT_TYPES = _MEMORY_TYPES | {7}


class Msrs:
    """The MSRs of one vCPU that only software looks at: index -> value."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = dict(_STORED)
        self.values[IA32_PAT] = _PAT_RESET
        self.values.update(dict.fromkeys(_MTRR_FIXED, 0))
        self.values.update(dict.fromkeys(range(0x200, 0x200 + 2 * NR_VARIABLE_MTRRS), 0))


def kvm_get_msr(vcpu: Vcpu, index: int) -> int | None:
    """RDMSR."""
    special = _READERS.get(index)
    if special is not None:
        return special(vcpu)
    if index in _FIXED:
        return _FIXED[index]
    if vcpu.irq is not None and vcpu.irq.chip.owns_msr(index):
        return vcpu.irq.chip.read_msr(index)
    return vcpu.msrs.values.get(index)


def kvm_set_msr(vcpu: Vcpu, index: int, value: int) -> bool:
    """WRMSR."""
    special = _WRITERS.get(index)
    if special is not None:
        return special(vcpu, value)
    if vcpu.irq is not None and vcpu.irq.chip.owns_msr(index):
        return vcpu.irq.chip.write_msr(index, value)
    if index not in vcpu.msrs.values or not _is_valid(index, value):
        return False
    vcpu.msrs.values[index] = value
    return True


def _is_valid(index: int, value: int) -> bool:
    """Whether a stored MSR can hold a value: memory types must exist."""
    if index == IA32_PAT:
        return all(value >> shift & 0xFF in _PAT_TYPES for shift in range(0, 64, 8))
    if index in _MTRR_FIXED:
        return all(value >> shift & 0xFF in _MEMORY_TYPES for shift in range(0, 64, 8))
    if index == IA32_MTRR_DEF_TYPE:
        return not value & ~0xCFF and value & 0xFF in _MEMORY_TYPES
    if 0x200 <= index < 0x200 + 2 * NR_VARIABLE_MTRRS and not index & 1:
        return value & 0xFF in _MEMORY_TYPES
    return True


def _get_tsc(vcpu: Vcpu) -> int:
    return vcpu.engine.tsc


def _set_tsc(vcpu: Vcpu, value: int) -> bool:
    vcpu.engine.tsc_offset += value - vcpu.engine.tsc
    return True


def _get_efer(vcpu: Vcpu) -> int:
    return vcpu.engine.efer


def _set_efer(vcpu: Vcpu, value: int) -> bool:
    engine = vcpu.engine
    if not is_valid_efer(value, model=vcpu.kvm.cpu_model, old=engine.efer, cr0=engine.cr0):
        return False
    engine.efer = value & ~(1 << 10) | engine.efer & 1 << 10
    return True


def _set_tsc_aux(vcpu: Vcpu, value: int) -> bool:
    if value >> 32:
        return False
    vcpu.engine.set_msr(IA32_TSC_AUX, value)
    return True


_READERS: dict[int, Callable[[Vcpu], int | None]] = {
    **APF_READERS,
    IA32_TSC: _get_tsc,
    IA32_EFER: _get_efer,
}
_WRITERS: dict[int, Callable[[Vcpu, int], bool]] = {
    **APF_WRITERS,
    IA32_TSC: _set_tsc,
    IA32_EFER: _set_efer,
    IA32_TSC_AUX: _set_tsc_aux,
    IA32_BIOS_SIGN_ID: lambda vcpu, value: True,
}
