"""A debugger's watchpoints: every data access to a page that has one comes to the TLB fill, and nothing else changes.

The TLB entries of such a page stay where they are, with TLB_INVALID_MASK in what loads and stores compare. The fill
finds them, in the victim TLB too, and lets the access go on: the TLB holds and evicts what it would without
watchpoints, so that the run is the same. An access that hits leaves the run before its instruction, which is then
executed alone.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from .blocks import cut, leave, linear_rip, steal
from .debug import is_watched
from .memory import call3, get, get_env, inline, ld64, put, st64
from .task_switch import is_bare

DEBUG = int(CpuExit.DEBUG)
READ, WRITE, FETCH = 0, 1, 2
PAGE_MASK, PAGE = -4096, 4096
INVALID, NOTDIRTY = lay.TLB_INVALID_MASK, lay.TLB_NOTDIRTY
NR_MODES = 3


@inline
def entry_of(env, page, idx):
    """Where the TLB keeps a page."""
    fast = env + lay.TLB_FAST + 16 * idx
    return ld64(fast + 8) + (page >> 12 & ld64(fast) >> 6) * lay.TLB_ENTRY_SIZE


@inline
def victim(env, idx, i):
    return env + lay.TLB_DESC + lay.TLB_DESC_SIZE * idx + lay.TLB_VICTIMS + lay.TLB_ENTRY_SIZE * i


@inline
def touches(box, i, start, end, physical):
    """Has row `i` a part of [start, end), of linear or of host-physical addresses?"""
    row = box + 8 * (mb.WATCHPOINTS + mb.WATCHPOINT_WORDS * i)
    how = ld64(row)
    return (how & mb.WATCH_PHYSICAL != 0) == physical and ld64(row + 8) < end and start < ld64(row + 16)


@inline
def has_watchpoint(box, page, hpa):
    """Is a page watched, or the one before it for a load that reaches into it?"""
    found = get(box, mb.WATCH_PAGE_BEFORE) == page
    for i in range(get(box, mb.NR_WATCHPOINTS)):
        found |= touches(box, i, page, page + PAGE, False) | touches(box, i, hpa, hpa + PAGE, True)
    return found


@inline
def hits_of(box, va, size, access, hpa):
    """The watchpoints that an access hits, a bit for each."""
    found = 0
    wanted = mb.WATCH_WRITES if access == WRITE else mb.WATCH_READS
    for i in range(get(box, mb.NR_WATCHPOINTS)):
        if ld64(box + 8 * (mb.WATCHPOINTS + mb.WATCHPOINT_WORDS * i)) & wanted and (
            touches(box, i, va, va + size, False)
            or touches(box, i, hpa, min(hpa + size, (hpa & PAGE_MASK) + PAGE), True)
        ):
            found |= 1 << i
    return found


@inline
def is_plain(value):
    """Does a comparator name a page of memory, marked or not? Entries that serve one access only are not ours."""
    return value != -1 and value & ~PAGE_MASK & ~(INVALID | NOTDIRTY) == 0


@inline
def mark_entry(box, env, entry):
    """Mark what belongs to a watched page, and nothing else."""
    for at in range(entry, entry + 16, 8):
        value = ld64(at)
        page = value & PAGE_MASK
        if is_plain(value) and not is_watched(env, page):
            hpa = ld64(entry + lay.TLB_ENTRY_PADDR)
            st64(at, value & ~INVALID | (INVALID if has_watchpoint(box, page, hpa) else 0))


@inline
def unmark_entry(env, entry, page):
    for at in range(entry, entry + 16, 8):
        value = ld64(at)
        if is_plain(value) and value & PAGE_MASK == page and not is_watched(env, page):
            st64(at, value & ~INVALID)


@inline
def on_unmark(box, page, idx):
    """Unicorn is about to look for entries of a page, to replace or drop them."""
    env = get_env(box)
    unmark_entry(env, entry_of(env, page, idx), page)
    for i in range(lay.TLB_NR_VICTIMS):
        unmark_entry(env, victim(env, idx, i), page)


@inline
def on_mark_all(box):
    """The watchpoints have changed."""
    env = get_env(box)
    for idx in range(NR_MODES):
        fast = env + lay.TLB_FAST + 16 * idx
        for i in range((ld64(fast) >> 6) + 1):
            mark_entry(box, env, ld64(fast + 8) + lay.TLB_ENTRY_SIZE * i)
        for i in range(lay.TLB_NR_VICTIMS):
            mark_entry(box, env, victim(env, idx, i))


@inline
def exchange(a, b, size):
    for at in range(0, size, 8):
        value = ld64(a + at)
        st64(a + at, ld64(b + at))
        st64(b + at, value)


@inline
def find_marked(env, page, idx, access):
    """The marked entry that serves an access, or 0; one of the victim TLB changes places (victim_tlb_hit)."""
    entry = entry_of(env, page, idx)
    if ld64(entry + 8 * access) & ~NOTDIRTY == page | INVALID:
        return entry
    desc = env + lay.TLB_DESC + lay.TLB_DESC_SIZE * idx
    for i in range(lay.TLB_NR_VICTIMS):
        if ld64(victim(env, idx, i) + 8 * access) == page | INVALID:
            exchange(entry, victim(env, idx, i), lay.TLB_ENTRY_SIZE)
            index = (entry - ld64(env + lay.TLB_FAST + 16 * idx + 8)) // lay.TLB_ENTRY_SIZE
            exchange(ld64(desc + lay.TLB_IOTLB) + 16 * index, desc + lay.TLB_VICTIM_IOTLB + 16 * i, 16)
            return entry
    return 0


@inline
def set_dirty(env, page):
    """tlb_set_dirty(), which does not see marked entries: stores need not look for code there any more."""
    for idx in range(NR_MODES):
        at = entry_of(env, page, idx) + 8
        if ld64(at) == page | INVALID | NOTDIRTY:
            st64(at, page | INVALID)
        for i in range(lay.TLB_NR_VICTIMS):
            at = victim(env, idx, i) + 8
            if ld64(at) == page | INVALID | NOTDIRTY:
                st64(at, page | INVALID)


@inline
def store_to(env, entry, page):
    """A store is about to go through an entry, marked or not."""
    if ld64(entry + 8) & NOTDIRTY and ld64(entry + lay.TLB_ENTRY_CODE) == -1:
        set_dirty(env, page)


@inline
def on_marked(box, va, size, how, retaddr):
    """A miss that is none: 1 if the entry is there and serves the access."""
    access, idx, page = how >> 2, how & 3, va & PAGE_MASK
    env = get_env(box)
    entry = 0 if is_watched(env, page) else find_marked(env, page, idx, access)
    if entry == 0:
        return 0
    if access == WRITE:
        store_to(env, entry, page)
    hpa = ld64(entry + lay.TLB_ENTRY_PADDR) | va & ~PAGE_MASK
    on_access(box, va, size, access, retaddr, hpa)
    return 1


@inline
def on_filled(box, va, size, how, retaddr, hpa):
    """The TLB has a new entry. retaddr -1: it was no access."""
    env = get_env(box)
    access, page = how >> 2, va & PAGE_MASK
    entry = entry_of(env, page, how & 3)
    mark_entry(box, env, entry)
    if access != FETCH and retaddr != -1:
        on_access(box, va, size, access, retaddr, hpa)
        if access == WRITE and not is_watched(env, page):
            store_to(env, entry, page)


@inline
def part_of_load(box, va, size, access, retaddr):
    """The bytes (start, end) that are loaded: a load that crosses a page is done as two aligned ones, which may be
    more."""
    last, end = get(box, mb.WATCH_LAST_VA), get(box, mb.WATCH_LAST_END)
    first = last & -size
    crosses = (last ^ end - 1) & PAGE_MASK != 0 and end - last == size
    if access != READ or not crosses or get(box, mb.WATCH_LAST_BACK) != retaddr or va not in (first, first + size):
        return va, va + size
    if va != first:
        put(box, mb.WATCH_LAST_BACK, -1)
    return max(va, last), min(va + size, end)


@inline
def on_access(box, va, size, access, retaddr, hpa):
    """An access to memory. Does not return if its instruction is to be done alone."""
    last, last_end = get(box, mb.WATCH_LAST_VA), get(box, mb.WATCH_LAST_END)
    again = get(box, mb.WATCH_LAST_BACK) == retaddr
    if again and access == WRITE and va & ~PAGE_MASK == 0 and va < last and va + size == last_end:
        return  # see is_second_page in debug.py
    start, end = part_of_load(box, va, size, access, retaddr)
    if start == va and end == va + size:
        put(box, mb.WATCH_LAST_VA, va)
        put(box, mb.WATCH_LAST_END, va + size)
        put(box, mb.WATCH_LAST_BACK, retaddr)
    found = hits_of(box, start, end - start, access, hpa + start - va)
    if found == 0:
        return
    env = get_env(box)
    if get(box, mb.STEP) != 0 or get(box, mb.WATCH_PASSING) != 0:
        put(box, mb.WATCHPOINT_HITS, get(box, mb.WATCHPOINT_HITS) | found)
    elif get(box, mb.DELIVERING) != 0 or get(box, mb.TASK_PENDING) != 0 or is_bare(env):
        put(box, mb.WATCHPOINT_HITS, get(box, mb.WATCHPOINT_HITS) | found)
        steal(box)
    else:
        stop_before(box, env, va, retaddr)


@inline
def stop_before(box, env, va, retaddr):
    """Leave with the state of the instruction's start. What seems to be a load at the start of a page may be a part
    of one that begins before it: the next time that will be seen."""
    page = (va & PAGE_MASK) - PAGE
    put(box, mb.WATCH_PAGE_BEFORE, page)
    for idx in range(NR_MODES):
        mark_entry(box, env, entry_of(env, page, idx))
        for i in range(lay.TLB_NR_VICTIMS):
            mark_entry(box, env, victim(env, idx, i))
    call3(get(box, mb.FN_RESTORE), get(box, mb.CPU), retaddr, 0)
    cut(box, linear_rip(env))
    put(box, mb.WATCH_HITS, 0)
    put(box, mb.WATCH_ALONE, -1)
    put(box, mb.WATCH_LAST_BACK, -1)
    put(box, mb.WATCH_SUSPECT, 1)
    leave(box, DEBUG)
