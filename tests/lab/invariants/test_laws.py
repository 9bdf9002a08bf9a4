"""The list of laws, and that every law has somebody who looks after it."""

from __future__ import annotations

import ast
import inspect

import pytest

from shadowvm.errors import ConfigError
from shadowvm.lab.invariants.laws import LAWS, describe, help_text, laws_seen, parse_laws
from shadowvm.lab.invariants.laws import STATE as BY_STATE
from shadowvm.lab.invariants.rules import Rules
from shadowvm.lab.invariants.sanitizer import GROUPS
from shadowvm.lab.invariants.shadow import ShadowRules
from shadowvm.lab.invariants.tdp import TdpRules
from tests.lab.invariants.test_sanitizer import STATE

ALL_GROUPS = (ShadowRules, TdpRules, *GROUPS)


def named_in(group: type[Rules]) -> set[str]:
    """Every law that a group's class names in a string."""
    tree = ast.parse(inspect.getsource(group))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {word for word in words if word in LAWS}


@pytest.mark.parametrize("group", ALL_GROUPS)
def test_a_group_declares_what_it_fails_for(group: type[Rules]) -> None:
    assert named_in(group) == group.laws


def test_every_law_has_a_group() -> None:
    assert set().union(*(group.laws for group in ALL_GROUPS)) | {"LOCKDEP"} == set(LAWS)


def test_laws_that_the_state_shows_are_those_that_a_broken_state_breaks() -> None:
    assert {law for law, _ in STATE} == laws_seen(BY_STATE)


def test_the_list_is_in_order_of_numbers() -> None:
    numbers = [int(name[1:]) for name in LAWS if name[1:].isdigit()]
    assert numbers == sorted(numbers)
    assert all(1 <= number <= 35 for number in numbers)


def test_names_are_parsed_whatever_their_case() -> None:
    assert parse_laws("i22, I1,host-tlb") == {"I22", "I1", "HOST-TLB"}
    assert describe({"I22", "I1"}) == "I1,I22"


@pytest.mark.parametrize("text", ["", "I99", "I1,,I2", "I1;I2"])
def test_what_is_no_law_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no law"):
        parse_laws(text)


def test_help_has_a_line_for_each_law() -> None:
    assert [line.split()[0] for line in help_text().splitlines()] == list(LAWS)
