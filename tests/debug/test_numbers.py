"""Expressions are C's."""

from __future__ import annotations

import pytest

from shadowvm.debug.numbers import MASK, evaluate
from shadowvm.errors import ConfigError

NAMES = {"rip": 0x1000, "main": 0x2000, "$rip": 0x1000, "a.b@c": 7}


def lookup(name: str) -> int:
    if name not in NAMES:
        raise ConfigError(f"'{name}' is nothing")
    return NAMES[name]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("0x10 + 010", 24),
        ("$rip+main-8", 0x2FF8),
        ("1 + 2 * 3 << 1 & 0xff | 1 ^ 3", 14 | 1 ^ 3),
        ("-(2 - 5) * ~-8", 21),
        ("7/2%2", 1),
        ("-1", MASK),
        ("0x1fff & ~0xfff", 0x1000),
        ("1 << 64", 0),
        ("a.b@c", 7),
    ],
)
def test_values(text: str, value: int) -> None:
    assert evaluate(text, lookup) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a number is missing"),
        ("1 +", "ends too soon"),
        ("* 2", "a number is missing before"),
        ("(1", r"a '\)' is missing"),
        ("1 2", "'2' is too much"),
        ("5 / (1-1)", "divides by 0"),
        ("nosuch", "'nosuch' is nothing"),
        ("1x", "'1x' is no number"),
        ("9" * 30, "does not fit"),
        ("9" * 1999, "is no number|does not fit"),
        ("(" * 900 + ")" * 900, "within each other"),
        ("-" * 1000 + "1", "within each other"),
        ("1" * 3000, "too long"),
        ("1 ; 2", "is no number"),
        ("²", "is no number|is nothing"),
    ],
)
def test_what_is_no_number_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        evaluate(text, lookup)
    assert len(str(refusal.value)) < 2200
    assert "\n" not in str(refusal.value)
