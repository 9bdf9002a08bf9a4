"""What a virtual CPU offers to the hypervisor: run until an exit, registers, events, TLB flushes.

An engine executes guest instructions over host RAM through page tables that its owner keeps in host frames. It never
handles a fault: a walk that fails is an exit with the state of the instruction's start, as on real hardware. What
the guest must see is queued as an Event and delivered through the guest's own IDT at the next entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from ..addr import Hpa, Pfn
from ..errors import ShadowvmError

Access = int
READ: Access = 0
WRITE: Access = 1
FETCH: Access = 2


class CpuExit(IntEnum):
    """Why `enter` returned. The order is arbitrary; 0 is nobody's."""

    QUANTUM = 1
    """The instruction budget is used up, or one step is done."""
    WALK_FAULT = 2
    """A page walk failed: box[EXIT_VA] and its neighbours say which."""
    CR_ACCESS = 3
    """A control register left the set that the current root was loaded for."""
    NON_CANONICAL = 4
    HLT = 5
    """RIP is after the instruction."""
    SHUTDOWN = 6
    """Triple fault."""
    STOPPED = 7
    """A port handler called request_stop."""
    UNSUPPORTED = 8
    """Unicorn gave up, or the guest can get no further; `engine.error` says why."""
    CR_WRITE = 9
    """RIP is at a MOV to control register box[EXIT_CR] from general register box[EXIT_GPR]. See controls.py for this
    and the exits that follow; the length of the instruction is box[EXIT_INSN_LEN]."""
    MSR_READ = 10
    MSR_WRITE = 11
    CPUID = 12
    INVLPG = 13
    """The address is box[EXIT_VA]."""
    EPT_VIOLATION = 14
    """The nested table does not map box[EXIT_GPA], or not for this access; see nested_root.py. box[EXIT_FINAL]: 1 if
    it is the page that the instruction at RIP accesses at box[EXIT_VA], 0 if a table of the guest on the way there.
    box[EXIT_ACCESS] is of the nested access: to set A or D in a guest's table is a WRITE. EXIT_LEVEL, EXIT_TABLE and
    EXIT_WHY are of the nested walk."""
    EPT_MISCONFIG = 15
    """A nested entry names a frame that host RAM does not have. With the same words as EPT_VIOLATION."""
    DEBUG = 17
    """RIP is at a breakpoint of set_breakpoints()."""


class WalkFault(IntEnum):
    """box[EXIT_WHY]: what the walker found."""

    NOT_PRESENT = 0
    WRITE = 1
    USER = 2
    NX = 3
    SMEP = 4
    SMAP = 5
    BAD_FRAME = 6
    """A table entry names a frame that host RAM does not have: the tables are broken."""
    PK = 7
    """Refused by the protection key of the leaf and PKRU."""


class EventKind(IntEnum):
    """How a vector reaches the IDT."""

    EXCEPTION = 1
    SOFTWARE = 2
    """INT n and INT3: the gate's DPL is checked, next_rip is pushed."""
    INTERRUPT = 3
    """From outside: waits for IF and the STI shadow unless it is delivered again."""
    NMI = 4


class Event(NamedTuple):
    """One exception or interrupt on its way to the guest."""

    kind: EventKind
    vector: int
    error_code: int | None = None
    cr2: int | None = None
    next_rip: int = 0


class EngineError(ShadowvmError):
    """Unicorn failed in a way that no guest can cause."""


InHandler = Callable[[int, int], int]
OutHandler = Callable[[int, int, int], None]


class Engine(Protocol):
    """One virtual CPU."""

    box: memoryview[int]

    @property
    def error(self) -> str: ...

    def enter(self) -> int:
        """Run until an exit; the CpuExit."""

    def step(self) -> int:
        """Execute one instruction (one iteration of a rep); QUANTUM if it retired, else the exit."""

    def load_root(self, root: Hpa, cr3: int, cr0: int, cr4: int, efer: int, level: int = 4) -> None:
        """Make the table of `level` levels at hpa `root` current for these control registers."""

    def load_nested_root(self, root: Hpa, level: int = 4) -> None:
        """Walk the guest's own tables too, through the nested table at hpa `root`: two-dimensional paging."""

    def load_pdptrs(self, cr3: int, pdptrs: Sequence[int]) -> None:
        """For two-dimensional paging: the PAE pointers that a MOV to `cr3` has loaded."""

    def skip_instruction(self) -> None:
        """Go past the instruction of the last exit, which has been emulated."""

    def flush_tlb(self) -> None: ...

    def may_cache(self, pfn: Pfn) -> bool: ...

    def may_cache_writable(self, pfn: Pfn) -> bool: ...

    def drop_code(self, pfn: Pfn) -> None: ...

    def queue_event(self, event: Event) -> None: ...

    def cancel_irq(self) -> None: ...

    def requeue(self, event: Event) -> None: ...

    def vectoring(self) -> Event | None: ...
