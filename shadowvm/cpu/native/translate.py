"""Reads guest code through the current root without touching the TLB or marking anything."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

from ... import x86
from .. import mailbox as mb
from .memory import call2, call4, get, inline, ld8, ld64

P, PS, ADDR = x86.PT_PRESENT, x86.PT_PAGE_SIZE, x86.PT_ADDR_MASK
HALF4, HALF5 = 1 << 47, 1 << 56
LOW32 = 0xFFFF_FFFF
PAE_LEVEL = 3
PEEK = -1
"""An access that only looks, for nested.py: no rights are checked, nothing is marked or noted."""


@inline
def is_canonical(va, level):
    """Can an address be translated in long mode with a root of 4 or 5 levels?"""
    half = HALF4 if level == 4 else HALF5
    return -half <= va < half


@inline
def translate(box, va):
    """Host physical address of `va` by the current root whatever the rights, or -1. Marks nothing."""
    level = get(box, mb.ROOT_LEVEL)
    if get(box, mb.NESTED) != 0:
        found = call4(get(box, mb.FN_NESTED_WALK), box, va, PEEK, 0)
        return found if found < 0 else (found >> 1) << 12 | va & 4095
    if level == PAE_LEVEL:
        va &= LOW32
    elif not is_canonical(va, level):
        return -1
    table = get(box, mb.ROOT) >> 12
    while True:
        if table >= get(box, mb.NR_FRAMES):
            return -1
        shift = 3 + 9 * level
        entry = ld64(get(box, mb.RAM_BASE) + (table << 12) + (va >> shift & 511) * 8)
        if not entry & P:
            return -1
        if level == 1 or (level < 4 and entry & PS):
            inside = (1 << shift) - 1
            hpa = (entry & ADDR & ~inside) | (va & inside)
            return hpa if hpa >> 12 < get(box, mb.NR_FRAMES) else -1
        table = (entry & ADDR) >> 12
        level -= 1


@inline
def read_code(box, va):
    """A byte of guest code without touching the TLB, or -1."""
    hpa = translate(box, va)
    return -1 if hpa < 0 else ld8(get(box, mb.RAM_BASE) + hpa)


@inline
def code_byte(box, va):
    """`read_code` by a call: so many ask for bytes that inlining it took half of the time to compile."""
    return call2(get(box, mb.FN_READ_CODE), box, va)
