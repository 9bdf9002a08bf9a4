"""What a group of laws is made of, and what of a machine it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.vm import Kvm
    from ...mm.host import Host
    from ...mm.mm_struct import MmStruct
    from ...phys import Ram
    from ...sync import Scheduler
    from .sanitizer import Sanitizer

Handler = Callable[..., None]


class Subject(Protocol):
    """What is checked: a Machine, or KvmSubject for a VM whose machine is not at hand."""

    @property
    def kvm(self) -> Kvm: ...

    @property
    def mm(self) -> MmStruct: ...

    @property
    def host(self) -> Host: ...

    @property
    def ram(self) -> Ram: ...

    @property
    def sched(self) -> Scheduler: ...

    @property
    def instructions(self) -> int: ...


class KvmSubject:
    """The parts of a machine that can be reached from its VM."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.mm = kvm.mm
        self.host = kvm.mm.host
        self.ram = self.host.ram
        self.sched = self.host.sched

    @property
    def instructions(self) -> int:
        """As Machine.instructions."""
        return self.kvm.instructions


class Rules:
    """One group of laws. laws: their names."""

    laws: ClassVar[frozenset[str]]

    def __init__(self, sanitizer: Sanitizer) -> None:
        self.sanitizer = sanitizer

    def handlers(self) -> dict[Tracepoint, Handler]:
        """What to call at which tracepoint, with the tracepoint's arguments."""
        return {}

    def validate(self) -> None:
        """Check from the state alone. The rules are fresh, mmu_lock is free, and no page table is open for a store."""

    def finish(self) -> None:
        """Check what must hold when the run has ended and the host was taken down."""
