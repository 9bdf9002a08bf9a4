"""The MSRs of asynchronous page faults (arch/x86/kvm/x86.c, kvm_pv_enable_async_pf and its neighbours).

False is #GP(0). They exist only if CPUID leaf 0x40000001 says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addr import Gpa
from .apf import APF_AREA, KVM_ASYNC_PF_DELIVERY_AS_INT, apf_area_hva, kvm_pv_async_pf_enabled
from .async_pf import kvm_async_pf_wakeup_all
from .vm import KVM_REQ_APF_READY

if TYPE_CHECKING:
    from .vcpu import Vcpu

MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK = 0x4B564D02, 0x4B564D06, 0x4B564D07
_EN_RESERVED = 0x34
"""Bits 4 and 5, and 2: #PF as an exit of a nested guest, which there is not."""


def _has(vcpu: Vcpu, feature: str) -> bool:
    return vcpu.kvm.cpu_model.has_kvm_feature(feature)


def kvm_pv_enable_async_pf(vcpu: Vcpu, value: int) -> bool:
    """WRMSR of MSR_KVM_ASYNC_PF_EN: the address of the area and what is asked for."""
    if not _has(vcpu, "kvm-asyncpf") or value & _EN_RESERVED:
        return False
    if value & KVM_ASYNC_PF_DELIVERY_AS_INT and not _has(vcpu, "kvm-asyncpf-int"):
        return False
    if vcpu.irq is None:
        return not value
    vcpu.apf.msr_en = value
    if not kvm_pv_async_pf_enabled(vcpu):
        vcpu.apf.clear_completion_queue()
        return True
    if apf_area_hva(vcpu, Gpa(value & -APF_AREA)) is None:
        return False
    kvm_async_pf_wakeup_all(vcpu)
    return True


def _set_int(vcpu: Vcpu, value: int) -> bool:
    if not _has(vcpu, "kvm-asyncpf-int") or value >> 8:
        return False
    vcpu.apf.msr_int = value
    return True


def _set_ack(vcpu: Vcpu, value: int) -> bool:
    """Bit 0: the guest has taken a token; another that waits is its due at the next entry."""
    if not _has(vcpu, "kvm-asyncpf-int"):
        return False
    if value & 1:
        vcpu.apf.pageready_pending = False
        vcpu.requests |= KVM_REQ_APF_READY
    return True


def _get_en(vcpu: Vcpu) -> int | None:
    return vcpu.apf.msr_en if _has(vcpu, "kvm-asyncpf") else None


def _get_int(vcpu: Vcpu) -> int | None:
    return vcpu.apf.msr_int if _has(vcpu, "kvm-asyncpf-int") else None


def _get_ack(vcpu: Vcpu) -> int | None:
    return 0 if _has(vcpu, "kvm-asyncpf-int") else None


APF_READERS: dict[int, Callable[[Vcpu], int | None]] = {
    MSR_KVM_ASYNC_PF_EN: _get_en,
    MSR_KVM_ASYNC_PF_INT: _get_int,
    MSR_KVM_ASYNC_PF_ACK: _get_ack,
}
APF_WRITERS: dict[int, Callable[[Vcpu, int], bool]] = {
    MSR_KVM_ASYNC_PF_EN: kvm_pv_enable_async_pf,
    MSR_KVM_ASYNC_PF_INT: _set_int,
    MSR_KVM_ASYNC_PF_ACK: _set_ack,
}
