"""Counting: which instruction of a translated block is at RIP, the block hook, exits, and the time-stamp counter.

The hook runs before each translated block and pays for the whole block. A block that is cut short (a fault, a store
into itself) gets the rest back: `cut` looks RIP up in the block's table of instruction starts.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from .iret import watch_iret
from .memory import bump, call1, call2, call3, get, get_env, inline, ld8, ld32, ld64, put, return_slot, st32, st64

QUANTUM, STOPPED, DEBUG = int(CpuExit.QUANTUM), int(CpuExit.STOPPED), int(CpuExit.DEBUG)
LAST_WORD_TRIED = 64
UNSET = 0xFFFF_FFFF
RF = 1 << 16
RESUMING, RESUMED = 1, 2


@inline
def unkick(box):
    """Give the budget back; what `cut` has returned meanwhile stays."""
    if get(box, mb.KICK) != 0:
        put(box, mb.KICK, 0)
        put(box, mb.BUDGET, get(box, mb.BUDGET) + get(box, mb.STOLEN))
        put(box, mb.STOLEN, 0)


@inline
def leave(box, code):
    """End the run: back to `enter`, which returns `code`. Does not return. By a call, as it is used so often."""
    call2(get(box, mb.FN_LEAVE), box, code)


@inline
def on_leave(box, code):
    """What `leave` calls."""
    cpu = get(box, mb.CPU)
    unkick(box)
    put(box, mb.EXIT, code)
    put(box, mb.VECTORING, get(box, mb.DELIVERING))
    put(box, mb.DELIVERING, 0)
    put(box, mb.LAST_TB, 0)
    put(box, mb.ASKED, 0)
    put(box, mb.RESUME, 0)
    put(box, mb.SINGLE, -1)
    hflags = cpu + lay.CPU_ENV + lay.ENV_HFLAGS
    st32(hflags, ld32(hflags) | lay.HF_GUEST_MASK)
    watch_iret(cpu + lay.CPU_ENV)
    st32(cpu + lay.CPU_ENV + lay.ENV_OLD_EXCEPTION, UNSET)
    st32(cpu + lay.CPU_CFLAGS_NEXT_TB, UNSET)
    st32(cpu + lay.CPU_EXCEPTION_INDEX, lay.EXCP_HLT)
    call1(get(box, mb.FN_LOOP_EXIT), cpu)


@inline
def linear_rip(env):
    return ld64(env + lay.ENV_EIP) + ld64(env + lay.ENV_SEGS + lay.SEG_SIZE * lay.CS + lay.SEG_BASE)


@inline
def signed_delta(at):
    """(value, address behind it) of the signed LEB128 number at `at`."""
    value = 0
    shift = 0
    byte = 0x80
    while byte & 0x80:
        byte = ld8(at)
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    if shift < 64 and byte & 0x40:
        value -= 1 << shift
    return value, at


@inline
def next_row(here, at):
    """(instruction, address behind its row) for the row at `at`, where the one before was of the instruction `here`.

    The table behind the host code has a row (pc, cc_op, host pc) for each instruction, as signed LEB128 deltas
    (encode_search in accel/tcg/translate-all.c).
    """
    delta, at = signed_delta(at)
    _op, at = signed_delta(at)
    _host, at = signed_delta(at)
    return here + delta, at


@inline
def last_start(tb):
    """Address of the last instruction of block `tb`."""
    count = ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF
    at = ld64(tb + lay.TB_TC_PTR) + ld64(tb + lay.TB_TC_SIZE)
    here = ld64(tb + lay.TB_PC)
    for _ in range(count):
        here, at = next_row(here, at)
    return here


@inline
def insn_index(tb, pc):
    """Which instruction of block `tb` starts at `pc`, or -1."""
    count = ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF
    at = ld64(tb + lay.TB_TC_PTR) + ld64(tb + lay.TB_TC_SIZE)
    here = ld64(tb + lay.TB_PC)
    for i in range(count):
        here, at = next_row(here, at)
        if here == pc:
            return i
    return -1


@inline
def cut(box, pc):
    """The last block ended before the instruction at `pc`: give back what it did not execute."""
    tb = get(box, mb.LAST_TB)
    if tb != 0:
        put(box, mb.LAST_TB, 0)
        index = insn_index(tb, pc)
        word = ld64(tb + lay.TB_SIZE_ICOUNT)
        if index >= 0:
            put(box, mb.BUDGET, get(box, mb.BUDGET) + (word >> 48 & 0xFFFF) - index)
        elif 0 <= pc - ld64(tb + lay.TB_PC) < (word >> 32 & 0xFFFF):
            bump(box, mb.MISCOUNTS)


@inline
def settle_self_modified(box, cpu):
    """A store into its own block restarts at the store, alone: QEMU asks for a one-instruction block by itself."""
    if ld32(cpu + lay.CPU_CFLAGS_NEXT_TB) != UNSET and get(box, mb.ASKED) == 0:
        cut(box, linear_rip(cpu + lay.CPU_ENV))
        put(box, mb.ASKED, 1)


@inline
def run_again(box):
    """Leave the block without executing it and look it up anew. Does not return."""
    call1(get(box, mb.FN_LOOP_EXIT_NOEXC), get(box, mb.CPU))


@inline
def find_block(box, slot, pc):
    """The block whose code calls the hook, from its return address near `slot`; kept in the cache."""
    if get(box, mb.FRAME_DISTANCE) < 0:
        for i in range(LAST_WORD_TRIED):
            tb = call2(get(box, mb.FN_TB_LOOKUP), get(box, mb.TCG_CTX), ld64(slot + 8 * i))
            if tb != 0 and ld64(tb + lay.TB_PC) == pc:
                put(box, mb.FRAME_DISTANCE, 8 * i)
                break
    back = ld64(slot + get(box, mb.FRAME_DISTANCE))
    tb = call2(get(box, mb.FN_TB_LOOKUP), get(box, mb.TCG_CTX), back)
    cached = cache_slot(box, back)
    st64(cached, 0 if get(box, mb.NR_BREAKS) != 0 and tb != 0 and next_break(box, tb, 0) >= 0 else back)
    st64(cached + 8, tb)
    return tb


@inline
def is_break(box, pc):
    """Is there a debugger's breakpoint at a linear address?"""
    found = False
    for i in range(get(box, mb.NR_BREAKS)):
        found |= get(box, mb.BREAKS + i) == pc
    return found


