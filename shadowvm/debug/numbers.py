"""What a number in a command may be: C's literals, registers, the guest's symbols, and sums and the like of them.

EXPR = one of  | ^ & << >> + - * / %  between, - ~ + before, and parentheses, with C's precedence
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import ConfigError

MASK = (1 << 64) - 1
MAX_DEPTH = 50
MAX_LENGTH = 2000
_TOKEN = re.compile(r"\s*(?:(<<|>>|[|^&+\-*/%~()])|([$.@\w]+))")
_LEVELS: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"<<": lambda a, b: a << b if b < 64 else 0, ">>": lambda a, b: a >> min(b, 64)},
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"*": lambda a, b: a * b, "/": lambda a, b: a // b, "%": lambda a, b: a % b},
)


def evaluate(text: str, lookup: Callable[[str], int]) -> int:
    """The value of an expression, modulo 2**64. lookup: of a name; it raises ConfigError for one that means nothing.

    Raises:
        ConfigError: it is none, or divides by 0.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"an expression of {len(text)} characters is too long ({MAX_LENGTH} at most)")
    if not text.strip():
        raise ConfigError("a number is missing")
    parser = _Parser(text, lookup)
    value = parser.binary(0, 0)
    if parser.tokens:
        raise ConfigError(f"'{text.strip()}': '{parser.tokens[0]}' is too much")
    return value


class _Parser:
    """Recursive descent."""

    def __init__(self, text: str, lookup: Callable[[str], int]) -> None:
        self.text = text.strip()
        self.lookup = lookup
        self.tokens: list[str] = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise ConfigError(f"'{self.text[at:]}' is no number")
            self.tokens.append(match[1] or match[2])
            at = match.end()

    def binary(self, level: int, depth: int) -> int:
        """Operators of a level and of those that bind tighter."""
        if level == len(_LEVELS):
            return self.unary(depth)
        value = self.binary(level + 1, depth)
        while self.tokens and self.tokens[0] in _LEVELS[level]:
            operator = self.tokens.pop(0)
            right = self.binary(level + 1, depth)
            if operator in "/%" and not right:
                raise ConfigError(f"'{self.text}' divides by 0")
            value = _LEVELS[level][operator](value, right) & MASK
        return value

    def unary(self, depth: int) -> int:
        """A literal, a name or parentheses, with signs before it."""
        if depth > MAX_DEPTH:
            raise ConfigError(f"more than {MAX_DEPTH} parentheses and signs within each other")
        if not self.tokens:
            raise ConfigError(f"'{self.text}' ends too soon")
        token = self.tokens.pop(0)
        if token in "+-~":
            value = self.unary(depth + 1)
            return (value if token == "+" else -value if token == "-" else ~value) & MASK
        if token == "(":
            value = self.binary(0, depth + 1)
            if not self.tokens or self.tokens.pop(0) != ")":
                raise ConfigError(f"'{self.text}': a ')' is missing")
            return value
        if not re.match(r"[$.@\w]", token):
            raise ConfigError(f"'{self.text}': a number is missing before '{token}'")
        return literal(token) if token[0].isdigit() else self.lookup(token) & MASK


def literal(token: str) -> int:
    """As in C: 0x10, 020 and 16. ConfigError: it is none, or takes more than 64 bits."""
    octal = re.fullmatch(r"0[0-7]+", token)
    try:
        value = int(token, 8) if octal else int(token, 0)
    except ValueError:
        raise ConfigError(f"'{token[:40]}' is no number") from None
    if value > MASK:
        raise ConfigError(f"'{token[:40]}' does not fit into 64 bits")
    return value
