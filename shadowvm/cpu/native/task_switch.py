"""Task switches that a missing page interrupts (SDM vol. 3, 8.3).

QEMU switches in one go: it saves the old task, makes the new TSS current, takes registers and bare selectors from
there, then reads the descriptors of the LDT and the segments, and pushes an error code. An exit in the last part must
not start over, for the old task is gone. What is left is done at the next entry: the new task jumps to itself, which
reads its TSS and the descriptors again.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import EventKind
from .intercept import supervisor_idx
from .iret import SELECTOR, segment
from .memory import call4, call5, get, inline, ld32, ld64, put, st32, st64

EXCEPTION, NMI = int(EventKind.EXCEPTION), int(EventKind.NMI)
RFLAGS_NT, RFLAGS_VM = 1 << 14, 1 << 17
DESC_BUSY, DESC_TYPE_32, DESC_B = 1 << 9, 1 << 11, 1 << 22
LOAD, PUSH = 2, 1
"""TASK_PENDING: all that is left, or only the error code."""


@inline
def is_bare(env):
    """A selector without its descriptor: only inside of a switch, in protected mode."""
    hflags = ld32(env + lay.ENV_HFLAGS)
    if hflags & lay.HF_LMA_MASK or not hflags & lay.HF_PE_MASK or ld64(env + lay.ENV_EFLAGS) & RFLAGS_VM:
        return False
    bare = False
    for i in range(6):
        at = segment(env, i)
        bare |= ld32(at) & SELECTOR != 0 and ld32(at + lay.SEG_FLAGS) == 0
    return bare


@inline
def note_switch(box, env):
    """An exit is coming: True if it interrupts a switch."""
    bare = is_bare(env)
    kind = get(box, mb.DELIVERING)
    if not bare and get(box, mb.TASK_PENDING) == 0 and (kind == 0 or get(box, mb.TASK_FROM) == ld32(env + lay.ENV_TR)):
        return False
    if get(box, mb.TASK_PENDING) == 0:
        put(box, mb.TASK_NESTED, ld64(env + lay.ENV_EFLAGS) & RFLAGS_NT)
        vector = get(box, mb.VEC_VECTOR)
        has_error = vector in (x86.DF_VECTOR, x86.PF_VECTOR, x86.AC_VECTOR) or x86.TS_VECTOR <= vector <= x86.GP_VECTOR
        put(box, mb.TASK_ERROR, 1 + get(box, mb.VEC_ERROR) if kind == EXCEPTION and has_error else 0)
        if kind == NMI:
            hflags2 = env + lay.ENV_HFLAGS2
            st32(hflags2, ld32(hflags2) | lay.HF2_NMI_MASK)
    put(box, mb.TASK_PENDING, LOAD if bare else PUSH)
    put(box, mb.DELIVERING, 0)
    cpu = get(box, mb.CPU)
    st32(cpu + lay.CPU_INTERRUPT_REQUEST, ld32(cpu + lay.CPU_INTERRUPT_REQUEST) | lay.INTERRUPT_HARD)
    return True


@inline
def forget_switch(box):
    """An exception comes instead of the rest."""
    put(box, mb.TASK_PENDING, 0)
    put(box, mb.TASK_ERROR, 0)


@inline
def load_again(box, env):
    """The new task jumps to itself: for that it must be available, and CPL 0."""
    selector = ld32(env + lay.ENV_TR) & SELECTOR
    idx = supervisor_idx(env)
    high = ld64(env + lay.ENV_GDT + lay.SEG_BASE) + selector + 4
    call5(get(box, mb.FN_STORE32), env, high, call4(get(box, mb.FN_LOAD32), env, high, idx, 0) & ~DESC_BUSY, idx, 0)
    eflags, hflags = env + lay.ENV_EFLAGS, env + lay.ENV_HFLAGS
    st64(eflags, ld64(eflags) & ~RFLAGS_NT)
    st32(hflags, ld32(hflags) & ~lay.HF_CPL_MASK)
    call4(get(box, mb.FN_LJMP), env, selector, 0, ld64(env + lay.ENV_EIP))
    st64(eflags, ld64(eflags) | get(box, mb.TASK_NESTED))


@inline
def push_error(box, env):
    """The error code of an exception, on the new task's stack."""
    ss, at = segment(env, lay.SS), env + lay.ENV_REGS + 8 * lay.RSP
    is_32 = ld32(env + lay.ENV_TR + lay.SEG_FLAGS) & DESC_TYPE_32 != 0
    mask = 0xFFFF_FFFF if ld32(ss + lay.SEG_FLAGS) & DESC_B else 0xFFFF
    esp = ld64(at) - (4 if is_32 else 2) & mask
    va = ld64(ss + lay.SEG_BASE) + esp & 0xFFFF_FFFF
    store = get(box, mb.FN_STORE32) if is_32 else get(box, mb.FN_STORE16)
    call5(store, env, va, get(box, mb.TASK_ERROR) - 1, supervisor_idx(env), 0)
    st64(at, ld64(at) & ~mask | esp)


@inline
def finish_switch(box, env):
    """Do what is left. Another missing page is another exit, and then this goes again."""
    if get(box, mb.TASK_PENDING) == LOAD:
        load_again(box, env)
        put(box, mb.TASK_PENDING, PUSH)
    if get(box, mb.TASK_ERROR) != 0:
        push_error(box, env)
    forget_switch(box)
