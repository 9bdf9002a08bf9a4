"""MSRs of a local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE and, in x2APIC mode, 0x800 and up.

Intel SDM vol. 3, 11.4.4, 11.5.4.1 and 11.12. None and False stand for #GP(0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .apic_bits import (
    APIC_ARBPRI,
    APIC_DFR,
    APIC_EOI,
    APIC_ICR,
    APIC_ICR2,
    APIC_LVTT,
    APIC_SELF_IPI,
    BASE_BSP,
    BASE_ENABLE,
    BASE_X2APIC,
    ICR_BUSY,
    ICR_WRITABLE,
    LVT_WRITABLE,
)
from .lapic_bus import DeliveryMode
from .lapic_regs import X2APIC_WRITABLE, lvt_writable, read_register, write_icr, write_register

if TYPE_CHECKING:
    from .lapic import Lapic

MSR_IA32_APICBASE, MSR_IA32_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST = 0x1B, 0x6E0, 0x800, 0x8FF
_XAPIC_ONLY = (APIC_ARBPRI, APIC_DFR, APIC_ICR2)
_MODES = BASE_ENABLE | BASE_X2APIC
_LEGAL_MODES = {
    0: (0, BASE_ENABLE),
    BASE_ENABLE: (0, BASE_ENABLE, _MODES),
    _MODES: (0, _MODES),
}
"""Where IA32_APIC_BASE may go from each mode (SDM figure 11-27)."""


def is_apic_msr(msr: int) -> bool:
    """The MSR belongs to the local APIC."""
    return msr in (MSR_IA32_APICBASE, MSR_IA32_TSC_DEADLINE) or MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST


def read_msr(lapic: Lapic, msr: int) -> int | None:
    """rdmsr."""
    if msr == MSR_IA32_APICBASE:
        return lapic.base
    if msr == MSR_IA32_TSC_DEADLINE:
        return lapic.timer.tsc_deadline if lapic.tsc_deadline else None
    if not lapic.x2apic_mode or not MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST:
        return None
    offset = msr - MSR_X2APIC_FIRST << 4
    if offset == APIC_ICR:
        return lapic.icr
    return None if offset in (*_XAPIC_ONLY, APIC_EOI) else read_register(lapic, offset)


def write_msr(lapic: Lapic, msr: int, value: int) -> bool:
    """wrmsr."""
    if msr == MSR_IA32_APICBASE:
        return _write_base(lapic, value)
    if msr == MSR_IA32_TSC_DEADLINE:
        if lapic.tsc_deadline:
            lapic.timer.set_tsc_deadline(value)
        return lapic.tsc_deadline
    if not lapic.x2apic_mode or not MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST:
        return False
    return _write_x2apic(lapic, msr - MSR_X2APIC_FIRST << 4, value)


def _write_x2apic(lapic: Lapic, offset: int, value: int) -> bool:
    if offset == APIC_ICR:
        legal = not value & 0xFFFF_FFFF & ~(ICR_WRITABLE | ICR_BUSY)
        if legal:
            write_icr(lapic, value)
        return legal
    if APIC_LVTT <= offset < APIC_LVTT + 0x10 * len(LVT_WRITABLE):
        writable = lvt_writable(lapic, offset - APIC_LVTT >> 4) | 1 << 12 | 1 << 14
    elif offset in X2APIC_WRITABLE:
        writable = X2APIC_WRITABLE[offset]
    else:
        return False
    if value & ~writable:
        return False
    if offset == APIC_SELF_IPI:
        write_icr_self(lapic, value)
        return True
    return write_register(lapic, offset, value)


def write_icr_self(lapic: Lapic, vector: int) -> None:
    """SELF IPI: a fixed interrupt to this CPU. ICR keeps its value."""
    icr = lapic.icr
    write_icr(lapic, DeliveryMode.FIXED << 8 | 1 << 18 | vector)
    lapic.icr = icr


def _write_base(lapic: Lapic, value: int) -> bool:
    """IA32_APIC_BASE: move the page, or change the mode as far as that is legal.

    Going to the disabled state loses the registers; entering x2APIC mode keeps them but for ID, LDR and ICR.
    """
    address_bits = (1 << lapic.maxphyaddr) - 1 & ~0xFFF
    if value & ~(address_bits | BASE_BSP | _MODES):
        return False
    mode, wanted = lapic.base & _MODES, value & _MODES
    if wanted not in _LEGAL_MODES[mode] or (wanted & BASE_X2APIC and not lapic.x2apic):
        return False
    lapic.base = value
    if wanted == mode:
        return True
    if not wanted:
        lapic.reset_registers()
    lapic.id = lapic.cpu
    if wanted == _MODES:
        lapic.ldr, lapic.icr = lapic.x2apic_ldr, lapic.icr & 0xFFFF_FFFF
    lapic.notify()
    return True
