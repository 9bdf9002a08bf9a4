"""Changed copies of shadowvm's functions, put in the place of the originals for the length of a block.

An Edit changes one place in a function's source and compiles it into the namespace of its module; it fails at once
when the place is not there any more. A Swap puts another function in. Either takes effect wherever shadowvm's modules,
classes and tables of handlers name the function, and in nothing that was made before the block.
"""

from __future__ import annotations
import __future__

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from ...errors import ModelBug

Function = Callable[..., Any]


class Edit(NamedTuple):
    """`old`, which stands in the source of `function` exactly once, becomes `new`."""

    function: Function
    old: str
    new: str


class Swap(NamedTuple):
    """`new` is called instead of `function`."""

    function: Function
    new: Function


Change = Edit | Swap


@contextmanager
def changed(*changes: Change) -> Iterator[None]:
    """Make the changes inside the block. ModelBug: one does not fit the sources."""
    pairs = [(each.function, each.new) for each in changes if isinstance(each, Swap)]
    pairs += edited([each for each in changes if isinstance(each, Edit)])
    with ExitStack() as undo:
        for function, new in pairs:
            _replace(undo, function, new)
        yield


def edited(edits: list[Edit]) -> list[tuple[Function, Function]]:
    """(function, its changed copy) for each function that is edited, once or more."""
    sources: dict[Function, str] = {}
    for function, old, new in edits:
        try:
            source = sources.get(function) or inspect.getsource(function)
        except OSError:
            raise ModelBug(f"the source of {function.__qualname__} is not there to be changed") from None
        if source.count(old) != 1:
            raise ModelBug(f"{function.__qualname__} has {source.count(old)} times: {old}")
        sources[function] = source.replace(old, new)
    return [(function, _compile(function, source)) for function, source in sources.items()]


def _compile(function: Function, source: str) -> Function:
    assert isinstance(function, FunctionType)
    if source[0] == " ":
        source = f"if True:\n{source}"  # a method keeps its indentation
    made: dict[str, Any] = {}
    code = compile(source, f"<changed {function.__qualname__}>", "exec", __future__.annotations.compiler_flag)
    exec(code, function.__globals__, made)
    result: Function = made[function.__name__]
    return result


def _replace(undo: ExitStack, function: Function, new: Function) -> None:
    attributes, items = uses(function)
    for holder, name in attributes:
        undo.callback(setattr, holder, name, function)
        setattr(holder, name, new)
    for table, key in items:
        undo.callback(table.__setitem__, key, function)
        table[key] = new


def uses(function: Function) -> tuple[list[tuple[Any, str]], list[tuple[dict[Any, Any], Any]]]:
    """(holder, name) of each attribute and (table, key) of each item that is the function. ModelBug: there is none."""
    attributes: list[tuple[Any, str]] = []
    items: list[tuple[dict[Any, Any], Any]] = []
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "shadowvm":
            for holder in _holders(module):
                attributes += [(holder, key) for key, value in vars(holder).items() if value is function]
            for table in _tables(module):
                items += [(table, key) for key, value in table.items() if value is function]
    if not attributes and not items:
        raise ModelBug(f"nobody uses {function.__qualname__}")
    return attributes, items


def _holders(module: ModuleType) -> list[Any]:
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    return [module, *classes]


def _tables(module: ModuleType) -> list[dict[Any, Any]]:
    """Dictionaries of functions, such as the switch over exit reasons."""
    return [each for key, each in vars(module).items() if isinstance(each, dict) and not key.startswith("__")]
