"""What local APICs, the IOAPIC and MSIs send each other: messages, and who they are for (Intel SDM vol. 3, 11.6).

Lowest-priority messages go to the candidate with the lowest processor priority; between equals, to the one after
the last that got such a message. There is no focus processor, as on every CPU since the Pentium 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .lapic import Lapic


class DeliveryMode(IntEnum):
    """Bits 10:8 of an ICR, LVT entry, redirection entry or MSI."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class ApicMessage(NamedTuple):
    """One message. level: trigger mode. wide: the destination has 32 bits (from an x2APIC), else 8."""

    dest: int
    logical: bool
    mode: int
    vector: int
    level: bool = False
    wide: bool = False

    @property
    def broadcast(self) -> bool:
        """Addressed to everybody."""
        return self.dest == (0xFFFF_FFFF if self.wide else 0xFF)


class LapicBus:
    """lapics: every local APIC, by CPU. on_eoi: called with the vector when a level-triggered one has ended."""

    __slots__ = ("_last_lowest", "lapics", "on_eoi")

    def __init__(self) -> None:
        self.lapics: list[Lapic] = []
        self.on_eoi: list[Callable[[int], None]] = []
        self._last_lowest = -1

    def deliver(self, message: ApicMessage) -> bool:
        """Send to whom the destination names; False if nobody accepted."""
        dest = message.dest
        if message.broadcast:
            targets = [lapic for lapic in self.lapics if lapic.enabled]
        elif message.logical:
            targets = [lapic for lapic in self.lapics if lapic.enabled and lapic.has_logical_id(dest)]
        else:
            targets = [lapic for lapic in self.lapics if lapic.id == dest and lapic.enabled]
        return self.send(message, targets)

    def send(self, message: ApicMessage, targets: Iterable[Lapic]) -> bool:
        """Send to `targets`, or to one of them if the mode is lowest priority."""
        if message.mode == DeliveryMode.LOWEST_PRIORITY:
            targets = self._arbitrate([lapic for lapic in targets if lapic.software_enabled])
        accepted = [lapic.receive(message.mode, message.vector, message.level) for lapic in targets]
        return any(accepted)

    def _arbitrate(self, candidates: list[Lapic]) -> list[Lapic]:
        if not candidates:
            return []
        count = len(self.lapics)
        best = min(candidates, key=lambda lapic: (lapic.ppr >> 4, (lapic.cpu - self._last_lowest - 1) % count))
        self._last_lowest = best.cpu
        return [best]

    def msi(self, address: int, data: int) -> bool:
        """A store to the page at 0xfee00000 by a device."""
        message = ApicMessage(
            dest=address >> 12 & 0xFF,
            logical=bool(address & 4),
            mode=data >> 8 & 7,
            vector=data & 0xFF,
            level=bool(data & 1 << 15),
        )
        return self.deliver(message)

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt has ended."""
        for sink in self.on_eoi:
            sink(vector)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"last_lowest": self._last_lowest}

    def load(self, saved: dict[str, Any]) -> None:
        """The inverse of state()."""
        self._last_lowest = saved["last_lowest"]
