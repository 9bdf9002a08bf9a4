"""Which instructions leave the guest: the counterpart of VMX's execution controls and SVM's intercepts.

    engine.controls.cr = engine.controls.msr = engine.controls.cpuid = True

All are off in a new engine. The exits come with RIP at the instruction, which has done nothing; `skip_instruction`
goes past it once it is emulated.
"""

from __future__ import annotations

import ctypes

from ..addr import PAGE_SIZE, Hpa
from . import layout as lay
from . import mailbox as mb
from . import svm
from .arena import Arena

HIDDEN_PAGES = 1 + svm.MSRPM_SIZE // PAGE_SIZE
"""The VMCB's page, then the MSR permission map."""
NATIVE = (svm.EXIT_TR_WRITE,)
ALL_DRS = 0xFF
"""Writes are always intercepted, and are no exits: native code does what Unicorn gets wrong."""
CR_WRITES = 1 << 0 | 1 << 4 | 1 << 8
CR3_WRITE = 1 << 3
CR3_RESERVED = ~((1 << 52) - 1) & (1 << 64) - 1


class Controls:
    """The intercepts of one engine. `hidden` is memory that Unicorn sees at `base`, outside of host RAM."""

    __slots__ = ("_base", "_cr_write", "_env_address", "_hidden", "_intercept", "box")

    def __init__(self, env_address: int, box: memoryview[int], hidden: Arena, base: Hpa) -> None:
        self._env_address, self.box, self._hidden, self._base = env_address, box, hidden, base
        self._intercept = ctypes.c_uint64.from_address(env_address + lay.ENV_INTERCEPT)
        self._cr_write = ctypes.c_uint16.from_address(env_address + lay.ENV_INTERCEPT_CR_WRITE)
        at = svm.VMCB_MSRPM_BASE
        hidden.b[at : at + 8] = (base + PAGE_SIZE).to_bytes(8, "little")
        hidden.b[PAGE_SIZE:] = b"\xff" * svm.MSRPM_SIZE
        self.arm()

    def arm(self) -> None:
        """Point the CPU at the hidden pages and turn intercepts on; which ones is left as it is."""
        ctypes.c_uint64.from_address(self._env_address + lay.ENV_VM_VMCB).value = self._base
        ctypes.c_uint16.from_address(self._env_address + lay.ENV_INTERCEPT_DR_WRITE).value = ALL_DRS
        for code in NATIVE:
            self._set(code, True)
        ctypes.c_uint32.from_address(self._env_address + lay.ENV_HFLAGS).value |= lay.HF_GUEST_MASK
        ctypes.c_uint32.from_address(self._env_address + lay.ENV_HFLAGS2).value |= lay.HF2_VINTR_MASK

    def set_general_detect(self, on: bool) -> None:
        """DR7.GD has been set or cleared from outside: reads of debug registers are intercepted while it is set."""
        ctypes.c_uint16.from_address(self._env_address + lay.ENV_INTERCEPT_DR_READ).value = ALL_DRS if on else 0

    def _set(self, code: int, on: bool) -> None:
        bit = 1 << code - svm.EXIT_INTR
        self._intercept.value = self._intercept.value & ~bit | (bit if on else 0)

    def _get(self, code: int) -> bool:
        return bool(self._intercept.value >> code - svm.EXIT_INTR & 1)

    @property
    def cr(self) -> bool:
        """MOV to CR0, CR4 and CR8, and to CR3 with reserved bits, are CR_WRITE exits."""
        return bool(self._cr_write.value & CR_WRITES)

    @cr.setter
    def cr(self, on: bool) -> None:
        self._cr_write.value = self._cr_write.value & ~CR_WRITES | (CR_WRITES if on else 0)
        self.box[mb.CR3_RESERVED] = (self.box[mb.CR3_RESERVED] or CR3_RESERVED) if on else 0

    @property
    def cr3_reserved(self) -> int:
        """The bits of CR3 that `cr` looks at; all above bit 51 unless set after `cr`."""
        return self.box[mb.CR3_RESERVED]

    @cr3_reserved.setter
    def cr3_reserved(self, mask: int) -> None:
        self.box[mb.CR3_RESERVED] = mask

    @property
    def cr3(self) -> bool:
        """Every MOV to CR3 is a CR_WRITE exit. Without it a CR3 that has a kept root is switched natively."""
        return bool(self._cr_write.value & CR3_WRITE)

    @cr3.setter
    def cr3(self, on: bool) -> None:
        self._cr_write.value = self._cr_write.value & ~CR3_WRITE | (CR3_WRITE if on else 0)

    @property
    def msr(self) -> bool:
        """RDMSR and WRMSR are exits, but for those of `pass_msr`."""
        return self._get(svm.EXIT_MSR)

    @msr.setter
    def msr(self, on: bool) -> None:
        self._set(svm.EXIT_MSR, on)

    @property
    def check_msrs(self) -> bool:
        """WRMSR of bases and entry points, if not passed, is no exit: #GP for an address that is not canonical."""
        return bool(self.box[mb.CHECK_MSRS])

    @check_msrs.setter
    def check_msrs(self, on: bool) -> None:
        self.box[mb.CHECK_MSRS] = on

    def pass_msr(self, index: int, *, read: bool = True, write: bool = True) -> None:
        """Let the guest read or write an MSR without an exit; Unicorn checks no values."""
        bit = svm.msrpm_bit(index)
        if bit is not None:
            at = PAGE_SIZE + bit // 8
            exits = (not read) | (not write) << 1
            self._hidden.b[at] = self._hidden.b[at] & ~(3 << bit % 8) | exits << bit % 8

    @property
    def cpuid(self) -> bool:
        """CPUID is an exit."""
        return self._get(svm.EXIT_CPUID)

    @cpuid.setter
    def cpuid(self, on: bool) -> None:
        self._set(svm.EXIT_CPUID, on)

    @property
    def invlpg(self) -> bool:
        """INVLPG is an exit, with the address in box[EXIT_VA]."""
        return self._get(svm.EXIT_INVLPG)

    @invlpg.setter
    def invlpg(self, on: bool) -> None:
        self._set(svm.EXIT_INVLPG, on)
