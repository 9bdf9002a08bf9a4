"""Debug registers: data breakpoints, which Unicorn leaves out, general detect, and the values that are refused.

Data breakpoints are found by the page walker and trapped after the instruction.

The TLB entry of a page with a breakpoint serves one access, so that each comes here with its address. An instruction
that hits is done again alone; the main loop then raises #DB before the next (SDM vol. 3, 17.2).
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from .blocks import RESUMED, RESUMING, RF, cut, linear_rip, run_again, steal
from .decode import LOW32, REX_B, is_code64, prefixes
from .intercept import retire
from .memory import call1, call3, call4, get, get_env, inline, ld32, ld64, put, st16, st32, st64
from .translate import code_byte

WRITE = 1
TYPE_WRITE, TYPE_ACCESS = 1, 3
PAGE_MASK = -4096
DR6_BD, DR7_GD = 1 << 13, 1 << 13
DR6_ONES, DR6_ZEROS = 0xFFFF_0FF0, 1 << 12
DR7_ONES, DR7_ZEROS = 1 << 10, 0xD000
FIRST_CHECKED, ALL_DRS = 4, 0xFF


@inline
def data_breakpoint(env, i):
    """Length of data breakpoint `i`, or 0 if DR7 has no such one on."""
    dr7 = ld64(env + lay.ENV_DR + 8 * 7)
    kind, length = dr7 >> (16 + 4 * i) & 3, dr7 >> (18 + 4 * i) & 3
    if dr7 >> (2 * i) & 3 == 0 or kind not in (TYPE_WRITE, TYPE_ACCESS):
        return 0
    return 8 if length == 2 else length + 1


@inline
def watch_breakpoints(box):
    """DR0-3 or DR7 have changed: note whether there are data breakpoints, and have the walker see all accesses."""
    env = get_env(box)
    count = 0
    for i in range(4):
        count += 1 if data_breakpoint(env, i) != 0 else 0
    if count != get(box, mb.WATCHED) or count != 0:
        call1(get(box, mb.FN_FLUSH), get(box, mb.CPU))
    put(box, mb.WATCHED, count)
    if has_code_breakpoint(env):
        request = get(box, mb.CPU) + lay.CPU_INTERRUPT_REQUEST
        st32(request, ld32(request) | lay.INTERRUPT_HARD)
    general = ld64(env + lay.ENV_DR + 8 * 7) & DR7_GD
    st16(env + lay.ENV_INTERCEPT_DR_READ, ALL_DRS if general else 0)


@inline
def clear_general_detect(env):
    """#DB is being delivered: its handler may use the debug registers (SDM vol. 3, 17.2.4)."""
    dr7 = env + lay.ENV_DR + 8 * 7
    if ld64(dr7) & DR7_GD:
        st64(dr7, ld64(dr7) & ~DR7_GD)
        st16(env + lay.ENV_INTERCEPT_DR_READ, 0)


@inline
def detect_access(box, env):
    """MOV to or from a debug register: with DR7.GD it is #DB instead, before anything is done."""
    if ld64(env + lay.ENV_DR + 8 * 7) & DR7_GD:
        dr6 = env + lay.ENV_DR + 8 * 6
        st64(dr6, ld64(dr6) | DR6_BD)
        call4(get(box, mb.FN_RAISE), env, x86.DB_VECTOR, 0, 0)


@inline
def legal_value(i, value):
    """What a debug register keeps of a value: reserved bits are fixed (SDM vol. 3, 17.2.3 and 17.2.4)."""
    if i in (4, 6):
        return value & ~DR6_ZEROS | DR6_ONES
    return value & ~DR7_ZEROS | DR7_ONES if i in (5, 7) else value


@inline
def has_code_breakpoint(env):
    """Has DR7 a breakpoint on execution on?"""
    dr7 = ld64(env + lay.ENV_DR + 8 * 7)
    found = False
    for i in range(4):
        found |= dr7 >> 2 * i & 3 != 0 and dr7 >> 16 + 4 * i & 3 == 0
    return found


