"""IRET to an outer level with FS or GS loaded: their bases stay, though the selectors become null.

QEMU 5 clears the bases with the selectors. In long mode software keeps data there by MSR, and finds it again at CPL 3
(SDM vol. 3, 3.4.4.1). So while FS or GS holds a selector, IRET is intercepted and done here.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .. import mailbox as mb
from .. import svm
from .decode import REX_W, is_code64
from .memory import call3, get, inline, ld32, ld64, put, st32, st64
from .translate import code_byte

SELECTOR = 0xFFFC
IRET_BIT = 1 << svm.EXIT_IRET - svm.EXIT_INTR
OPERAND_SIZE = 0x66
SHIFT16, SHIFT32, SHIFT64 = range(3)


@inline
def segment(env, i):
    return env + lay.ENV_SEGS + lay.SEG_SIZE * i


@inline
def watch_iret(env):
    """Intercept IRET if it may make FS or GS null. Before the guest runs on: a load of them is seen by then."""
    selectors = ld32(segment(env, lay.FS)) | ld32(segment(env, lay.GS))
    word = ld64(env + lay.ENV_INTERCEPT) & ~IRET_BIT
    if selectors & SELECTOR and ld32(env + lay.ENV_HFLAGS) & lay.HF_LMA_MASK:
        word |= IRET_BIT
    st64(env + lay.ENV_INTERCEPT, word)


@inline
def operand_shift(box, env, pc, opcode, rex):
    """Operand size of the IRET at `pc` as QEMU's helper takes it."""
    has_66 = False
    for at in range(pc, opcode):
        has_66 |= code_byte(box, at) == OPERAND_SIZE
    if is_code64(env) and rex & REX_W:
        return SHIFT64
    is_32 = is_code64(env) or ld32(env + lay.ENV_HFLAGS) & lay.HF_CS32_MASK != 0
    return SHIFT32 if is_32 != has_66 else SHIFT16


@inline
def restore_base(at, base):
    """The segment has become null: what was there still counts."""
    if ld32(at) & SELECTOR == 0:
        st64(at + lay.SEG_BASE, base)


@inline
def interrupt_return(box, env, pc, opcode, rex):
    """Execute the IRET at `pc`. A fault on its stack leaves the run with everything as it was."""
    fs, gs = segment(env, lay.FS), segment(env, lay.GS)
    fs_base, gs_base = ld64(fs + lay.SEG_BASE), ld64(gs + lay.SEG_BASE)
    fs_null, gs_null = ld32(fs) & SELECTOR == 0, ld32(gs) & SELECTOR == 0
    shift = operand_shift(box, env, pc, opcode, rex)
    call3(get(box, mb.FN_IRET), env, shift, ld64(env + lay.ENV_EIP) + opcode + 1 - pc)
    if not fs_null:
        restore_base(fs, fs_base)
    if not gs_null:
        restore_base(gs, gs_base)
    put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)
    hflags = env + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) & ~lay.HF_INHIBIT_IRQ_MASK)
