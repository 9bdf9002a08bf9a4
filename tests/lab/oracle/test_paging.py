"""The oracle's own reading of page tables, against what the manual says of single entries and accesses."""

from __future__ import annotations

import pytest

from shadowvm.lab.oracle.layout import LA57, LARGE, NONPAGING, NX, PAE, PRESENT, PT32, PT64, USER, WRITABLE
from shadowvm.lab.oracle.paging import FETCH, READ, WRITE, Access, Control, decode, entry_place, error_code, refused

SUPERVISOR_WRITE, USER_READ, USER_WRITE = Access(WRITE, 0, False), Access(READ, 3, False), Access(WRITE, 3, False)


def control(mode: int = PT64, **bits: bool | int) -> Control:
    made = Control()
    made.mode = mode
    for name, value in bits.items():
        setattr(made, name, value)
    return made


def test_an_address_is_cut_into_indices() -> None:
    va = 5 << 39 | 6 << 30 | 7 << 21 | 8 << 12
    assert [entry_place(PT64, level, va)[0] for level in (4, 3, 2, 1)] == [5, 6, 7, 8]
    assert entry_place(PT32, 2, 0x00C0_0000) == (1, 32)
    assert entry_place(PT32, 1, 0x0000_4000) == (2, 0)


@pytest.mark.parametrize(
    ("mode", "level", "value", "bad"),
    [
        (PT64, 1, PRESENT | 1 << 40, True),
        (PT64, 1, PRESENT | 1 << 52, False),
        (PAE, 1, PRESENT | 1 << 52, True),
        (PT64, 4, PRESENT | LARGE, True),
        (LA57, 5, PRESENT | LARGE, True),
        (PT64, 3, PRESENT | LARGE | 1 << 29, True),
        (PT64, 3, PRESENT | LARGE | 1 << 30, False),
        (PT64, 2, PRESENT | LARGE | 1 << 13, True),
        (PT64, 2, PRESENT | LARGE | 1 << 12, False),
        (PT64, 1, PRESENT | LARGE, False),
        (PT32, 2, PRESENT | LARGE | 1 << 21, True),
        (PT32, 2, PRESENT | LARGE | 1 << 13, False),
    ],
)
def test_reserved_bits(mode: int, level: int, value: int, bad: bool) -> None:
    assert decode(control(mode), level, value).bad is bad


def test_nx_is_reserved_until_it_is_enabled() -> None:
    assert decode(control(nxe=False), 1, PRESENT | NX).bad
    assert not decode(control(nxe=True), 1, PRESENT | NX).bad


def test_large_pages() -> None:
    assert decode(control(), 2, PRESENT | LARGE | 0x40_0000)[2:4] == (0x400, 21)
    assert decode(control(), 3, PRESENT | LARGE | 0x4000_0000)[2:4] == (0x40000, 30)
    assert decode(control(PT32), 2, PRESENT | LARGE | 0x40_0000 | 1 << 13)[2:4] == (0x100400, 22)
    assert decode(control(PT32, pse=False), 2, PRESENT | LARGE | 0x40_0000)[2:4] == (0x400, 0)


@pytest.mark.parametrize(
    ("access", "rights", "bits", "error"),
    [
        (SUPERVISOR_WRITE, 0, {}, 1),
        (SUPERVISOR_WRITE, 0, {"wp": False}, 0),
        (USER_WRITE, USER, {"wp": False}, 1),
        (USER_READ, WRITABLE, {}, 1),
        (Access(READ, 0, False), USER, {"smap": True}, 1),
        (Access(READ, 0, True), USER, {"smap": True}, 0),
        (Access(FETCH, 0, True), USER, {"smep": True}, 1),
        (Access(FETCH, 0, False), USER, {"smap": True}, 0),
        (Access(FETCH, 3, False), USER | NX, {}, 1),
        (USER_READ, USER, {"pke": True, "pkru": 1 << 4}, 0x21),
        (SUPERVISOR_WRITE, USER | WRITABLE, {"pke": True, "pkru": 2 << 4}, 0x21),
        (SUPERVISOR_WRITE, USER | WRITABLE, {"pke": True, "pkru": 2 << 4, "wp": False}, 0),
        (SUPERVISOR_WRITE, WRITABLE, {"pke": True, "pkru": 3 << 4}, 0),
        (Access(FETCH, 3, False), USER, {"pke": True, "pkru": 3 << 4}, 0),
    ],
)
def test_rights(access: Access, rights: int, bits: dict[str, int], error: int) -> None:
    assert refused(control(**bits), access, rights, key=2) == error


def test_nothing_is_refused_without_paging() -> None:
    assert refused(control(NONPAGING), USER_WRITE, 0, 0) == 0


def test_error_codes_tell_a_fetch_only_with_nx_or_smep() -> None:
    fetch = Access(FETCH, 3, False)
    assert error_code(control(nxe=True), fetch, 1) == 0x15
    assert error_code(control(nxe=False), fetch, 1) == 5
    assert error_code(control(nxe=False, smep=True), fetch, 1) == 0x15
    assert error_code(control(PT32, nxe=True), fetch, 0) == 4
    assert error_code(control(), USER_WRITE, 9) == 15
