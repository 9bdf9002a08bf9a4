"""Registers of a local APIC, by their offset in the xAPIC page, and the IPIs that they send.

Intel SDM vol. 3, table 11-1 and 11.6. A register that does not exist is an error in ESR for xAPIC accesses only; as an
MSR it is #GP, which the caller raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..events import kvm_apic, kvm_apic_ipi
from .apic_bits import (
    APIC_ARBPRI,
    APIC_DFR,
    APIC_EOI,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ID,
    APIC_IRR,
    APIC_ISR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVTT,
    APIC_PROCPRI,
    APIC_SELF_IPI,
    APIC_SPIV,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    APIC_TMR,
    APIC_VERSION,
    DFR_FLAT,
    ESR_ILLEGAL_REGISTER,
    ESR_SEND_ILLEGAL,
    ICR_ASSERT,
    ICR_BUSY,
    ICR_LEVEL,
    ICR_LOGICAL,
    LVT_LEVEL,
    LVT_LINT0,
    LVT_LINT1,
    LVT_MASKED,
    LVT_MODE,
    LVT_REMOTE_IRR,
    LVT_TIMER,
    LVT_WRITABLE,
    SVR_ENABLE,
    SVR_WRITABLE,
)
from .lapic_bus import ApicMessage, DeliveryMode

if TYPE_CHECKING:
    from .lapic import Lapic

_LVT_END = APIC_LVTT + 0x10 * len(LVT_WRITABLE)
_TSC_DEADLINE_MODE = 1 << 18
_SHORTHAND_SELF, _SHORTHAND_ALL = 1, 2


def read_register(lapic: Lapic, offset: int) -> int | None:
    """32 bits; None where there is no register that can be read."""
    value = _read(lapic, offset)
    if value is None and not lapic.x2apic_mode:
        lapic.error(ESR_ILLEGAL_REGISTER)
    if kvm_apic.on:
        kvm_apic(0, offset, value or 0)
    return value


def _read(lapic: Lapic, offset: int) -> int | None:
    reader = _READERS.get(offset)
    if reader is not None:
        return reader(lapic)
    if APIC_LVTT <= offset < _LVT_END:
        return lapic.lvt[offset - APIC_LVTT >> 4]
    if APIC_ISR <= offset < APIC_ESR:
        mask = {APIC_ISR: lapic.isr, APIC_TMR: lapic.tmr, APIC_IRR: lapic.irr}[offset & ~0x7F]
        return mask >> 32 * (offset >> 4 & 7) & 0xFFFF_FFFF
    return None


_READERS: dict[int, Callable[[Lapic], int]] = {
    APIC_ID: lambda lapic: lapic.id if lapic.x2apic_mode else lapic.id << 24,
    APIC_LVR: lambda lapic: APIC_VERSION,
    APIC_TASKPRI: lambda lapic: lapic.tpr,
    APIC_ARBPRI: lambda lapic: lapic.ppr,
    APIC_PROCPRI: lambda lapic: lapic.ppr,
    APIC_EOI: lambda lapic: 0,
    APIC_LDR: lambda lapic: lapic.ldr,
    APIC_DFR: lambda lapic: lapic.dfr,
    APIC_SPIV: lambda lapic: lapic.svr,
    APIC_ESR: lambda lapic: lapic.esr,
    APIC_ICR: lambda lapic: lapic.icr & 0xFFFF_FFFF,
    APIC_ICR2: lambda lapic: lapic.icr >> 32,
    APIC_TMICT: lambda lapic: lapic.timer.initial,
    APIC_TMCCT: lambda lapic: lapic.timer.current(),
    APIC_TDCR: lambda lapic: lapic.timer.divide,
}


def write_register(lapic: Lapic, offset: int, value: int) -> bool:
    """32 bits; False where there is no register that can be written."""
    if kvm_apic.on:
        kvm_apic(1, offset, value)
    writer = _WRITERS.get(offset)
    if writer is not None:
        writer(lapic, value)
    elif APIC_LVTT <= offset < _LVT_END:
        _write_lvt(lapic, offset - APIC_LVTT >> 4, value)
    else:
        if not lapic.x2apic_mode:
            lapic.error(ESR_ILLEGAL_REGISTER)
        return False
    return True


def _write_id(lapic: Lapic, value: int) -> None:
    lapic.id = value >> 24


def _write_ldr(lapic: Lapic, value: int) -> None:
    lapic.ldr = value & 0xFF00_0000


def _write_dfr(lapic: Lapic, value: int) -> None:
    lapic.dfr = value | DFR_FLAT >> 4


def _write_esr(lapic: Lapic, value: int) -> None:
    """Any write shows the errors since the last."""
    lapic.esr, lapic.errors = lapic.errors, 0


def _write_icr_high(lapic: Lapic, value: int) -> None:
    lapic.icr = lapic.icr & 0xFFFF_FFFF | (value & 0xFF00_0000) << 32


def _write_svr(lapic: Lapic, value: int) -> None:
    """Disabling by software masks the local vector table."""
    lapic.svr = value & SVR_WRITABLE
    if not value & SVR_ENABLE:
        lapic.lvt = [entry | LVT_MASKED for entry in lapic.lvt]
    lapic.notify()


def lvt_writable(lapic: Lapic, entry: int) -> int:
    """The bits of an LVT entry that the guest may set."""
    if entry == LVT_TIMER and not lapic.tsc_deadline:
        return LVT_WRITABLE[entry] & ~_TSC_DEADLINE_MODE
    return LVT_WRITABLE[entry]


def _write_lvt(lapic: Lapic, entry: int, value: int) -> None:
    value &= lvt_writable(lapic, entry)
    if not lapic.software_enabled:
        value |= LVT_MASKED
    if value & LVT_LEVEL:
        value |= lapic.lvt[entry] & LVT_REMOTE_IRR
    lapic.lvt[entry] = value
    if entry == LVT_TIMER:
        lapic.timer.set_mode(value >> 17 & 3)
    fixed_level = value & (LVT_LEVEL | LVT_MODE) == LVT_LEVEL
    if entry in (LVT_LINT0, LVT_LINT1) and fixed_level and lapic.lines[entry - LVT_LINT0]:
        lapic.local_interrupt(entry)
    lapic.notify()


def write_icr(lapic: Lapic, icr: int) -> None:
    """Store the interrupt command register and send what it says."""
    lapic.icr = icr & ~0xFFFF_FFFF | icr & 0xFFFF_FFFF & ~ICR_BUSY
    low = icr & 0xFFFF_FFFF
    wide = lapic.x2apic_mode
    message = ApicMessage(
        dest=icr >> 32 if wide else icr >> 56,
        logical=bool(low & ICR_LOGICAL),
        mode=low >> 8 & 7,
        vector=low & 0xFF,
        wide=wide,
    )
    if kvm_apic_ipi.on:
        kvm_apic_ipi(low, message.dest)
    if message.mode == DeliveryMode.INIT and low & (ICR_ASSERT | ICR_LEVEL) == ICR_LEVEL:
        return  # INIT level de-assert: arbitration IDs, which no CPU has since the Pentium 4
    if message.mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY) and message.vector < 16:
        lapic.error(ESR_SEND_ILLEGAL)
    elif message.mode != DeliveryMode.EXTINT:
        _send(lapic, message, low >> 18 & 3)


def _send(lapic: Lapic, message: ApicMessage, shorthand: int) -> None:
    if shorthand == 0:
        lapic.bus.deliver(message)
    elif shorthand == _SHORTHAND_SELF:
        lapic.bus.send(message, [lapic])
    else:
        everybody = [each for each in lapic.bus.lapics if each.enabled]
        others = [each for each in everybody if each is not lapic]
        lapic.bus.send(message, everybody if shorthand == _SHORTHAND_ALL else others)


_WRITERS: dict[int, Callable[[Lapic, int], None]] = {
    APIC_ID: _write_id,
    APIC_TASKPRI: lambda lapic, value: lapic.set_tpr(value),
    APIC_EOI: lambda lapic, value: lapic.end_of_interrupt(),
    APIC_LDR: _write_ldr,
    APIC_DFR: _write_dfr,
    APIC_SPIV: _write_svr,
    APIC_ESR: _write_esr,
    APIC_ICR: lambda lapic, value: write_icr(lapic, lapic.icr & ~0xFFFF_FFFF | value),
    APIC_ICR2: _write_icr_high,
    APIC_TMICT: lambda lapic, value: lapic.timer.set_initial(value),
    APIC_TDCR: lambda lapic, value: lapic.timer.set_divide(value),
}

X2APIC_WRITABLE = {
    APIC_TASKPRI: 0xFF,
    APIC_EOI: 0,
    APIC_SPIV: SVR_WRITABLE,
    APIC_ESR: 0,
    APIC_TMICT: 0xFFFF_FFFF,
    APIC_TDCR: 0b1011,
    APIC_SELF_IPI: 0xFF,
}
"""Bits that a wrmsr may set, by offset; the LVT and ICR have rules of their own."""
