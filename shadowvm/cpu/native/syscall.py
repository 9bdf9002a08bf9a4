"""SYSCALL and SYSENTER, of which Unicorn has only the hooks (SDM vol. 2). It adds the length to RIP after the hook."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from .blocks import linear_rip
from .decode import LOW32, is_code64, prefixes
from .memory import call1, call3, call4, get, get_env, inline, ld32, ld64, st32, st64

CODE64, CODE32, DATA = 0x00AF_9B00, 0x00CF_9B00, 0x00CF_9300
FLAT = 0xFFFF_FFFF
RF, VM = 1 << 16, 1 << 17


@inline
def insn_length(box, env):
    """Length of the two-byte instruction at RIP with its prefixes."""
    pc = linear_rip(env)
    at, _rex, _segment, _has_67, _has_lock = prefixes(box, pc)
    return at + 2 - pc


@inline
def set_flat(env, segment, selector, flags):
    at = env + lay.ENV_SEGS + lay.SEG_SIZE * segment
    st32(at, selector)
    st64(at + lay.SEG_BASE, 0)
    st32(at + lay.SEG_LIMIT, FLAT)
    st32(at + lay.SEG_FLAGS, flags)


@inline
def enter_kernel(box, env, selector, code_flags, flags):
    """CPL 0 with flat segments, CS `selector` and SS the next."""
    call3(get(box, mb.FN_WRITE_EFLAGS), env, flags, LOW32)
    set_flat(env, lay.CS, selector, code_flags)
    set_flat(env, lay.SS, selector + 8, DATA)
    call1(get(box, mb.FN_UPDATE_HFLAGS), env)
    hflags = env + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) & ~lay.HF_OF_EFLAGS)


@inline
def on_syscall(box):
    """SYSCALL. Outside of 64-bit mode #UD, as Intel's."""
    env = get_env(box)
    if not ld64(env + lay.ENV_EFER) & x86.EFER_SCE or not is_code64(env):
        call4(get(box, mb.FN_RAISE), env, x86.UD_VECTOR, 0, 0)
    length = insn_length(box, env)
    flags = call1(get(box, mb.FN_READ_EFLAGS), env) & ~RF
    st64(env + lay.ENV_REGS + 8 * lay.RCX, ld64(env + lay.ENV_EIP) + length)
    st64(env + lay.ENV_REGS + 8 * 11, flags)
    enter_kernel(box, env, ld64(env + lay.ENV_STAR) >> 32 & 0xFFFC, CODE64, flags & ~ld64(env + lay.ENV_FMASK))
    st64(env + lay.ENV_EIP, ld64(env + lay.ENV_LSTAR) - length)


@inline
def on_sysenter(box):
    """SYSENTER, from any protected mode."""
    env = get_env(box)
    selector = ld32(env + lay.ENV_SYSENTER_CS) & 0xFFFC
    if selector == 0:
        call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)
    length = insn_length(box, env)
    is_long = ld32(env + lay.ENV_HFLAGS) & lay.HF_LMA_MASK != 0
    flags = call1(get(box, mb.FN_READ_EFLAGS), env) & ~(RF | VM | x86.RFLAGS_IF)
    enter_kernel(box, env, selector, CODE64 if is_long else CODE32, flags)
    mask = -1 if is_long else LOW32
    st64(env + lay.ENV_REGS + 8 * lay.RSP, ld64(env + lay.ENV_SYSENTER_ESP) & mask)
    st64(env + lay.ENV_EIP, (ld64(env + lay.ENV_SYSENTER_EIP) & mask) - length)
