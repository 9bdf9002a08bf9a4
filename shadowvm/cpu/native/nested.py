"""The CPU's two-dimensional page walk (EPT, NPT). Its twin is ../nested.py.

The guest's own tables are walked in its own paging mode (SDM vol. 3, chapter 4). Their addresses and that of the page
are guest-physical ones: each goes through the hypervisor's table at ROOT, of 4 or 5 levels, in the layout of AMD's NPT.
What the nested table refuses is an exit; what the guest's tables refuse is the guest's own page fault (guest_fault.py).
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import layout as lay
from .. import mailbox as mb
from ..engine import CpuExit
from . import rights as rights_of
from .memory import call1, get, get_env, inline, ld32, ld64, put, st32, st64
from .rights import (
    BAD_FRAME,
    FETCH,
    NO_EXEC,
    NO_USER,
    NO_WRITE,
    NOT_PRESENT,
    READ,
    WRITE,
    key_rights,
    why_refused,
)
from .translate import LOW32, PEEK, is_canonical

EPT_VIOLATION, EPT_MISCONFIG = int(CpuExit.EPT_VIOLATION), int(CpuExit.EPT_MISCONFIG)
CR_ACCESS, NON_CANONICAL = int(CpuExit.CR_ACCESS), int(CpuExit.NON_CANONICAL)
GUEST_FAULT = 1 << 8
"""No exit: #PF for the guest, with FAULT_CAUSE."""
A, D, P, PS = x86.PT_ACCESSED, x86.PT_DIRTY, x86.PT_PRESENT, x86.PT_PAGE_SIZE
W, U = x86.PT_WRITABLE, x86.PT_USER
ADDR, ADDR32, OFFSET = x86.PT_ADDR_MASK, 0xFFFF_F000, 0xFFF
NX = -(1 << 63)
RSVD, PK = x86.PFERR_RSVD, x86.PFERR_PK
RSVD_2M, RSVD_PAE = 0x1FE000, 0x7FF << 52
GUEST_CHECKS = x86.CR4_SMEP | x86.CR4_SMAP


@inline
def nested(box, gpa, access):
    """Walk the nested table for one access to `gpa`. pfn << 1 | may be mapped writable, or minus the exit."""
    ram, frames, has_ad = get(box, mb.RAM_BASE), get(box, mb.NR_FRAMES), get(box, mb.NESTED_AD) != 0
    table, level = get(box, mb.ROOT) >> 12, get(box, mb.ROOT_LEVEL)
    rights, nx, why, pfn, entry, at = W | U, False, -1, 0, 0, 0
    while True:
        if table >= frames:
            why = BAD_FRAME
            break
        shift = 3 + 9 * level
        at = ram + (table << 12) + (gpa >> shift & 511) * 8
        entry = ld64(at)
        if not entry & P:
            why = NOT_PRESENT
            break
        rights &= entry
        nx |= entry < 0
        if level == 1 or (level < 4 and entry & PS):
            inside = (1 << (shift - 12)) - 1
            pfn = ((entry & ADDR) >> 12 & ~inside) | (gpa >> 12 & inside)
            break
        if has_ad and access != PEEK and not entry & A:
            st64(at, entry | A)
        table = (entry & ADDR) >> 12
        level -= 1
    if why < 0:
        why = nested_refuses(rights, nx, access, pfn >= frames)
    if why >= 0:
        note_nested(box, gpa, access, level, table, why)
        return -EPT_MISCONFIG if why == BAD_FRAME else -EPT_VIOLATION
    bits = A | D if access == WRITE else A
    if has_ad and access != PEEK and entry & bits != bits:
        st64(at, entry | bits)
    return pfn << 1 | (1 if rights & W and (access == WRITE or entry & D or not has_ad) else 0)


@inline
def nested_refuses(rights, nx, access, is_bad):
    """-1 if the nested table allows the access, else why not. A bad entry comes first, as a misconfiguration does."""
    if is_bad:
        return BAD_FRAME
    if not rights & U:
        return NO_USER
    if access == FETCH and nx:
        return NO_EXEC
    return NO_WRITE if access == WRITE and not rights & W else -1


