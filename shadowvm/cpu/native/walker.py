"""The CPU's page walker: CPUClass.tlb_fill over x86 tables of 3 to 5 levels in host frames. Its twin is ../walker.py.

A walk that fails leaves the run with the state of the instruction's start and the reason in the mailbox.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from .blocks import cut, leave, linear_rip, run_again
from .coherence import note_new_code
from .guest_fault import raise_page_fault
from .intercept import refuse_cr3
from .jumps import undo_jump
from .memory import bump, call1, call3, call4, call5, call6, get, get_env, inline, ld8, ld64, put, st8, st32, st64
from .nested import EPT_MISCONFIG, EPT_VIOLATION, GUEST_FAULT
from .operands import is_stack_access, reads_to_write
from .rights import (
    BAD_FRAME,
    FETCH,
    NOT_PRESENT,
    PROTECTION_KEY,
    READ,
    WRITE,
    key_rights,
    mark,
    why_refused,
)
from .task_switch import note_switch
from .translate import LOW32, PAE_LEVEL, is_canonical

WALK_FAULT = int(CpuExit.WALK_FAULT)
CR_ACCESS = int(CpuExit.CR_ACCESS)
NON_CANONICAL = int(CpuExit.NON_CANONICAL)
A, D, P, PS = x86.PT_ACCESSED, x86.PT_DIRTY, x86.PT_PRESENT, x86.PT_PAGE_SIZE
W, U = x86.PT_WRITABLE, x86.PT_USER
ADDR, PAGE_MASK = x86.PT_ADDR_MASK, -4096


@inline
def keys_match(box, env):
    """Do CR0, CR3, CR4 and EFER still select the current root?"""
    cr = env + lay.ENV_CR
    return (
        (ld64(cr) ^ get(box, mb.KEY_CR0)) & get(box, mb.MASK_CR0)
        | (ld64(cr + 24) & get(box, mb.MASK_CR3)) ^ get(box, mb.KEY_CR3)
        | (ld64(cr + 32) ^ get(box, mb.KEY_CR4)) & get(box, mb.MASK_CR4)
        | (ld64(env + lay.ENV_EFER) ^ get(box, mb.KEY_EFER)) & get(box, mb.MASK_EFER)
    ) == 0


@inline
def switch_root(box, env):
    """If only CR3 differs, swap the current root with the kept one of that CR3 (cached_root_find_and_keep_current)."""
    cr = env + lay.ENV_CR
    others = (
        (ld64(cr) ^ get(box, mb.KEY_CR0)) & get(box, mb.MASK_CR0)
        | (ld64(cr + 32) ^ get(box, mb.KEY_CR4)) & get(box, mb.MASK_CR4)
        | (ld64(env + lay.ENV_EFER) ^ get(box, mb.KEY_EFER)) & get(box, mb.MASK_EFER)
    )
    if others == 0 and get(box, mb.CR3_EXITS) == 0:
        cr3 = ld64(cr + 24) & get(box, mb.MASK_CR3)
        for i in range(mb.NR_PREV_ROOTS):
            pair = mb.PREV_ROOTS + 2 * i
            root = get(box, pair + 1)
            if root != 0 and get(box, pair) == cr3:
                put(box, pair, get(box, mb.KEY_CR3))
                put(box, pair + 1, get(box, mb.ROOT))
                put(box, mb.KEY_CR3, cr3)
                put(box, mb.ROOT, root)
                bump(box, mb.CR3_HITS)
                return True
    return False


@inline
def walk(box, va, access, idx):
    """Walk for one access; marks A and D. pfn << 1 | may be mapped writable, or -1 with EXIT_LEVEL, _TABLE, _WHY."""
    ram, frames = get(box, mb.RAM_BASE), get(box, mb.NR_FRAMES)
    table = get(box, mb.ROOT) >> 12
    rights, nx = W | U, False
    at5 = at4 = at3 = at2 = 0
    level = get(box, mb.ROOT_LEVEL)
    while True:
        put(box, mb.EXIT_LEVEL, level)
        put(box, mb.EXIT_TABLE, table)
        if table >= frames:
            put(box, mb.EXIT_WHY, BAD_FRAME)
            return -1
        shift = 3 + 9 * level
        at = ram + (table << 12) + (va >> shift & 511) * 8
        entry = ld64(at)
        if not entry & P:
            put(box, mb.EXIT_WHY, NOT_PRESENT)
            return -1
        rights &= entry
        nx |= entry < 0
        if level == 1 or (level < 4 and entry & PS):
            break
        if level == 5:
            at5 = at
        elif level == 4:
            at4 = at
        elif level == 3:
            at3 = at
        else:
            at2 = at
        table = (entry & ADDR) >> 12
        level -= 1
    inside = (1 << (shift - 12)) - 1
    pfn = ((entry & ADDR) >> 12 & ~inside) | (va >> 12 & inside)
    why = why_refused(box, rights, nx, access, idx)
    if rights & U and access != FETCH and get(box, mb.CHECKS) & x86.CR4_PKE:
        allowed = key_rights(box, entry, idx)
        if not allowed & (W if access == WRITE else P):
            why = PROTECTION_KEY
        rights &= allowed
    if why >= 0 or pfn >= frames:
        put(box, mb.EXIT_WHY, why if why >= 0 else BAD_FRAME)
        return -1
    mark(at5, A)
    mark(at4, A)
    mark(at3, A)
    mark(at2, A)
    mark(at, A | D if access == WRITE else A)
    return pfn << 1 | (1 if rights & W and (access == WRITE or entry & D) else 0)


@inline
def fill_fetch(box, cpu, page, pfn, idx, serves):
    """The first fetch from a frame drops the TLB: entries that would let stores pass unseen may be in it."""
    executed = get(box, mb.EXECUTED) + pfn
    bump(box, mb.FETCH_FILLS)
    if ld8(executed) == 0:
        st8(executed, 1)
        note_new_code(box, pfn)
        bump(box, mb.CODE_FLUSHES)
        call1(get(box, mb.FN_FLUSH), cpu)
    call6(get(box, mb.FN_SET_PAGE), cpu, page, pfn << 12, 5 if fetch_tells_read(box, idx) else 4, idx, serves)


@inline
def fetch_tells_read(box, idx):
    """May every page that can be fetched be read too? Not where a protection key or SMAP might refuse that."""
    checks = get(box, mb.CHECKS)
    if checks & x86.CR4_PKE:
        return False
    return idx != lay.MMU_KSMAP_IDX or not checks & x86.CR4_SMAP or checks & x86.CR4_SMEP != 0


@inline
def fill_device(box, cpu, va, size, access, idx, retaddr, pfn):
    """Map a device's window, for this access only: the entry serves less than a page."""
    put(box, mb.MMIO_VA, va)
    put(box, mb.MMIO_SIZE, size)
    call6(get(box, mb.FN_SET_PAGE), cpu, va & PAGE_MASK, pfn << 12, 3, idx, 1)
    if get(box, mb.NR_WATCHPOINTS) != 0:
        gpa = get(box, mb.MMIO_WINDOWS + 2 * (pfn - get(box, mb.MMIO_PFN)) + 1) | mb.WATCH_DEVICE | va & ~PAGE_MASK
        call6(get(box, mb.FN_FILLED), box, va, size, access << 2 | idx, retaddr, gpa)


