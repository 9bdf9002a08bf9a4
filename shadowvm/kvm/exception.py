"""What a second event during the delivery of a first becomes (SDM vol. 3, 6.15, table 6-5; kvm_multiple_exception)."""

from __future__ import annotations

from ..cpu.engine import Event, EventKind
from ..x86 import DE_VECTOR, DF_VECTOR, GP_VECTOR, NP_VECTOR, PF_VECTOR, SS_VECTOR, TS_VECTOR

_CONTRIBUTORY = frozenset((DE_VECTOR, TS_VECTOR, NP_VECTOR, SS_VECTOR, GP_VECTOR))


def merge_events(first: Event | None, second: Event) -> Event | None:
    """The event to deliver when `second` strikes while `first` was being delivered. None: triple fault.

    A page fault that becomes a double fault has loaded CR2.
    """
    if first is None or first.kind != EventKind.EXCEPTION:
        return second
    if first.vector == DF_VECTOR:
        return None
    double = first.vector in _CONTRIBUTORY and second.vector in _CONTRIBUTORY
    double |= first.vector == PF_VECTOR and (second.vector == PF_VECTOR or second.vector in _CONTRIBUTORY)
    return Event(EventKind.EXCEPTION, DF_VECTOR, 0, second.cr2) if double else second
