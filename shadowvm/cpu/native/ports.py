"""Port I/O: the privilege check that Unicorn lacks, the Python handler, and the stop after the instruction.

Unicorn has restored RIP and the flags' state to the IN or OUT when the hook runs.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from .blocks import cut, leave, linear_rip
from .memory import bump, call2, call3, call4, get, get_env, inline, ld32, ld64, put, st16, st64
from .translate import code_byte

STOPPED = int(CpuExit.STOPPED)
OUT_IMM8, OUT_IMM, IN_IMM8, IN_IMM = 0xE6, 0xE7, 0xE4, 0xE5
OUT_DX8, OUT_DX, IN_DX8, IN_DX = 0xEE, 0xEF, 0xEC, 0xED


@inline
def check_iopl(box, env):
    """#GP(0) if CPL > IOPL. The TSS's I/O bitmap is not looked at: all ports are denied to such code."""
    if ld32(env + lay.ENV_HFLAGS) & lay.HF_CPL_MASK > ld64(env + lay.ENV_EFLAGS) >> 12 & 3:
        call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)


@inline
def is_prefix(byte):
    return byte in (0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65) or 0x40 <= byte <= 0x4F


@inline
def port_insn_length(box, rip):
    """Length of the plain IN or OUT at `rip`; 0 if it is a string one or cannot be read."""
    length = 0
    byte = code_byte(box, rip)
    while is_prefix(byte) and length < 14:
        length += 1
        byte = code_byte(box, rip + length)
    if byte in (OUT_DX8, OUT_DX, IN_DX8, IN_DX):
        return length + 1
    if byte in (OUT_IMM8, OUT_IMM, IN_IMM8, IN_IMM):
        return length + 2
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
    if length != 0 and get(box, mb.KICK) != 0:
        put(box, mb.KICK, 0)
        put(box, mb.BUDGET, get(box, mb.STOLEN))
        put(box, mb.STOLEN, 0)
    return length


@inline
def on_out(box, port, size, value):
    env = get_env(box)
    check_iopl(box, env)
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
    check_iopl(box, env)
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
    return value