@inline
def fill_data(box, cpu, page, pfn, idx, writable, serves):
    """Map for data: for further accesses too if the entry `serves` a whole page."""
    call6(get(box, mb.FN_SET_PAGE), cpu, page, pfn << 12, 3 if writable else 1, idx, serves)
    if writable:
        st32(get(box, mb.WRITE_EPOCH) + 4 * pfn, get(box, mb.EPOCH))
        if ld8(get(box, mb.SHARED_CODE) + pfn) != 0:
            call4(get(box, mb.FN_WRITABLE_CODE), box, page, pfn, idx)


@inline
def in_window(box, page, access):
    """The frame that a window maps at this page, or -1."""
    if get(box, mb.WINDOWS_OPEN) != 0 and access != FETCH:
        for i in range(mb.NR_WINDOWS):
            if get(box, mb.WINDOW_VA + 2 * i) == page:
                return get(box, mb.WINDOW_PFN + 2 * i)
        for i in range(mb.NR_MMIO_WINDOWS):
            if get(box, mb.MMIO_WINDOWS + 2 * i) == page:
                return get(box, mb.MMIO_PFN) + i
    return -1


@inline
def execute_alone(box, cpu, env, va):
    """A block reaches into a page that cannot be fetched: run its first instruction alone, then see."""
    rip = linear_rip(env)
    if get(box, mb.DELIVERING) == 0 and (va ^ rip) & PAGE_MASK and get(box, mb.SINGLE) != rip:
        put(box, mb.SINGLE, rip)
        put(box, mb.ASKED, 1)
        st32(cpu + lay.CPU_CFLAGS_NEXT_TB, 1)
        run_again(box)


