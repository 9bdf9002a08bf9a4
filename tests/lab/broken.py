"""Broken copies of shadowvm's functions for one test: shadowvm.lab.mutate's, put in place by pytest's patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shadowvm.lab.mutate.patch import Edit as Change
from shadowvm.lab.mutate.patch import edited, uses

Edit = tuple[Callable[..., Any], str, str]
"""(function, the only occurrence of this in its source, what stands there instead)."""


def break_functions(patch: pytest.MonkeyPatch, edits: list[Edit]) -> None:
    """Apply the edits and put the results wherever shadowvm uses the functions."""
    for function, other in edited([Change(*edit) for edit in edits]):
        replace_function(patch, function, other)


def replace_function(patch: pytest.MonkeyPatch, function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Put `other` wherever shadowvm's modules, classes and tables have `function`."""
    attributes, items = uses(function)
    for holder, name in attributes:
        patch.setattr(holder, name, other)
    for table, key in items:
        patch.setitem(table, key, other)
