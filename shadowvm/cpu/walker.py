"""The page walk in plain Python: what native/walker.py does, for tests and for looking at a guest from outside."""

from __future__ import annotations

from typing import NamedTuple

from .. import x86
from ..addr import PAGE_SHIFT, Pfn
from ..phys import Ram
from .engine import FETCH, READ, WRITE, WalkFault

KSMAP, USER, KNOSMAP = range(3)
"""Unicorn's mmu_idx: supervisor with SMAP in force, explicit user access, supervisor without."""
PAE_LEVEL = 3


class Walked(NamedTuple):
    """A walk that got through: the 4 KiB frame, and whether a TLB entry for it may allow stores."""

    pfn: Pfn
    writable: bool


class Refused(NamedTuple):
    """A walk that failed at `level`."""

    level: int
    why: WalkFault


class Checks(NamedTuple):
    """What the CPU checks beside the tables; `pkru` is None if protection keys are off."""

    smep: bool = False
    smap: bool = True
    pkru: int | None = None
    wp: bool = True


def why_refused(rights: int, nx: bool, access: int, mmu_idx: int, checks: Checks) -> WalkFault | None:
    """None if the rights that all levels leave allow the access, else why not."""
    if access == FETCH:
        if nx:
            return WalkFault.NX
        if mmu_idx == USER:
            return None if rights & x86.PT_USER else WalkFault.USER
        return WalkFault.SMEP if checks.smep and rights & x86.PT_USER else None
    if mmu_idx == USER and not rights & x86.PT_USER:
        return WalkFault.USER
    if mmu_idx == KSMAP and checks.smap and rights & x86.PT_USER:
        return WalkFault.SMAP
    return WalkFault.WRITE if access == WRITE and not rights & x86.PT_WRITABLE else None


def key_allows(entry: int, mmu_idx: int, checks: Checks) -> tuple[bool, bool]:
    """Whether the protection key of a user page's leaf allows (reads, writes)."""
    pkru = (checks.pkru or 0) >> 2 * (entry >> 59 & 15)
    readable = not pkru & 1
    return readable, readable and not (pkru & 2 and (mmu_idx == USER or checks.wp))


def walk(
    ram: Ram,
    root: int,
    va: int,
    access: int = READ,
    mmu_idx: int = KNOSMAP,
    *,
    level: int = 4,
    checks: Checks = Checks(),  # noqa: B008  immutable
    mark: bool = True,
) -> Walked | Refused:
    """Walk the table of `level` levels at hpa `root` for one access; sets A and D bits if `mark` and it succeeds."""
    if level == PAE_LEVEL:
        va &= 0xFFFF_FFFF
    table, rights, nx = root >> PAGE_SHIFT, x86.PT_WRITABLE | x86.PT_USER, False
    path: list[int] = []
    while True:
        if table >= ram.nr_frames:
            return Refused(level, WalkFault.BAD_FRAME)
        at = table * 512 + x86.pt_index(va, level)
        entry = ram.q[at]
        if not entry & x86.PT_PRESENT:
            return Refused(level, WalkFault.NOT_PRESENT)
        path.append(at)
        rights &= entry
        nx |= bool(entry & x86.PT_NX)
        if level == 1 or (level < 4 and entry & x86.PT_PAGE_SIZE):
            break
        table = (entry & x86.PT_ADDR_MASK) >> PAGE_SHIFT
        level -= 1
    inside = (1 << 9 * (level - 1)) - 1
    pfn = (entry & x86.PT_ADDR_MASK) >> PAGE_SHIFT & ~inside | va >> PAGE_SHIFT & inside
    why = why_refused(rights, nx, access, mmu_idx, checks)
    writable = bool(rights & x86.PT_WRITABLE)
    if rights & x86.PT_USER and access != FETCH:
        may_read, may_write = key_allows(entry, mmu_idx, checks)
        writable &= may_write
        if not (may_write if access == WRITE else may_read):
            why = WalkFault.PK
    if why is None and pfn >= ram.nr_frames:
        why = WalkFault.BAD_FRAME
    if why is not None:
        return Refused(level, why)
    if mark:
        for at in path:
            ram.q[at] |= x86.PT_ACCESSED
        if access == WRITE:
            ram.q[at] |= x86.PT_DIRTY
    dirty = access == WRITE or bool(entry & x86.PT_DIRTY)
    return Walked(Pfn(pfn), writable and dirty)