@inline
def next_break(box, tb, first):
    """Which instruction of a block, from number `first` on, has a breakpoint, or -1."""
    count = ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF
    at = ld64(tb + lay.TB_TC_PTR) + ld64(tb + lay.TB_TC_SIZE)
    here = ld64(tb + lay.TB_PC)
    for i in range(count):
        here, at = next_row(here, at)
        if i >= first and is_break(box, here):
            return i
    return -1


@inline
def cache_slot(box, back):
    """Where the cache keeps (return address, block)."""
    return get(box, mb.TB_CACHE) + ((back >> 4 & (mb.TB_CACHE_SLOTS - 1)) << 4)


@inline
def on_block_slow(box, slot, pc):
    """All that is not just paying: an unknown or shortened block, a stop, a step, the end of the budget."""
    tb = find_block(box, slot, pc)
    env, cpu = get_env(box), get(box, mb.CPU)
    count = ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF
    shortened = ld64(tb + lay.TB_CFLAGS) & lay.CF_COUNT_MASK
    if shortened != 0 and get(box, mb.ASKED) == 0:
        cut(box, pc)
    put(box, mb.ASKED, 0)
    put(box, mb.LAST_TB, 0)
    st64(env + lay.ENV_EIP, pc - ld64(env + lay.ENV_SEGS + lay.SEG_SIZE * lay.CS + lay.SEG_BASE))
    if get(box, mb.WATCHPOINT_HITS) != 0 and get(box, mb.STEP) == 0:
        leave(box, DEBUG)
    if get(box, mb.KICK) != 0:
        unkick(box)
        if get(box, mb.RESUME) == RESUMED:
            put(box, mb.RESUME, 0)
            st64(env + lay.ENV_EFLAGS, ld64(env + lay.ENV_EFLAGS) & ~RF)
        if shortened != 0:
            put(box, mb.ASKED, 1)
            st32(cpu + lay.CPU_CFLAGS_NEXT_TB, shortened)
        run_again(box)
    if get(box, mb.STEP) == mb.STEP_DONE:
        leave(box, QUANTUM)
    left = get(box, mb.BUDGET)
    if get(box, mb.NR_BREAKS) != 0 and get(box, mb.STEP) == 0 and left > 0:
        passed = get(box, mb.BREAK_PASSED) == pc
        before = next_break(box, tb, 1 if passed else 0)
        if before == 0:
            leave(box, DEBUG)
        if before > 0:
            left = min(left, before)
        if count <= left and passed:
            put(box, mb.BREAK_PASSED, -1)
    if get(box, mb.STEP) == mb.STEP_ONE:
        put(box, mb.STEP, mb.STEP_DONE)
    elif left <= 0:
        leave(box, QUANTUM)
    elif count > left:
        put(box, mb.ASKED, 1)
        st32(cpu + lay.CPU_CFLAGS_NEXT_TB, left)
        run_again(box)
    put(box, mb.BUDGET, get(box, mb.BUDGET) - count)
    put(box, mb.LAST_TB, tb)
    if get(box, mb.RESUME) != 0:
        put(box, mb.RESUME, RESUMED)
        steal(box)