@inline
def other_root(box):
    """The control registers are not those of the current root: True if a kept root serves, now the current one."""
    env = get_env(box)
    if switch_root(box, env):
        return True
    refuse_cr3(box, env)
    return False


@inline
def through_stack(box, va, access):
    """Is it an access through SS? Delivery of an event stores nowhere else."""
    if get(box, mb.DELIVERING) != 0:
        return access == WRITE
    return access != FETCH and is_stack_access(box, va)


@inline
def refuse(box, va, size, access, idx, retaddr, code):
    """Leave the run: the access cannot be done. Does not return. A function of its own, to keep the fill short."""
    cpu, env = get(box, mb.CPU), get_env(box)
    switching = note_switch(box, env)
    if switching:
        pass
    elif access == FETCH:
        call3(get(box, mb.FN_RESTORE), cpu, retaddr, 0)
        if code not in (CR_ACCESS, NON_CANONICAL):
            execute_alone(box, cpu, env, va)
        if code == NON_CANONICAL and get(box, mb.DELIVERING) == 0:
            undo_jump(box)
        tb = get(box, mb.LAST_TB)
        if tb != 0 and ld64(tb + lay.TB_CFLAGS) & lay.CF_INVALID:
            cut(box, linear_rip(env))
    else:
        call3(get(box, mb.FN_RESTORE), cpu, retaddr, 0)
        if get(box, mb.DELIVERING) == 0:
            cut(box, linear_rip(env))
            if access == READ and reads_to_write(box):
                access = WRITE
                if code in (EPT_VIOLATION, EPT_MISCONFIG, GUEST_FAULT):
                    # The guest's tables were walked for a load: they may refuse the store, or have D to set.
                    # What refused the load already is told as of a store: its protection key may refuse that alone.
                    found = call4(get(box, mb.FN_NESTED_WALK), box, va, WRITE, idx)
                    code = -found if found < 0 else code
    if code == NON_CANONICAL:
        put(box, mb.EXIT_STACK, 1 if through_stack(box, va, access) else 0)
    put(box, mb.WATCH_HITS, 0)
    put(box, mb.WATCH_ALONE, -1)
    if access != FETCH:
        put(box, mb.WATCHPOINT_HITS, 0)
    put(box, mb.EXIT_VA, va)
    if code == GUEST_FAULT:
        raise_page_fault(box, env, va, access, idx, switching)
    is_nested = code in (EPT_VIOLATION, EPT_MISCONFIG)
    if not is_nested or get(box, mb.EXIT_FINAL) != 0:
        put(box, mb.EXIT_ACCESS, access)
    put(box, mb.EXIT_FETCH, 1 if access == FETCH else 0)
    put(box, mb.EXIT_STORE, 1 if access == WRITE else 0)
    put(box, mb.EXIT_USER, 1 if idx == lay.MMU_USER_IDX else 0)
    put(box, mb.EXIT_SMAP, 1 if idx == lay.MMU_KSMAP_IDX else 0)
    put(box, mb.EXIT_SIZE, size)
    leave(box, code)


