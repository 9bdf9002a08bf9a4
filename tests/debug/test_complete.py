"""Completion offers what the language has, and nothing else."""

from __future__ import annotations

import pytest

from shadowvm.debug.complete import common, completions

SYMBOLS = ["main", "memset", "kvm_looks_like_a_tracepoint"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("reverse-c", ["reverse-continue"]),
        ("break swap_re", ["break swap_readpage"]),
        ("break *mem", ["break *memset"]),
        ("break kvm_page_fault if err", ["break kvm_page_fault if error_code"]),
        ("x /4i mem", ["x /4i memset"]),
        ("info memsl", ["info memslots"]),
        ("i vm", ["i vma"]),
        ("reverse-stepi me", ["reverse-stepi memset"]),
        ("explain fau", ["explain fault"]),
        ("help savev", ["help savevm"]),
        ("loo", ["look"]),
        ("look mai", ["look main"]),
        ("nosuch", []),
    ],
)
def test_one_way_to_go_on(line: str, found: list[str]) -> None:
    assert completions(line, SYMBOLS, ["look"]) == found


def test_all_ways_and_what_they_share() -> None:
    found = completions("break kvm_", SYMBOLS)
    assert {"break kvm_page_fault", "break kvm_looks_like_a_tracepoint"} <= set(found)
    assert common(found) == "break kvm_"
    assert common(completions("reverse-", SYMBOLS)) == "reverse-"
    assert common([]) == ""
