"""The flat model: in which ways an access may be translated, given every value that its entries have had.

A CPU may use an entry as it is, or as it was at any time since it last flushed (SDM vol. 3, 4.10); it never caches
one that is not present or not marked A, nor stores by one that is not marked D. What an access did is judged by
settle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .layout import ACCESSED, MASK64, NONPAGING, PAE, PRESENT, PT32, PT64
from .memory import FOREVER, Memory
from .paging import (
    ERR_P,
    ERR_RSVD,
    FETCH,
    READ,
    WRITE,
    Access,
    Control,
    decode,
    entry_place,
    error_code,
    levels_of,
    needed_marks,
    refused,
)

OK, FAULT, GP, MMIO, EFAULT = "ok", "fault", "gp", "mmio", "efault"
_ALL_RIGHTS = 6


class Outcome(NamedTuple):
    """What became of an operation. value: loaded, or fetched; fault: error code and address; device: bytes that were
    stored where no memory is, by address."""

    kind: str
    value: int = 0
    error: int = 0
    address: int = 0
    device: Mapping[int, int] = MappingProxyType({})


class Step(NamedTuple):
    """One entry of a walk. at: its word, shift: its place there. current: as it is now, else as it was. rom: nothing is
    marked there."""

    at: int
    shift: int
    value: int
    current: bool
    rom: bool = False


class Path(NamedTuple):
    """One way to translate. kind: OK, FAULT (`cause`) or EFAULT. hpage: behind frame `gfn`, -1 where no memory is. rom:
    what is stored there is for a device."""

    kind: str
    cause: int
    hpage: int
    rights: int
    key: int
    steps: tuple[Step, ...]
    gfn: int = -1
    rom: bool = False

    @property
    def is_fresh(self) -> bool:
        return all(step.current for step in self.steps)


class Cpu:
    """One vCPU: its control bits, whether in SMM, when it last flushed everything, and when single pages."""

    def __init__(self) -> None:
        self.control = Control()
        self.smm = False
        self.flushed = 0
        self.flushed_pages: dict[int, int] = {}

    def flush(self, now: int) -> None:
        """Everything."""
        self.flushed = now
        self.flushed_pages.clear()

    def flushed_at(self, va: int) -> int:
        """Since when nothing older can be used for `va`."""
        return self.flushed_pages.get(va >> 12, self.flushed)


class Mismatch(Exception):
    """The machine did what the model does not allow."""


class Model:
    """Memory and CPUs. now: the number of the operation. peek: a word as it is in the machine, None if unknown.

    raced: by word, what else it was while the access that is being judged went on. begun: marks that an access may have
    set which has begun, inside of SMM or not, and waits for another one.
    """

    def __init__(self, cpus: int, peek: Callable[[int], int | None]) -> None:
        self.memory = Memory()
        self.cpus = [Cpu() for _ in range(cpus)]
        self.peek = peek
        self.now = 1
        self.raced: dict[int, list[int]] = {}
        self.begun: dict[int, int] = {}
        self.begun_in_smm = False
        self._known: tuple[tuple[Cpu, int], list[Path]] | None = None

    def paths(self, cpu: Cpu, va: int) -> list[Path]:
        """Every way in which `va` may be translated now; the one by the tables as they are comes first."""
        key = (cpu, va >> 12)
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        found = self._paths(cpu, va)
        self._known = (key, found)
        return found

    def forget(self) -> None:
        """Something has changed, so what paths() has found last may be no longer true."""
        self._known = None

    def _paths(self, cpu: Cpu, va: int) -> list[Path]:
        control = cpu.control
        if control.mode == NONPAGING:
            gfn = (va & 0xFFFFFFFF) >> 12
            return [self._leaf(cpu, gfn, _ALL_RIGHTS, 0, ())]
        table = (control.cr3 & (0xFFFFFFFFFF000 if control.mode >= PT64 else 0xFFFFF000)) >> 12
        if control.mode == PAE:
            pdptr = control.pdptrs[va >> 30 & 3]
            if not pdptr & PRESENT:
                return [Path(FAULT, 0, -1, 0, 0, ())]
            table = (pdptr & 0xFFFFFFFFFF000) >> 12
        found: list[Path] = []
        self._descend(cpu, va, levels_of(control.mode), table, _ALL_RIGHTS, (), 0, found)
        return found

    def _descend(
        self,
        cpu: Cpu,
        va: int,
        level: int,
        table: int,
        rights: int,
        steps: tuple[Step, ...],
        since: int,
        found: list[Path],
    ) -> None:
        """The ways from here on. since: when the last of the entries above became what it is. Nobody has come here
        by them before, so what this entry was until then is out of the question.
        """
        memory, control = self.memory, cpu.control
        hpage = memory.find(table, cpu.smm)
        rom = memory.is_rom(hpage, cpu.smm)
        gone = hpage in memory.unmapped
        if hpage < 0 or gone:
            found.append(Path(EFAULT if gone else FAULT, 0, -1, rights, 0, steps))
        if hpage < 0:
            return
        word, shift = entry_place(control.mode, level, va)
        at = hpage << 9 | word
        for value, current, end in self._values(cpu, va, at, shift, gone, rom):
            if end <= since:
                continue
            entry = decode(control, level, value)
            if not current and (entry.bad or not entry.present):
                continue
            here = (*steps, Step(at, shift, value, current, rom))
            if not entry.present or entry.bad:
                cause = ERR_P | ERR_RSVD if entry.present else 0
                found.append(Path(FAULT, cause, -1, rights, 0, here))
                continue
            left = (rights & entry.rights & _ALL_RIGHTS) | ((rights | entry.rights) & 1 << 63)
            if not entry.offset_bits:
                begun = max(since, self._since(cpu, at, shift)) if current else since
                self._descend(cpu, va, level - 1, entry.next, left, here, begun, found)
                continue
            gfn = entry.next | (va & (1 << entry.offset_bits) - 1) >> 12
            found.append(self._leaf(cpu, gfn, left, entry.key, here))

    def _leaf(self, cpu: Cpu, gfn: int, rights: int, key: int, steps: tuple[Step, ...]) -> Path:
        memory = self.memory
        hpage = memory.find(gfn, cpu.smm)
        kind = EFAULT if hpage in memory.unmapped else OK
        return Path(kind, 0, hpage, rights, key, steps, gfn, memory.is_rom(hpage, cpu.smm))

    def _since(self, cpu: Cpu, at: int, shift: int) -> int:
        """When an entry became what it is now, marks aside."""
        since = self.memory.since
        if at in self.raced:
            return 0
        if cpu.control.mode == PT32:
            return since.get(at << 1 | shift >> 5, 0)
        return max(since.get(at << 1, 0), since.get(at << 1 | 1, 0))

    def _values(self, cpu: Cpu, va: int, at: int, shift: int, gone: bool, rom: bool) -> list[tuple[int, bool, int]]:
        """What the entry may be taken for, and until when it was that: as it is, and what it was since the flush.

        Of a table that is `gone` everything is what it was.
        """
        mask = 0xFFFFFFFF if cpu.control.mode == PT32 else MASK64
        current = self.memory.words.get(at, 0) >> shift & mask
        values = [] if gone and not (current & ACCESSED or rom) else [(current, not gone, FOREVER)]
        if at in self.raced:
            values += [(value >> shift & mask, True, FOREVER) for value in self.raced[at]]
        former = self.memory.history.get(at)
        if former is not None:
            flushed = cpu.flushed_at(va)
            old: dict[int, int] = {}
            for word, end in former:
                value = word >> shift & mask
                if end > flushed and (value & ACCESSED or rom):
                    old[value] = max(old.get(value, 0), end)
            values += [(value, False, end) for value, end in sorted(old.items())]
        return values

    def verdict(self, cpu: Cpu, path: Path, access: Access) -> tuple[str, int]:
        """(kind, error code) of an access by this path."""
        control, memory = cpu.control, self.memory
        if path.kind == FAULT:
            return FAULT, error_code(control, access, path.cause)
        if path.kind == EFAULT and path.hpage < 0:
            return EFAULT, 0
        cause = refused(control, access, path.rights, path.key)
        if cause:
            return FAULT, error_code(control, access, cause)
        for step in path.steps:
            marks = needed_marks(access, step is path.steps[-1])
            unmarked = step.current and not step.rom and step.value & marks != marks
            if unmarked and step.at >> 9 in memory.read_only:
                return EFAULT, 0
        if path.hpage < 0:
            return MMIO, 0
        if path.kind == EFAULT or (access.kind == WRITE and path.hpage in memory.read_only and not path.rom):
            return EFAULT, 0
        return OK, 0


def access_of(kind: str, cpl: int, ac: bool) -> Access:
    """The access of an instruction of layout.KINDS. XADD counts as a store."""
    return Access(READ if kind[0] == "r" else FETCH if kind == "x" else WRITE, cpl, ac)
