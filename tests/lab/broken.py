"""Broken copies of shadowvm's functions: one place in the source changed, put in the place of the original."""

from __future__ import annotations
import __future__

import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest

Edit = tuple[Callable[..., Any], str, str]
"""(function, the only occurrence of this in its source, what stands there instead)."""


def break_functions(patch: pytest.MonkeyPatch, edits: list[Edit]) -> None:
    """Apply the edits and put the results wherever shadowvm uses the functions."""
    sources: dict[Callable[..., Any], str] = {}
    for function, old, new in edits:
        source = sources.get(function) or inspect.getsource(function)
        assert source.count(old) == 1, f"{function.__qualname__} has {source.count(old)} times: {old}"
        sources[function] = source.replace(old, new)
    for function, source in sources.items():
        replace_function(patch, function, _compile(function, source))


def _compile(function: Callable[..., Any], source: str) -> Callable[..., Any]:
    assert isinstance(function, FunctionType)
    if source[0] == " ":
        source = f"if True:\n{source}"  # a method keeps its indentation
    made: dict[str, Any] = {}
    code = compile(source, f"<broken {function.__qualname__}>", "exec", __future__.annotations.compiler_flag)
    exec(code, function.__globals__, made)
    result: Callable[..., Any] = made[function.__name__]
    return result


def replace_function(patch: pytest.MonkeyPatch, function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Put `other` wherever shadowvm's modules and classes have `function`."""
    places = 0
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "shadowvm":
            for holder in _holders(module):
                for key, value in list(vars(holder).items()):
                    if value is function:
                        patch.setattr(holder, key, other)
                        places += 1
    assert places, f"nobody uses {function.__qualname__}"


def _holders(module: ModuleType) -> list[Any]:
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    return [module, *classes]