@inline
def note_nested(box, gpa, access, level, table, why):
    """The nested walk has failed: what the exit will tell."""
    if access != PEEK:
        put(box, mb.EXIT_GPA, gpa)
        put(box, mb.EXIT_ACCESS, access)
        put(box, mb.EXIT_LEVEL, level)
        put(box, mb.EXIT_TABLE, table)
        put(box, mb.EXIT_WHY, why)


@inline
def note_mode(box, env, cr3, access):
    """Let the checks that both kinds of walk share know the guest's mode, and refuse a CR3 with reserved bits."""
    if access != PEEK:
        if cr3 & get(box, mb.CR3_RESERVED):
            call1(get(box, mb.FN_OTHER_ROOT), box)
        put(box, mb.EXIT_FINAL, 0)
        cr0, cr4 = ld64(env + lay.ENV_CR), ld64(env + lay.ENV_CR + 32)
        has_keys = ld64(env + lay.ENV_EFER) & x86.EFER_LMA
        put(box, mb.KEY_CR0, cr0)
        put(box, mb.KEY_CR3, cr3)
        put(box, mb.CHECKS, cr4 & (GUEST_CHECKS | (x86.CR4_PKE if has_keys else 0)))


@inline
def first_table(box, env, cr3, cr4, va, access):
    """(gpa of the guest's topmost table, its level, log2 of an entry's size, reserved bits); else level 0 and minus
    what comes of the access."""
    efer = ld64(env + lay.ENV_EFER)
    rsvd = get(box, mb.RSVD_ADDR) | (0 if efer & x86.EFER_NX else NX)
    table, level, width = cr3 & ADDR, 0, 3
    if efer & x86.EFER_LMA:
        level = 5 if cr4 & x86.CR4_LA57 else 4
        if not is_canonical(va, level):
            table, level = -NON_CANONICAL, 0
    elif not cr4 & x86.CR4_PAE:
        table, level, width, rsvd = cr3 & ADDR32, 2, 2, 0
    elif access != PEEK and cr3 != get(box, mb.PDPTRS_CR3):
        table = -CR_ACCESS
    else:
        pointer = get(box, mb.PDPTRS + (va >> 30 & 3))
        table, level, rsvd = pointer & ADDR, 2, rsvd | RSVD_PAE
        if not pointer & P:
            note_cause(box, 0, access)
            table, level = -GUEST_FAULT, 0
    return table, level, width, rsvd


@inline
def note_cause(box, cause, access):
    """The guest's tables refuse: P, RSVD and PK of the error code."""
    if access != PEEK:
        put(box, mb.FAULT_CAUSE, cause)


@inline
def is_reserved(box, entry, level, width, rsvd, is_large):
    """Has an entry of `level` bits set that must be clear? `is_large`: it maps a page though it is not of level 1."""
    if is_large and width == 2:
        rsvd = get(box, mb.RSVD_4M)
    elif is_large:
        rsvd |= RSVD_2M if level == 2 else (get(box, mb.RSVD_1G) if level == 3 else PS)
    return entry & rsvd != 0


@inline
def page_gpa(entry, va, size, width):
    """Where the page of `size` bytes that a leaf maps has the byte of `va`. 4 MiB pages have 40 bits (PSE-36)."""
    base = entry & ADDR & -size
    if width == 2 and size > 4096:
        base = (entry >> 13 & 0xFF) << 32 | entry & -size & LOW32
    return base | va & size - 1


@inline
def mark_guest(box, top, level, access):
    """Set A in the guest's entries from `top` to the leaf's `level`, and D in the leaf of a write, but in what is
    declared ROM. Each is a nested write. 0, or minus the exit."""
    for each in range(top, level - 1, -1):
        at = get(box, mb.TABLE_AT + each)
        bits = A | D if each == level and access == WRITE else A
        entry = ld32(at)
        gpa = get(box, mb.TABLE_GPA + each)
        if entry & bits != bits and (gpa < get(box, mb.ROM_START) or gpa >= get(box, mb.ROM_END)):
            found = nested(box, gpa, rights_of.WRITE)
            if found < 0:
                return found
            st32(at, entry | bits)
    return 0


