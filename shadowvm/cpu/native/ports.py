"""Port I/O: the privilege checks that Unicorn lacks, the Python handler, and the stop after the instruction.

Unicorn has restored RIP and the flags' state to the IN or OUT when the hook runs.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from .blocks import cut, leave, linear_rip, unkick
from .decode import prefixes
from .memory import bump, call2, call3, call4, get, get_env, inline, ld16, ld32, ld64, put, st16, st64
from .translate import LOW32, code_byte

STOPPED = int(CpuExit.STOPPED)
TSS_IO_MAP_BASE, TSS_SIZE = 0x66, 0x68
TSS_IS_32_BIT = 8 << 8
RFLAGS_VM = 1 << 17
OUT_IMM8, OUT_IMM, IN_IMM8, IN_IMM = 0xE6, 0xE7, 0xE4, 0xE5
OUT_DX8, OUT_DX, IN_DX8, IN_DX = 0xEE, 0xEF, 0xEC, 0xED


@inline
def tss_word(box, env, offset):
    """Two bytes of the TSS, read as the CPU does: a walk that fails is an exit, with RIP at the instruction."""
    hflags = ld32(env + lay.ENV_HFLAGS)
    idx = lay.MMU_KSMAP_IDX if hflags & lay.HF_SMAP_MASK else lay.MMU_KNOSMAP_IDX
    va = ld64(env + lay.ENV_TR + lay.SEG_BASE) + offset
    return call4(get(box, mb.FN_LOAD16), env, va if hflags & lay.HF_LMA_MASK else va & LOW32, idx, 0) & 0xFFFF


@inline
def is_in_bitmap(box, env, port, size):
    """Does the TSS's I/O permission bitmap allow the ports? (SDM vol. 1, 19.5.2)"""
    limit, flags = ld32(env + lay.ENV_TR + lay.SEG_LIMIT), ld32(env + lay.ENV_TR + lay.SEG_FLAGS)
    if not flags & lay.DESC_P_MASK or not flags & TSS_IS_32_BIT or limit < TSS_SIZE - 1:
        return False
    offset = tss_word(box, env, TSS_IO_MAP_BASE) + (port >> 3)
    if offset + 1 > limit:
        return False
    return tss_word(box, env, offset) >> (port & 7) & ((1 << size) - 1) == 0


@inline
def check_access(box, env, port, size):
    """#GP(0) in protected mode if CPL > IOPL, and in virtual-8086 mode always, unless the bitmap allows it."""
    hflags = ld32(env + lay.ENV_HFLAGS)
    if hflags & lay.HF_PE_MASK:
        flags = ld64(env + lay.ENV_EFLAGS)
        above = hflags & lay.HF_CPL_MASK > flags >> 12 & 3
        if (above or flags & RFLAGS_VM) and not is_in_bitmap(box, env, port, size):
            call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)


@inline
def port_insn_length(box, rip):
    """Length of the plain IN or OUT at `rip`; 0 if it is a string one or cannot be read."""
    at, _rex, _segment, _has_67, _has_lock = prefixes(box, rip)
    byte = code_byte(box, at)
    if byte in (OUT_DX8, OUT_DX, IN_DX8, IN_DX):
        return at + 1 - rip
    if byte in (OUT_IMM8, OUT_IMM, IN_IMM8, IN_IMM):
        return at + 2 - rip
    return 0


@inline
def stop_after(box, env, length):
    """The handler asked to stop: end the run after this instruction, which counts as retired. Does not return."""
    cut(box, linear_rip(env))
    put(box, mb.BUDGET, get(box, mb.BUDGET) - 1)
    st64(env + lay.ENV_EIP, ld64(env + lay.ENV_EIP) + length)
    put(box, mb.STOP, 0)
    leave(box, STOPPED)


@inline
def kick(box, env):
    """Have the main loop look at STOP and at events after the current block."""
    if get(box, mb.COUNTING) == 0:
        st16(env + lay.ICOUNT_HIGH, 0xFFFF)
    elif get(box, mb.KICK) == 0:
        put(box, mb.KICK, 1)
        put(box, mb.STOLEN, get(box, mb.BUDGET))
        put(box, mb.BUDGET, 0)


@inline
def unkicked_length(box, env):
    """Length for `stop_after`; takes a kick back, as the stop replaces it."""
    length = port_insn_length(box, linear_rip(env))
    if length != 0:
        unkick(box)
    return length


@inline
def let_ins_finish(box, env):
    """INS stores after this, and Unicorn looks at ICOUNT_HIGH after each store: it would read the port again.

    The main loop then sees STOP and events later, when the guest leaves a chain of blocks.
    """
    if get(box, mb.COUNTING) == 0 and ld16(env + lay.ICOUNT_HIGH) != 0 and port_insn_length(box, linear_rip(env)) == 0:
        st16(env + lay.ICOUNT_HIGH, 0)


@inline
def on_out(box, port, size, value):
    env = get_env(box)
    check_access(box, env, port, size)
    bump(box, mb.PORT_OUT_COUNT)
    call3(get(box, mb.FN_PORT_OUT), port, size, value)
    if get(box, mb.STOP) != 0:
        length = unkicked_length(box, env)
        if length != 0:
            stop_after(box, env, length)
        kick(box, env)


@inline
def on_in(box, port, size):
    env = get_env(box)
    check_access(box, env, port, size)
    bump(box, mb.PORT_IN_COUNT)
    value = call2(get(box, mb.FN_PORT_IN), port, size) & 0xFFFF_FFFF
    if get(box, mb.STOP) != 0:
        length = unkicked_length(box, env)
        if length != 0:
            rax = env + lay.ENV_REGS + 8 * lay.RAX
            mask = (1 << 8 * size) - 1
            st64(rax, value & mask if size == 4 else (ld64(rax) & ~mask) | (value & mask))
            stop_after(box, env, length)
        kick(box, env)
    let_ins_finish(box, env)
    return value
