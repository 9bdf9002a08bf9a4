"""What the user has set to stop at: breaks with what gdb lets one say about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError
from .breaks import AddressBreak, FaultBreak, MemoryWatch, PointBreak, Watch

if TYPE_CHECKING:
    from .position import Stop

AnyBreak: TypeAlias = "AddressBreak | FaultBreak | MemoryWatch | PointBreak | Watch"


@dataclass(slots=True)
class Breakpoint:
    """what: the break that the machine gets. temporary: it goes when it is hit. ignore: hits to pass by. symbol: how
    the user named an address.
    """

    what: AnyBreak
    enabled: bool = True
    temporary: bool = False
    ignore: int = 0
    hits: int = 0
    symbol: str = ""

    def __str__(self) -> str:
        words = [str(self.what) + self.symbol]
        words += ["disabled"] if not self.enabled else []
        words += ["temporary"] if self.temporary else []
        words += [f"hit {self.hits} time{'s' * (self.hits > 1)}"] if self.hits else []
        words += [f"ignores the next {self.ignore} hits"] if self.ignore else []
        return ", ".join(words)


class Breakpoints:
    """By number. replay_break: an instruction to stop before, or 0."""

    def __init__(self) -> None:
        self._all: dict[int, Breakpoint] = {}
        self._next = 1
        self.replay_break = 0

    def add(self, what: AnyBreak, *, temporary: bool = False, symbol: str = "") -> int:
        """Set one, whatever number it has; its number."""
        number, self._next = self._next, self._next + 1
        numbered = what._replace(number=number)
        self._all[number] = Breakpoint(numbered, temporary=temporary, symbol=symbol)
        return number

    def get(self, number: int) -> Breakpoint:
        """ConfigError: there is none."""
        if number not in self._all:
            raise ConfigError(f"there is no break {number}")
        return self._all[number]

    def delete(self, number: int) -> None:
        """ConfigError: there is none."""
        self.get(number)
        del self._all[number]

    def clear(self) -> None:
        """Delete all."""
        self._all.clear()

    def items(self) -> list[tuple[int, Breakpoint]]:
        """All, in order."""
        return sorted(self._all.items())

    def active(self) -> list[AnyBreak]:
        """What to stop at."""
        return [each.what for _, each in self.items() if each.enabled]

    def condition(self, number: int, text: str) -> None:
        """Another filter for a tracepoint; none if the text is empty. ConfigError: it is no filter of it."""
        point = self.get(number)
        if not isinstance(point.what, PointBreak):
            raise ConfigError(f"break {number} is at no tracepoint: only these have filters")
        what = point.what._replace(filter=text)
        what.validate()
        self._all[number] = replace(point, what=what)

    def pass_by(self, stop: Stop) -> bool:
        """Count a hit; whether the run is to go on because it is ignored."""
        point = self._all.get(stop.number or 0)
        if point is None:
            return False
        point.hits += 1
        if point.ignore:
            point.ignore -= 1
            return True
        if point.temporary:
            self.delete(stop.number or 0)
        return False
