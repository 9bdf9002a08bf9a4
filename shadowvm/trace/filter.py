"""Event filters as ftrace writes them: `gfn == 0x123 && (error_code & 2 || vcpu_id != 0)` (trace/events.rst).

Operators: == != < <= > >= & (some bit is set), ~ (a string matches a glob), ! && || and parentheses; a field alone
is true if it is not 0. A field that is a structure has its members behind a dot: `range.start`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeAlias

from ..errors import ConfigError
from ..events import REGISTRY, Tracepoint

Test: TypeAlias = "Callable[[tuple[Any, ...]], bool]"

_TOKEN = re.compile(r"\s*(?:(\|\||&&|==|!=|<=|>=|[()<>&~!])|\"([^\"]*)\"|([\w.*?$:-]+))")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": operator.and_,
    "~": lambda value, glob: fnmatchcase(str(value), glob),
}


def find_tracepoint(name: str) -> Tracepoint:
    """By name, with or without its system (`kvm:kvm_exit`). ConfigError: there is none."""
    system, _, short = name.rpartition(":")
    tracepoint = REGISTRY.get(short)
    if tracepoint is None or system not in ("", tracepoint.system):
        near = [each for each in REGISTRY if short and short in each]
        hint = f" (there are {', '.join(near[:6])})" if near else ""
        raise ConfigError(f"no tracepoint '{name}'{hint}")
    return tracepoint


@cache
def compile_filter(name: str, text: str) -> Test:
    """Whether the arguments of a hit of tracepoint `name` are what the filter asks for; an empty one takes all.

    Raises:
        ConfigError: no such tracepoint or field, or no filter.
    """
    tracepoint = find_tracepoint(name)
    if not text.strip():
        return lambda _args: True
    parser = _Parser(tracepoint, text)
    test = parser.parse_or()
    if parser.tokens:
        raise ConfigError(f"filter '{text}': '{parser.tokens[0][1]}' is too much")
    return test


class _Parser:
    """Recursive descent over tokens (kind, text), kind being op, string or word."""

    def __init__(self, tracepoint: Tracepoint, text: str) -> None:
        self.tracepoint = tracepoint
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ConfigError(f"filter '{self.text}': '{text[at:].strip()}' cannot be read")
            kind = ("op", "string", "word")[match.lastindex - 1 if match.lastindex else 0]
            self.tokens.append((kind, match[match.lastindex or 1]))
            at = match.end()

    def take(self, *ops: str) -> str:
        """The next token if it is one of these operators, else nothing."""
        if self.tokens and self.tokens[0][0] == "op" and self.tokens[0][1] in ops:
            return self.tokens.pop(0)[1]
        return ""

    def parse_or(self) -> Test:
        tests = [self.parse_and()]
        while self.take("||"):
            tests.append(self.parse_and())
        return tests[0] if len(tests) == 1 else lambda args: any(test(args) for test in tests)

    def parse_and(self) -> Test:
        tests = [self.parse_not()]
        while self.take("&&"):
            tests.append(self.parse_not())
        return tests[0] if len(tests) == 1 else lambda args: all(test(args) for test in tests)

    def parse_not(self) -> Test:
        if self.take("!"):
            test = self.parse_not()
            return lambda args: not test(args)
        if self.take("("):
            inner = self.parse_or()
            if not self.take(")"):
                raise ConfigError(f"filter '{self.text}': a ) is missing")
            return inner
        return self.parse_comparison()

    def parse_comparison(self) -> Test:
        value_of = self.field()
        op = self.take(*_COMPARE)
        if not op:
            return lambda args: bool(value_of(args))
        compare, wanted = _COMPARE[op], self.value(op)
        if isinstance(wanted, str) and op not in ("~",):
            return lambda args: bool(compare(str(value_of(args)), wanted))
        return lambda args: bool(compare(value_of(args), wanted))

    def field(self) -> Callable[[tuple[Any, ...]], Any]:
        kind, text = self.tokens.pop(0) if self.tokens else ("", "")
        name, *members = text.split(".")
        fields: Sequence[str] = self.tracepoint.fields
        if kind != "word" or name not in fields:
            raise ConfigError(
                f"filter '{self.text}': '{text}' is no field of {self.tracepoint.name} ({', '.join(fields)})"
            )
        index = fields.index(name)
        if not members:
            return lambda args: args[index]
        return lambda args: _member(args[index], members)

    def value(self, op: str) -> int | str:
        kind, text = self.tokens.pop(0) if self.tokens else ("", "")
        if kind == "string" or (kind == "word" and op == "~"):
            return text
        if kind != "word":
            raise ConfigError(f"filter '{self.text}': a value is missing after {op}")
        try:
            return int(text, 0)
        except ValueError:
            if op in ("<", "<=", ">", ">=", "&"):
                raise ConfigError(f"filter '{self.text}': '{text}' is no number") from None
            return text


def _member(value: Any, members: Sequence[str]) -> Any:
    for member in members:
        value = getattr(value, member, 0) if not member.startswith("_") else 0
    return value
