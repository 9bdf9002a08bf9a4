"""What a run can be stopped at: a tracepoint with a filter, or a change of an spte, a host pte or a frame.

Breaks are values that travel to the process of the machine; filters are compiled there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..addr import PAGE_SHIFT, Pfn
from ..events import REGISTRY, Tracepoint, host_pte_change, mm_page_alloc, mm_page_free, spte_change
from ..trace.filter import compile_filter, find_tracepoint

if TYPE_CHECKING:
    from .target import Target


class PointBreak(NamedTuple):
    """At a tracepoint whose arguments pass a filter."""

    number: int
    name: str
    filter: str = ""

    def validate(self) -> None:
        """ConfigError: no such tracepoint or filter."""
        compile_filter(self.name, self.filter)

    def tracepoints(self) -> Sequence[Tracepoint]:
        """Its own."""
        return (find_tracepoint(self.name),)

    def hit(self, _target: Target, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str | None:
        """Filter."""
        if not compile_filter(self.name, self.filter)(args):
            return None
        return tracepoint.describe(args)

    def __str__(self) -> str:
        return f"break {self.name}{' if ' if self.filter else ''}{self.filter}"


class FaultBreak(NamedTuple):
    """At every event in the thread of a vCPU: the points of the fault that it is in."""

    number: int
    vcpu: int

    def tracepoints(self) -> Sequence[Tracepoint]:
        """All: whose an event is shows when it happens."""
        return tuple(REGISTRY.values())

    def hit(self, target: Target, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str | None:
        """By thread."""
        if target.machine.sched.current.vcpu != self.vcpu:
            return None
        return tracepoint.describe(args)

    def __str__(self) -> str:
        return f"the next point of vCPU {self.vcpu}"


class AddressBreak(NamedTuple):
    """Before the instruction at a linear address, of any vCPU."""

    number: int
    address: int

    def tracepoints(self) -> Sequence[Tracepoint]:
        """None: the CPU itself stops."""
        return ()

    def hit(self, _target: Target, _tracepoint: Tracepoint, _args: tuple[Any, ...]) -> str | None:
        """Never by an event."""
        return None

    def __str__(self) -> str:
        return f"break *{self.address:#x}"


class MemoryWatch(NamedTuple):
    """After an instruction of the guest that accesses memory: `size` bytes from an address on that is a gva (in any
    address space), a gpa, an hva of the VM's process, or in host memory ("pfn").

    access: r, w or rw. undo: gdb's way back, which ends before the instruction, so that its store is undone.
    """

    number: int
    space: str
    address: int
    size: int
    access: str = "w"
    undo: bool = False

    def tracepoints(self) -> Sequence[Tracepoint]:
        """None: the CPU itself stops."""
        return ()

    def hit(self, _target: Target, _tracepoint: Tracepoint, _args: tuple[Any, ...]) -> str | None:
        """Never by an event."""
        return None

    def __str__(self) -> str:
        if self.space == "pfn":
            return f"watch pfn {self.address >> PAGE_SHIFT:#x} {self.access}"
        return f"watch {self.space} {self.address:#x} {self.size} {self.access}"


class Watch(NamedTuple):
    """At a change of what `kind` names: spte (of a gfn), sptep (at an hpa), pte (of an hva), or page (a pfn comes and
    goes)."""

    number: int
    kind: str
    value: int

    def tracepoints(self) -> Sequence[Tracepoint]:
        """Where such changes are told."""
        return {
            "spte": (spte_change,),
            "sptep": (spte_change,),
            "pte": (host_pte_change,),
            "page": (mm_page_alloc, mm_page_free),
        }[self.kind]

    def hit(self, target: Target, tracepoint: Tracepoint, args: tuple[Any, ...]) -> str | None:
        """Compare."""
        if not self._concerns(target, args):
            return None
        return tracepoint.describe(args)

    def _concerns(self, target: Target, args: tuple[Any, ...]) -> bool:
        if self.kind == "spte":
            kvm = target.machine.kvm
            sp = kvm.sp_by_pfn.get(Pfn(args[0] >> PAGE_SHIFT))
            return sp is not None and sp.level == 1 and sp.gfn_of(args[0] >> 3 & 511) == self.value
        if self.kind == "pte":
            return bool(args[1] == self.value >> PAGE_SHIFT)
        return bool(args[0] == self.value)

    def __str__(self) -> str:
        return f"watch {self.kind} {self.value:#x}"
