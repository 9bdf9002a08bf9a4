"""Near jumps, calls and returns to addresses that are not canonical: #GP at the instruction, not at its target.

Unicorn notices when it fetches from there. Then the block that has just run says which instruction it was; what that
did to RIP and RSP is taken back (SDM vol. 2, CALL, JMP and RET). Far transfers, IRET and SYSRET, which change more,
fault at the target.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .. import mailbox as mb
from .blocks import last_start
from .decode import displacement, is_code64, prefixes
from .memory import get, get_env, inline, ld64, put, st64
from .translate import code_byte

RET, RET_IMM16, GROUP5 = 0xC3, 0xC2, 0xFF
CALL, JMP = 2, 4
WORD = 8
NO_JUMP = 1 << 32


@inline
def pushed(box, at):
    """How far the near transfer at `at` has moved RSP down, or NO_JUMP if it is none."""
    opcode = code_byte(box, at)
    if opcode == RET:
        return -WORD
    if opcode == RET_IMM16:
        return -WORD - (displacement(box, at + 1, 2) & 0xFFFF)
    digit = code_byte(box, at + 1) >> 3 & 7
    if opcode == GROUP5 and digit == CALL:
        return WORD
    return 0 if opcode == GROUP5 and digit == JMP else NO_JUMP


@inline
def undo_jump(box):
    """RIP is not canonical: go back to the near transfer that led here, if one did."""
    env, tb = get_env(box), get(box, mb.LAST_TB)
    if tb == 0 or not is_code64(env):
        return
    start = last_start(tb)
    at, _rex, _segment, _has_67, _has_lock = prefixes(box, start)
    moved = pushed(box, at)
    if moved != NO_JUMP:
        rsp = env + lay.ENV_REGS + 8 * lay.RSP
        st64(rsp, ld64(rsp) + moved)
        st64(env + lay.ENV_EIP, start)
        put(box, mb.BUDGET, get(box, mb.BUDGET) + 1)
        if get(box, mb.STEP) == mb.STEP_DONE:
            put(box, mb.STEP, mb.STEP_ONE)