@inline
def steal(box):
    """Have the next block come to `on_block_slow`."""
    if get(box, mb.KICK) == 0:
        put(box, mb.KICK, 1)
        put(box, mb.STOLEN, get(box, mb.BUDGET))
        put(box, mb.BUDGET, 0)


@inline
def on_block(box, pc):
    """The hook of UC_HOOK_BLOCK: pays for a whole block that is known. Runs at every block, so it is kept tiny."""
    slot = return_slot()
    # Before the distance is known this reads the word below the slot, which no entry of the cache equals.
    back = ld64(slot + get(box, mb.FRAME_DISTANCE))
    cached = cache_slot(box, back)
    tb = ld64(cached + 8)
    if ld64(cached) == back and ld64(tb + lay.TB_PC) == pc and not ld64(tb + lay.TB_CFLAGS) & lay.CF_COUNT_MASK:
        left = get(box, mb.BUDGET) - (ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF)
        if left >= 0:
            put(box, mb.BUDGET, left)
            put(box, mb.LAST_TB, tb)
            return
    call3(get(box, mb.FN_BLOCK_SLOW), box, slot, pc)


@inline
def retired(box, pc):
    """Instructions retired before the one at `pc`, from inside a block."""
    total = get(box, mb.GRANTED) - get(box, mb.BUDGET) - get(box, mb.STOLEN)
    tb = get(box, mb.LAST_TB)
    if tb != 0:
        index = insn_index(tb, pc)
        if index >= 0:
            total -= (ld64(tb + lay.TB_SIZE_ICOUNT) >> 48 & 0xFFFF) - index
    return total


@inline
def on_rdtsc(box):
    """RDTSC: retired instructions plus TSC_OFFSET; without counting, a number that grows at each read."""
    env = get_env(box)
    counting = get(box, mb.COUNTING) != 0
    now = retired(box, linear_rip(env)) if counting else get(box, mb.TSC_READS) * 1024
    bump(box, mb.TSC_READS)
    now += get(box, mb.TSC_OFFSET) + get(box, mb.TIME_BASE)
    st64(env + lay.ENV_REGS + 8 * lay.RAX, now & 0xFFFF_FFFF)
    st64(env + lay.ENV_REGS + 8 * lay.RDX, now >> 32 & 0xFFFF_FFFF)