@inline
def resume(box, cpu, env):
    """RF is set and there are breakpoints: it is for one instruction, where Unicorn would take it for a block."""
    flags = ld64(env + lay.ENV_EFLAGS)
    if flags & RF and get(box, mb.RESUME) == RESUMED:
        put(box, mb.RESUME, 0)
        st64(env + lay.ENV_EFLAGS, flags & ~RF)
    elif flags & RF and get(box, mb.STEP) == 0 and has_code_breakpoint(env):
        put(box, mb.RESUME, RESUMING)
        put(box, mb.ASKED, 1)
        st32(cpu + lay.CPU_CFLAGS_NEXT_TB, 1)


@inline
def on_write_dr(box, env, pc):
    """MOV to a debug register."""
    at, rex, _segment, _has_67, _has_lock = prefixes(box, pc)
    modrm = code_byte(box, at + 2)
    value = ld64(env + lay.ENV_REGS + 8 * (modrm & 7 | (rex & REX_B) << 3))
    if is_code64(env) and modrm >> 3 & 7 >= FIRST_CHECKED and value >> 32 != 0:
        call4(get(box, mb.FN_RAISE), env, x86.GP_VECTOR, 0, 0)
    value = legal_value(modrm >> 3 & 7, value if is_code64(env) else value & LOW32)
    call3(get(box, mb.FN_SET_DR), env, modrm >> 3 & 7, value)
    watch_breakpoints(box)
    retire(box, at + 3 - pc)


@inline
def hits(env, va, size, access):
    """Bits of DR6 for the data breakpoints that an access touches."""
    found = 0
    for i in range(4):
        length = data_breakpoint(env, i)
        kind = ld64(env + lay.ENV_DR + 8 * 7) >> (16 + 4 * i) & 3
        start = ld64(env + lay.ENV_DR + 8 * i) & -length
        if length != 0 and (access == WRITE or kind == TYPE_ACCESS) and start < va + size and va < start + length:
            found |= 1 << i
    return found


@inline
def is_watched(env, page):
    """Has the page a data breakpoint?"""
    found = False
    for i in range(4):
        found |= data_breakpoint(env, i) != 0 and ld64(env + lay.ENV_DR + 8 * i) & PAGE_MASK == page
    return found


@inline
def is_second_page(box, va, size, retaddr):
    """Is this no access? Before a store that is not aligned Unicorn looks at the page of the byte behind it, from its
    start on, even if that is the same page."""
    last, end = get(box, mb.WATCH_VA), get(box, mb.WATCH_VA) + get(box, mb.WATCH_SIZE)
    same = get(box, mb.WATCH_BACK) == retaddr
    put(box, mb.WATCH_VA, va)
    put(box, mb.WATCH_SIZE, size)
    put(box, mb.WATCH_BACK, retaddr)
    return same and va & ~PAGE_MASK == 0 and va < last and va + size == end


@inline
def on_watched_access(box, va, size, access, retaddr):
    """A data access while there are data breakpoints: how much of a page its TLB entry may serve."""
    cpu, env = get(box, mb.CPU), get_env(box)
    if not is_watched(env, va & PAGE_MASK):
        return 4096
    if is_second_page(box, va, size, retaddr):
        return 1
    found = hits(env, va, size, access)
    if found != 0 and get(box, mb.DELIVERING) == 0:
        call3(get(box, mb.FN_RESTORE), cpu, retaddr, 0)
        pc = linear_rip(env)
        if get(box, mb.WATCH_ALONE) != pc:
            put(box, mb.WATCH_ALONE, pc)
            cut(box, pc)
            put(box, mb.ASKED, 1)
            st32(cpu + lay.CPU_CFLAGS_NEXT_TB, 1)
            run_again(box)
        put(box, mb.WATCH_HITS, get(box, mb.WATCH_HITS) | found)
        request_trap(box, cpu)
    return 1


@inline
def request_trap(box, cpu):
    """Have the main loop look before the next block. In a plain run the one-instruction block returns to it."""
    st32(cpu + lay.CPU_INTERRUPT_REQUEST, ld32(cpu + lay.CPU_INTERRUPT_REQUEST) | lay.INTERRUPT_HARD)
    if get(box, mb.COUNTING) != 0:
        steal(box)


@inline
def take_hits(box, env):
    """Move hits into DR6; True if there were any."""
    found = get(box, mb.WATCH_HITS)
    put(box, mb.WATCH_HITS, 0)
    put(box, mb.WATCH_ALONE, -1)
    dr6 = env + lay.ENV_DR + 8 * 6
    if found != 0:
        st64(dr6, ld64(dr6) & ~0xF | found)
    return found != 0
