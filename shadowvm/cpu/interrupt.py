"""Events on their way to the guest: queueing, what an exit interrupted, and the rules for double faults."""

from __future__ import annotations

from .. import x86
from ..errors import ModelBug
from . import mailbox as mb
from .engine import Event, EventKind

CONTRIBUTORY = frozenset((x86.DE_VECTOR, x86.TS_VECTOR, x86.NP_VECTOR, x86.SS_VECTOR, x86.GP_VECTOR))
EXCEPTION = EventKind.EXCEPTION
HAS_ERROR_CODE = frozenset((x86.DF_VECTOR, 10, 11, 12, 13, x86.PF_VECTOR, x86.AC_VECTOR))


def queue(box: memoryview[int], event: Event) -> None:
    """Put an event into the slot for the next entry.

    Raises:
        ModelBug: the slot is taken, or the error code does not fit the vector.
    """
    kind, vector, error_code, _, next_rip = event
    if kind is EXCEPTION and (vector in HAS_ERROR_CODE) != (error_code is not None):
        raise ModelBug(f"vector {vector} with error code {error_code}")
    if box[mb.EVENT_KIND]:
        raise ModelBug(f"event {vector} queued over event {box[mb.EVENT_VECTOR]}")
    box[mb.EVENT_VECTOR] = vector
    box[mb.EVENT_ERROR] = error_code or 0
    box[mb.EVENT_NEXT_RIP] = next_rip
    box[mb.EVENT_KIND] = kind


def vectored(box: memoryview[int]) -> Event | None:
    """The event whose delivery the last exit interrupted."""
    kind = box[mb.VECTORING]
    if not kind:
        return None
    vector = box[mb.VEC_VECTOR]
    has_error = kind == EventKind.EXCEPTION and vector in HAS_ERROR_CODE
    error = box[mb.VEC_ERROR] if has_error else None
    return Event(EventKind(kind), vector, error, None, box[mb.VEC_NEXT_RIP])


def escalate(first: Event, second: Event) -> Event | None:
    """What a CPU makes of exception `second` raised while it delivers `first`; None is a triple fault.

    Intel SDM vol. 3, table 6-5. The event that is not returned is lost, as on real hardware: its cause comes again.
    """
    if first.kind is not EventKind.EXCEPTION:
        return second
    if first.vector == x86.DF_VECTOR:
        is_double = second.vector in CONTRIBUTORY or second.vector == x86.PF_VECTOR
        return None if is_double else second
    first_counts = first.vector in CONTRIBUTORY or first.vector == x86.PF_VECTOR
    if first.vector == x86.PF_VECTOR:
        is_double = second.vector in CONTRIBUTORY or second.vector == x86.PF_VECTOR
    else:
        is_double = first_counts and second.vector in CONTRIBUTORY
    return Event(EventKind.EXCEPTION, x86.DF_VECTOR, 0) if is_double else second
