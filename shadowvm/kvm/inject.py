"""Exceptions for the guest: queued for the next entry, merged with a delivery that they interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cpu.engine import Event, EventKind
from ..events import kvm_inj_exception
from ..x86 import GP_VECTOR
from .exception import merge_events
from .exit import ExitReason, KvmRun

if TYPE_CHECKING:
    from .vcpu import Vcpu


def inject(vcpu: Vcpu, interrupted: Event | None, event: Event) -> KvmRun | None:
    """Queue `event`, or what it becomes on top of a delivery that it interrupted."""
    merged = event if interrupted is None else merge_events(interrupted, event)
    if merged is None:
        return exit_shutdown(vcpu)
    vcpu.event = merged
    if kvm_inj_exception.on:
        kvm_inj_exception(merged.vector, merged.error_code or 0, "")
    return None


def exit_shutdown(vcpu: Vcpu) -> KvmRun:
    """A triple fault."""
    return KvmRun(ExitReason.SHUTDOWN, f"at rip {vcpu.engine.rip:#x}, cr2 {vcpu.engine.cr2:#x}")


def inject_gp(vcpu: Vcpu) -> KvmRun | None:
    """#GP(0) at the current instruction (kvm_inject_gp)."""
    return inject(vcpu, None, Event(EventKind.EXCEPTION, GP_VECTOR, 0))
