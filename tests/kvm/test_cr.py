from __future__ import annotations

import pytest

from shadowvm.kvm.cpuid import parse_cpu_model
from shadowvm.kvm.cr import is_valid_cr0, is_valid_cr3, is_valid_cr4, is_valid_efer
from shadowvm.x86 import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
)

MAX = parse_cpu_model("max")
OLD = parse_cpu_model("qemu64")


@pytest.mark.parametrize(
    ("value", "cr4", "efer", "cs_long", "valid"),
    [
        (CR0_PE, 0, 0, False, True),
        (CR0_PE | CR0_PG, 0, 0, False, True),
        (CR0_PG, 0, 0, False, False),
        (1 << 32 | CR0_PE, 0, 0, False, False),
        (1 << 29 | CR0_PE, 0, 0, False, False),
        (1 << 29 | 1 << 30 | CR0_PE, 0, 0, False, True),
        (CR0_PE | CR0_PG, 0, EFER_LME, False, False),
        (CR0_PE | CR0_PG, CR4_PAE, EFER_LME, False, True),
        (CR0_PE | CR0_PG, CR4_PAE, EFER_LME, True, False),
        (CR0_PE, CR4_PAE, EFER_LME | EFER_LMA, True, False),
        (CR0_PE, CR4_PAE, EFER_LME | EFER_LMA, False, True),
    ],
)
def test_cr0(value: int, cr4: int, efer: int, cs_long: bool, valid: bool) -> None:
    assert is_valid_cr0(value, cr4=cr4, efer=efer, cs_long=cs_long) is valid


@pytest.mark.parametrize(
    ("model", "value", "old", "efer", "valid"),
    [
        (MAX, CR4_PAE | CR4_PGE | CR4_SMEP, 0, 0, True),
        (OLD, CR4_PAE | CR4_SMEP, 0, 0, False),
        (MAX, 1 << 17, 0, 0, False),
        (MAX, 1 << 63, 0, 0, False),
        (MAX, CR4_PGE, CR4_PAE, EFER_LMA, False),
        (MAX, CR4_PAE | CR4_LA57, CR4_PAE, EFER_LMA, False),
        (MAX, CR4_PAE | CR4_LA57, CR4_PAE, 0, True),
        (OLD, CR4_PAE | CR4_LA57, CR4_PAE, 0, False),
    ],
)
def test_cr4(model: object, value: int, old: int, efer: int, valid: bool) -> None:
    assert is_valid_cr4(value, model=model, old=old, efer=efer) is valid  # type: ignore[arg-type]


def test_cr3_reserves_addresses_that_the_cpu_lacks_in_long_mode_only() -> None:
    assert is_valid_cr3(0xFF_FFFF_F018, efer=EFER_LMA)
    assert not is_valid_cr3(1 << 40, efer=EFER_LMA)
    assert not is_valid_cr3(1 << 63, efer=EFER_LMA)
    assert is_valid_cr3(1 << 40, efer=0)


def test_efer() -> None:
    assert is_valid_efer(EFER_SCE | EFER_LME | EFER_NX, model=MAX, old=0, cr0=CR0_PE)
    assert not is_valid_efer(EFER_NX, model=parse_cpu_model("max,-nx"), old=0, cr0=CR0_PE)
    assert not is_valid_efer(1 << 12, model=MAX, old=0, cr0=CR0_PE)
    assert not is_valid_efer(EFER_LME, model=MAX, old=0, cr0=CR0_PE | CR0_PG)
    assert is_valid_efer(EFER_LME | EFER_NX, model=MAX, old=EFER_LME | EFER_LMA, cr0=CR0_PE | CR0_PG)


@pytest.mark.parametrize(
    ("feature", "bit"),
    [("tsc", 2), ("de", 3), ("pse", 4), ("pae", 5), ("mce", 6), ("pge", 7), ("fxsr", 9), ("sse", 10), ("pku", 22)],
)
def test_a_bit_of_cr4_is_reserved_without_its_feature(feature: str, bit: int) -> None:
    assert is_valid_cr4(1 << bit, model=MAX, old=0, efer=0)
    assert not is_valid_cr4(1 << bit, model=parse_cpu_model(f"max,-{feature}"), old=0, efer=0)