@inline
def allowed(box, entry, rights, nx, access, idx):
    """(rights that the protection key leaves, 0 or the cause of the guest's fault) (kvm/mmu.h, permission_fault)."""
    cause = 0
    if idx != lay.MMU_USER_IDX and not get(box, mb.KEY_CR0) & x86.CR0_WP:
        rights |= W
    if why_refused(box, rights, nx, access, idx) >= 0:
        cause = P
    if rights & U and access != FETCH and get(box, mb.CHECKS) & x86.CR4_PKE:
        by_key = key_rights(box, entry, idx)
        if not by_key & (W if access == WRITE else P):
            cause = P | PK
        rights &= by_key
    return rights, cause


@inline
def guest_walk(box, env, cr3, va, access, idx):
    """Walk the guest's tables and mark in them. gpa << 1 | may be mapped writable, or minus what comes of it."""
    cr4, mask, ram = ld64(env + lay.ENV_CR + 32), get(box, mb.GPA_MASK), get(box, mb.RAM_BASE)
    table, top, width, rsvd = first_table(box, env, cr3, cr4, va, access)
    if top == 0:
        return table
    rights, nx, accessed, level, cause = W | U, False, A, top, 0
    while True:
        shift = 12 + (12 - width) * (level - 1)
        gpa = (table | (va >> shift & (4096 >> width) - 1) << width) & mask
        found = nested(box, gpa, min(access, READ))
        if found < 0:
            return found
        at = ram + ((found >> 1) << 12) + (gpa & OFFSET)
        put(box, mb.TABLE_AT + level, at)
        put(box, mb.TABLE_GPA + level, gpa)
        entry = ld64(at) if width == 3 else ld32(at)
        is_large = level > 1 and entry & PS != 0 and (width == 3 or cr4 & x86.CR4_PSE != 0)
        is_present = entry & P != 0
        if not is_present or is_reserved(box, entry, level, width, rsvd, is_large):
            note_cause(box, P | RSVD if is_present else 0, access)
            return -GUEST_FAULT
        rights &= entry
        nx |= entry < 0
        accessed &= entry
        if level == 1 or is_large:
            break
        table = entry & (ADDR if width == 3 else ADDR32)
        level -= 1
    page = page_gpa(entry, va, 1 << shift, width) << 1
    if access == PEEK:
        return page
    put(box, mb.GUEST_PAGE, 1 << shift)
    rights, cause = allowed(box, entry, rights, nx, access, idx)
    if cause != 0:
        note_cause(box, cause, access)
        return -GUEST_FAULT
    if accessed == 0 or (access == WRITE and not entry & D):
        found = mark_guest(box, top, level, access)
        if found < 0:
            return found
    return page | (1 if rights & W and (access == WRITE or entry & D) else 0)


@inline
def nested_walk(box, va, access, idx):
    """Walk for one access. pfn << 1 | may be mapped writable, with GUEST_PAGE; or minus the exit, or -GUEST_FAULT."""
    env = get_env(box)
    if get(box, mb.ROOT) >> 12 >= get(box, mb.NR_FRAMES):
        return -CR_ACCESS
    page = (va & LOW32) << 1 | 1
    if ld64(env + lay.ENV_CR) & x86.CR0_PG:
        cr3 = ld64(env + lay.ENV_CR + 24)
        if access == PEEK and get(box, mb.KEY_CR3) >= 0:
            cr3 = get(box, mb.KEY_CR3)
        note_mode(box, env, cr3, access)
        page = guest_walk(box, env, cr3, va, access, idx)
        if page < 0:
            return page
    elif access != PEEK:
        put(box, mb.CHECKS, 0)
        put(box, mb.GUEST_PAGE, 4096)
    if access != PEEK:
        put(box, mb.EXIT_FINAL, 1)
    found = nested(box, page >> 1 & get(box, mb.GPA_MASK), access)
    return found if found < 0 or page & 1 else found & ~1
