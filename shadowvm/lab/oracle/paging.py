"""How x86 reads page tables (SDM vol. 3, chapter 4), written for the oracle alone: entries, rights, error codes.

Nothing here knows of KVM or of the CPU underneath.
"""

from __future__ import annotations

from typing import NamedTuple

from .layout import DIRTY, LA57, LARGE, NONPAGING, NX, PAE, PRESENT, PT32, PT64, USER, WRITABLE

READ, WRITE, FETCH = range(3)
ERR_P, ERR_W, ERR_U, ERR_RSVD, ERR_F, ERR_PK = 1, 2, 4, 8, 16, 32
MAXPHYADDR = 40
_ABOVE_MAXPHYADDR = 0x000F_FFFF_FFFF_FFFF & ~((1 << MAXPHYADDR) - 1)
_PAE_HIGH = 0x7FF << 52
PDPTR_RESERVED = 0x1E6 | _ABOVE_MAXPHYADDR | _PAE_HIGH | NX
_LARGE_RESERVED = {2: 0x1FE000, 3: 0x3FFFE000, 4: LARGE, 5: LARGE}
_LEVELS = {PT32: 2, PAE: 2, PT64: 4, LA57: 5}
_KEY_SHIFT = 59


class Control:
    """The control bits of one CPU that paging depends on. pdptrs: the PAE pointers as loaded with CR3."""

    __slots__ = ("cr3", "mode", "nxe", "pdptrs", "pke", "pkru", "pse", "smap", "smep", "wp")

    def __init__(self) -> None:
        self.mode = PT64
        self.cr3 = 0
        self.wp = self.nxe = self.pse = True
        self.smep = self.smap = self.pke = False
        self.pkru = 0
        self.pdptrs: tuple[int, ...] = (0, 0, 0, 0)


class Access(NamedTuple):
    """One access: READ, WRITE or FETCH at CPL 0 or 3; `ac` is EFLAGS.AC."""

    kind: int
    cpl: int
    ac: bool


class Entry(NamedTuple):
    """What one table entry says. next: the frame it names. offset_bits: of a leaf's page, 0 for a link.

    bad: reserved bits are set. rights: WRITABLE, USER and NX as in the entry.
    """

    present: bool
    bad: bool
    next: int
    offset_bits: int
    rights: int
    key: int


def levels_of(mode: int) -> int:
    """How many levels are walked in memory."""
    return _LEVELS[mode]


def entry_place(mode: int, level: int, va: int) -> tuple[int, int]:
    """(word of the table, bit of the word) where the entry of `va` begins."""
    if mode == PT32:
        index = va >> (2 + 10 * level) & 1023
        return index >> 1, 32 * (index & 1)
    return va >> (3 + 9 * level) & 511, 0


def decode(control: Control, level: int, value: int) -> Entry:
    """Read an entry of `level`."""
    if control.mode == PT32:
        return _decode32(control, level, value)
    reserved = _ABOVE_MAXPHYADDR | (0 if control.nxe else NX) | (_PAE_HIGH if control.mode == PAE else 0)
    bits = 0
    if level == 1:
        bits = 12
    elif value & LARGE:
        bits = 3 + 9 * level
        reserved |= _LARGE_RESERVED[level]
    rights = value & (WRITABLE | USER | NX)
    frame = (value & 0x000F_FFFF_FFFF_F000) >> 12
    if bits > 12:
        frame &= -1 << bits - 12
    return Entry(bool(value & PRESENT), bool(value & reserved), frame, bits, rights, value >> _KEY_SHIFT & 15)


def _decode32(control: Control, level: int, value: int) -> Entry:
    rights = value & (WRITABLE | USER)
    if level == 2 and value & LARGE and control.pse:
        frame = (value >> 13 & 0xFF) << 20 | value >> 22 << 10
        return Entry(bool(value & PRESENT), bool(value & 1 << 21), frame, 22, rights, 0)
    return Entry(bool(value & PRESENT), False, value >> 12, 12 if level == 1 else 0, rights, 0)


def refused(control: Control, access: Access, rights: int, key: int) -> int:
    """0, or the error bits (P, PK) with which the accumulated rights refuse."""
    if control.mode == NONPAGING:
        return 0
    user_page = bool(rights & USER)
    if user_page and control.pke and access.kind != FETCH and control.mode >= PT64:
        disable = control.pkru >> 2 * key & 3
        store = access.kind == WRITE and (access.cpl == 3 or control.wp)
        if disable & 1 or (disable & 2 and store):
            return ERR_P | ERR_PK
    return 0 if _allowed(control, access, rights, user_page) else ERR_P


def _allowed(control: Control, access: Access, rights: int, user_page: bool) -> bool:
    if access.cpl == 3 and not user_page:
        return False
    if access.kind == FETCH:
        if rights & NX and control.mode >= PAE and control.nxe:
            return False
        return access.cpl == 3 or not user_page or not control.smep
    if access.cpl == 0 and user_page and control.smap and not access.ac:
        return False
    return access.kind == READ or bool(rights & WRITABLE) or (access.cpl == 0 and not control.wp)


def error_code(control: Control, access: Access, cause: int) -> int:
    """The #PF error code of an access that fails for `cause` (P, RSVD, PK)."""
    code = cause | (ERR_W if access.kind == WRITE else 0) | (ERR_U if access.cpl == 3 else 0)
    if access.kind == FETCH and (control.smep or (control.nxe and control.mode >= PAE)):
        code |= ERR_F
    return code


def needed_marks(access: Access, leaf: bool) -> int:
    """The bits, of A and D, that an access sets in an entry."""
    return 0x20 | (DIRTY if leaf and access.kind == WRITE else 0)
