"""#PF from the guest's own tables under two-dimensional paging: raised here and delivered without an exit.

QEMU's main loop then calls the hook of interrupt.py, as for any exception, which makes a double fault of it if it came
in the delivery of another.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit, EventKind
from .blocks import UNSET, leave
from .memory import bump, call4, get, inline, ld32, ld64, put, st32, st64
from .rights import FETCH, WRITE

QUANTUM, EXCEPTION = int(CpuExit.QUANTUM), int(EventKind.EXCEPTION)


@inline
def error_code(box, env, access, idx):
    """Of the last walk's fault. A fetch is told only where execution can be refused (SDM vol. 3, 4.7)."""
    error = get(box, mb.FAULT_CAUSE)
    if access == WRITE:
        error |= x86.PFERR_WRITE
    if idx == lay.MMU_USER_IDX:
        error |= x86.PFERR_USER
    cr4 = ld64(env + lay.ENV_CR + 32)
    has_nx = cr4 & x86.CR4_PAE and ld64(env + lay.ENV_EFER) & x86.EFER_NX
    if access == FETCH and (has_nx or cr4 & x86.CR4_SMEP):
        error |= x86.PFERR_FETCH
    return error


@inline
def must_wait(box):
    """Is it better queued? With no budget left, for a handler that cannot be fetched would fault for ever; and in a
    step by the trap flag, which must not get into the handler's frame."""
    if get(box, mb.DELIVERING) != 0 or get(box, mb.EVENT_KIND) != 0:
        return False
    spent = get(box, mb.COUNTING) != 0 and get(box, mb.BUDGET) + get(box, mb.STOLEN) <= 0
    return get(box, mb.STEP) == mb.STEP_TRAP or (spent and get(box, mb.STEP) == 0)


@inline
def raise_page_fault(box, env, va, access, idx, switching):
    """Does not return. The state is that of the instruction's start; `switching`: a task switch has got this far."""
    error = error_code(box, env, access, idx)
    bump(box, mb.GUEST_FAULTS)
    st64(env + lay.ENV_CR + 16, va)
    if must_wait(box):
        cpu = get(box, mb.CPU)
        put(box, mb.EVENT_VECTOR, x86.PF_VECTOR)
        put(box, mb.EVENT_ERROR, error)
        put(box, mb.EVENT_NEXT_RIP, 0)
        put(box, mb.EVENT_KIND, EXCEPTION)
        st32(cpu + lay.CPU_INTERRUPT_REQUEST, ld32(cpu + lay.CPU_INTERRUPT_REQUEST) | lay.INTERRUPT_HARD)
        leave(box, QUANTUM)
    put(box, mb.LAST_TB, 0)
    put(box, mb.ASKED, 0)
    put(box, mb.SINGLE, -1)
    if switching:
        st32(env + lay.ENV_OLD_EXCEPTION, UNSET)
    call4(get(box, mb.FN_RAISE), env, x86.PF_VECTOR, error, 0)
