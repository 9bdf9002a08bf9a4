"""The two-dimensional page walk in plain Python: what native/nested.py does, for tests and for looking from outside.

The guest's tables are walked by its own registers; each guest-physical address goes through the nested table.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import x86
from ..addr import PAGE_SHIFT, PAGE_SIZE, Gpa, Pfn
from ..phys import Ram
from .engine import FETCH, READ, WRITE, WalkFault
from .walker import USER, Checks, key_allows, why_refused

A, D, P, W, U = x86.PT_ACCESSED, x86.PT_DIRTY, x86.PT_PRESENT, x86.PT_WRITABLE, x86.PT_USER
ADDR, LARGE = x86.PT_ADDR_MASK, x86.PT_PAGE_SIZE
LOW32, FRAME32, MASK64, SIGN = 0xFFFF_FFFF, 0xFFFF_F000, (1 << 64) - 1, 1 << 63


class GuestPaging(NamedTuple):
    """What the walk of the guest's tables goes by: registers, PAE pointers, the CPU model, the A20 gate, and where the
    tables stay unmarked."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int = 0
    pdptrs: tuple[int, ...] = (0, 0, 0, 0)
    maxphyaddr: int = 40
    gigabyte: bool = True
    pse36: bool = True
    gpa_mask: int = -1
    rom: tuple[int, int] = (0, 0)

    @property
    def long_mode(self) -> bool:
        return bool(self.efer & x86.EFER_LMA)

    @property
    def width(self) -> int:
        """Bytes of a table's entry."""
        return 8 if self.cr4 & x86.CR4_PAE else 4

    @property
    def levels(self) -> tuple[int, ...]:
        """Of the tables that are walked, topmost first; the PAE pointers are no table."""
        if not self.long_mode:
            return 2, 1
        return (5, 4, 3, 2, 1) if self.cr4 & x86.CR4_LA57 else (4, 3, 2, 1)

    def shift(self, level: int) -> int:
        """How many bits of an address an entry of `level` leaves."""
        return 12 + (level - 1) * (9 if self.width == 8 else 10)

    def checks(self) -> Checks:
        pkru = self.pkru if self.cr4 & x86.CR4_PKE and self.long_mode else None
        smep, smap = bool(self.cr4 & x86.CR4_SMEP), bool(self.cr4 & x86.CR4_SMAP)
        return Checks(smep, smap, pkru, bool(self.cr0 & x86.CR0_WP))


class Mapped(NamedTuple):
    """A walk that got through; `size`: of the guest's page."""

    pfn: Pfn
    writable: bool
    size: int


class GuestFault(NamedTuple):
    """#PF for the guest: P, RSVD and PK of the error code."""

    cause: int


class NestedFault(NamedTuple):
    """The nested table refuses an access to `gpa`; `final`: of the page itself."""

    gpa: Gpa
    access: int
    final: bool
    level: int
    why: WalkFault


class NonCanonical(NamedTuple):
    """The address cannot be translated."""


class Entry(NamedTuple):
    """One entry that the guest's walk uses: where it is for the guest and in host RAM."""

    level: int
    gpa: Gpa
    hpa: int


class NestedTable:
    """The hypervisor's table of `level` levels at hpa `root`. `mark`: walks set A and D bits, in guest tables too."""

    def __init__(self, ram: Ram, root: int, level: int = 4, *, has_ad: bool = True, mark: bool = True) -> None:
        self.ram, self.root, self.level, self.has_ad, self.mark = ram, root, level, has_ad, mark

    def walk(self, gpa: Gpa, access: int, *, final: bool) -> tuple[Pfn, bool] | NestedFault:
        """(frame, whether it may be mapped writable) for one access."""
        q, table, rights, nx = self.ram.q, self.root >> PAGE_SHIFT, W | U, False
        for level in range(self.level, 0, -1):
            if table >= self.ram.nr_frames:
                return NestedFault(gpa, access, final, level, WalkFault.BAD_FRAME)
            at = table * 512 + x86.pt_index(gpa, level)
            entry = q[at]
            if not entry & P:
                return NestedFault(gpa, access, final, level, WalkFault.NOT_PRESENT)
            rights, nx = rights & entry, nx or bool(entry & x86.PT_NX)
            table = (entry & ADDR) >> PAGE_SHIFT
            if level == 1 or (level < 4 and entry & LARGE):
                break
            self._set(at, A)
        inside = (1 << 9 * (level - 1)) - 1
        pfn = Pfn(table & ~inside | gpa >> PAGE_SHIFT & inside)
        why = self._why(pfn, rights, nx, access)
        if why is not None:
            return NestedFault(gpa, access, final, level, why)
        self._set(at, A | D if access == WRITE else A)
        dirty = access == WRITE or bool(entry & D) or not self.has_ad
        return pfn, bool(rights & W) and dirty

    def _why(self, pfn: Pfn, rights: int, nx: bool, access: int) -> WalkFault | None:
        if pfn >= self.ram.nr_frames:
            return WalkFault.BAD_FRAME
        if not rights & U:
            return WalkFault.USER
        if access == FETCH and nx:
            return WalkFault.NX
        return WalkFault.WRITE if access == WRITE and not rights & W else None

    def _set(self, at: int, bits: int) -> None:
        if self.has_ad and self.mark:
            self.ram.q[at] |= bits