@inline
def set_tlb_window(box, desc, idx):
    """First fill after a flush. QEMU shrinks a TLB at a flush if it was little used in a time window of 100 ms.

    Host time would make the misses differ between runs: here the window ends after a number of flushes.
    """
    periods = get(box, mb.TLB_PERIODS + idx) + 1
    ended = periods & (mb.TLB_WINDOW_PERIODS - 1) == 0
    put(box, mb.TLB_PERIODS + idx, periods)
    st64(desc + lay.TLB_WINDOW_BEGIN, lay.WINDOW_HAS_ENDED if ended else lay.WINDOW_NEVER_ENDS)


@inline
def on_fill(cpu, va, size, access, idx, probe, retaddr):
    """CPUClass.tlb_fill: True if the TLB now maps `va` for this access."""
    env = cpu + lay.CPU_ENV
    box = ld64(env + lay.ENV_MAILBOX)
    page = va & PAGE_MASK
    watching = get(box, mb.NR_WATCHPOINTS) != 0
    if watching and access != FETCH:
        back = -1 if probe else retaddr
        if call5(get(box, mb.FN_MARKED), box, va, size, access << 2 | idx, back) != 0:
            return True
    desc = env + lay.TLB_DESC + lay.TLB_DESC_SIZE * idx
    if ld64(desc + lay.TLB_USED_ENTRIES) == 0:
        set_tlb_window(box, desc, idx)
    bump(box, mb.FILLS)
    pfn = in_window(box, page, access)
    writable, serves = 1, 4096
    if pfn < 0:
        code = 0
        level = get(box, mb.ROOT_LEVEL)
        if get(box, mb.NESTED) != 0:
            if not ld64(env + lay.ENV_EFER) & x86.EFER_LMA:
                va &= LOW32
            found = call4(get(box, mb.FN_NESTED_WALK), box, va, access, idx)
            if found < 0:
                code = -found
            pfn, writable, serves = found >> 1, found & 1, get(box, mb.GUEST_PAGE)
        elif not keys_match(box, env) and call1(get(box, mb.FN_OTHER_ROOT), box) == 0:
            code = CR_ACCESS
        elif level != PAE_LEVEL and not is_canonical(va, level):
            code = NON_CANONICAL
        else:
            if level == PAE_LEVEL:
                va &= LOW32
            found = walk(box, va, access, idx)
            if found < 0:
                code = WALK_FAULT
            pfn, writable = found >> 1, found & 1
        if code != 0:
            if not probe:
                call6(get(box, mb.FN_REFUSE), box, va, size, access << 2 | idx, retaddr, code)
            return False
    elif pfn >= get(box, mb.NR_FRAMES):
        fill_device(box, cpu, va, size, access, idx, retaddr, pfn)
        return True
    if watching:
        call3(get(box, mb.FN_UNMARK), box, page, idx)
    st32(get(box, mb.FILL_EPOCH) + 4 * pfn, get(box, mb.EPOCH))
    if access == FETCH:
        fill_fetch(box, cpu, page, pfn, idx, serves)
    else:
        if get(box, mb.WATCHED) != 0 and not probe:
            serves = min(serves, call5(get(box, mb.FN_WATCHED_ACCESS), box, va, size, access, retaddr))
        fill_data(box, cpu, page, pfn, idx, writable, serves)
    if watching:
        back = -1 if probe else retaddr
        call6(get(box, mb.FN_FILLED), box, va, size, access << 2 | idx, back, pfn << 12 | va & ~PAGE_MASK)
    return True