def walk(
    nested: NestedTable, guest: GuestPaging, va: int, access: int = READ, mmu_idx: int = 0
) -> Mapped | GuestFault | NestedFault | NonCanonical:
    """Walk for one access, by mmu_idx (walker.py). Without nested.mark nothing changes, and no rights are checked."""
    size, writable, gpa = PAGE_SIZE, True, Gpa(va & LOW32)
    if guest.cr0 & x86.CR0_PG:
        found = _guest_walk(nested, guest, va & (MASK64 if guest.long_mode else LOW32), access, mmu_idx)
        if not isinstance(found, _Page):
            return found
        gpa, writable, size = found
    gpa = Gpa(gpa & guest.gpa_mask)
    final = nested.walk(gpa, access, final=True)
    return final if isinstance(final, NestedFault) else Mapped(final[0], final[1] and writable, size)


class _Page(NamedTuple):
    gpa: Gpa
    writable: bool
    size: int


def _guest_walk(
    nested: NestedTable, guest: GuestPaging, va: int, access: int, mmu_idx: int
) -> _Page | GuestFault | NestedFault | NonCanonical:
    half = 1 << guest.shift(guest.levels[0] + 1) - 1
    if guest.long_mode and not -half <= (va ^ SIGN) - SIGN < half:
        return NonCanonical()
    table = _first_table(guest, va)
    if table is None:
        return GuestFault(0)
    rights, nx, used = W | U, False, list[Entry]()
    for level in guest.levels:
        gpa = Gpa((table | (va >> guest.shift(level) & PAGE_SIZE // guest.width - 1) * guest.width) & guest.gpa_mask)
        found = nested.walk(gpa, READ, final=False)
        if isinstance(found, NestedFault):
            return found
        hpa = found[0] << PAGE_SHIFT | gpa & PAGE_SIZE - 1
        value = int.from_bytes(nested.ram.b[hpa : hpa + guest.width], "little")
        used.append(Entry(level, gpa, hpa))
        large = level > 1 and bool(value & LARGE) and bool(guest.width == 8 or guest.cr4 & x86.CR4_PSE)
        if not value & P:
            return GuestFault(0)
        if value & _reserved(guest, level, large=large):
            return GuestFault(x86.PFERR_PRESENT | x86.PFERR_RSVD)
        rights, nx = rights & value, nx or bool(value & x86.PT_NX)
        if large:
            break
        table = value & (ADDR if guest.width == 8 else FRAME32)
    page = _page(guest, value, va, level)
    if not nested.mark:
        return page
    allowed = _allowed(guest, value, rights, nx, access, mmu_idx)
    if isinstance(allowed, GuestFault):
        return allowed
    failed = _mark(nested, guest, used, access)
    if failed is not None:
        return failed
    return page._replace(writable=allowed and (access == WRITE or bool(value & D)))


def _first_table(guest: GuestPaging, va: int) -> int | None:
    """Gpa of the topmost table that is walked, None if the PAE pointer is absent."""
    if guest.long_mode:
        return guest.cr3 & ADDR
    if guest.width == 4:
        return guest.cr3 & FRAME32
    pointer = guest.pdptrs[va >> 30 & 3]
    return pointer & ADDR if pointer & P else None


def _reserved(guest: GuestPaging, level: int, *, large: bool) -> int:
    """Bits that must be clear in an entry of `level`; `large`: it maps a page."""
    if guest.width == 4:
        if not large:
            return 0
        return 1 << 21 if guest.pse36 else 0x3F_E000
    bits = ADDR & ~((1 << guest.maxphyaddr) - 1)
    bits |= 0 if guest.efer & x86.EFER_NX else x86.PT_NX
    bits |= 0 if guest.long_mode else 0x7FF << 52
    if large and (level > 3 or (level == 3 and not guest.gigabyte)):
        return bits | LARGE
    return bits | ((1 << guest.shift(level)) - 1 & ~0x1FFF if large else 0)


def _page(guest: GuestPaging, value: int, va: int, level: int) -> _Page:
    size = 1 << guest.shift(level)
    base = value & ADDR & -size
    if guest.width == 4 and level == 2:
        base |= (value >> 13 & 0xFF) << 32
    return _Page(Gpa(base | va & size - 1), False, size)


def _allowed(guest: GuestPaging, value: int, rights: int, nx: bool, access: int, mmu_idx: int) -> bool | GuestFault:
    """Whether stores are allowed, if the access is. The key's refusal is told beside any other."""
    checks = guest.checks()
    if mmu_idx != USER and not checks.wp:
        rights |= W
    may_read = may_write = True
    if rights & U and access != FETCH:
        may_read, may_write = key_allows(value, mmu_idx, checks)
    if not (may_write if access == WRITE else may_read):
        return GuestFault(x86.PFERR_PRESENT | x86.PFERR_PK)
    if why_refused(rights, nx, access, mmu_idx, checks) is not None:
        return GuestFault(x86.PFERR_PRESENT)
    return bool(rights & W) and may_write


def _mark(nested: NestedTable, guest: GuestPaging, used: list[Entry], access: int) -> NestedFault | None:
    """Set A in the entries used and D in the leaf of a write, but in ROM; each is a nested write."""
    for entry in used:
        bits = A | D if entry is used[-1] and access == WRITE else A
        low = nested.ram.b[entry.hpa]
        if low & bits != bits and not guest.rom[0] <= entry.gpa < guest.rom[1]:
            found = nested.walk(entry.gpa, WRITE, final=False)
            if isinstance(found, NestedFault):
                return found
            nested.ram.b[entry.hpa] = low | bits
    return None
