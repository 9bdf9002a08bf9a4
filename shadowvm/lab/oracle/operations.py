"""The oracle's operations, each done to the machine and to the model; shapes.py lists them.

One that makes no sense where it stands is skipped, so that any part of a sequence is a sequence.
"""

from __future__ import annotations

from collections.abc import Callable

from . import layout as at
from .bed import Bed, cr0_of, cr4_of, efer_of
from .model import EFAULT, GP, OK, Cpu, Mismatch, Model, Outcome, access_of
from .paging import PDPTR_RESERVED, Control
from .settle import attempts, marks_of, settle
from .shapes import Operation

_IMMUTABLE = (at.LINKS, at.LINKS32, at.CODE, at.TRAPS)
_RACING_HOG = 16
_LINK_BYTES = 3
"""So many bytes of a link are not zero."""
_AMID_ACCESSES = ("flap", "harvest", "clear", "dontneed", "access")
"""What another thread does only amid an access."""


class Oracle:
    """A machine and a model that do the same operations. `do` raises Mismatch where they part."""

    def __init__(self, bed: Bed, cpus: int) -> None:
        self.bed = bed
        self.model = Model(cpus, bed.peek)
        self._missing = -1
        self._handlers: dict[str, Callable[..., None]] = {
            "access": self._access,
            "cross": self._cross,
            "amid": self._amid,
            "smm": self._smm,
            "rom": self._rom,
            "clear": self._clear,
            "collapse": bed.collapse,
            "recover": bed.recover,
            "reprotect": self._reprotect,
            "invlpg": self._invlpg,
            "cr3": self._cr3,
            "bit": self._bit,
            "pkru": self._pkru,
            "mode": self._mode,
            "outside": self._outside,
            "dontneed": self._dontneed,
            "pageout": bed.pageout,
            "readonly": self._readonly,
            "writable": self._writable,
            "unmap": self._unmap,
            "map": self._map,
            "age": bed.age,
            "hog": bed.hog,
            "slot": self._slot,
            "log": self._log,
            "harvest": self._harvest,
            "check": self.check,
            "during": self._during,
        }
        self._race: tuple[str, int, str, tuple[int | str, ...]] | None = None
        self._flapping = self._race_is_on = False
        self._running = -1
        self._waiting: list[tuple[Cpu, int, str, int]] = []
        self._walked: set[int] = set()
        self._harvested: dict[int, list[int]] = {}

    def begin(self) -> None:
        """Put the same contents into the machine's memory and the model's."""
        for number, cpu in enumerate(self.model.cpus):
            cpu.control.cr3 = at.ROOTS[number] << 12
        self.bed.set_up([cpu.control for cpu in self.model.cpus])
        words = self.model.memory.words
        words.update(at.link_tables())
        code = at.code_page()
        words.update({at.CODE << 9 | n: int.from_bytes(code[8 * n : 8 * n + 8], "little") for n in range(512)})
        for hpage in at.POOL:
            words.update({hpage << 9 | word: value for word, value in at.fixed_words(hpage).items()})

    def do(self, operation: Operation) -> None:
        """One operation."""
        self.model.now += 1
        name, *arguments = operation
        race, self._race = self._race, None
        if race is None or (name not in ("access", "cross") and race[2] in _AMID_ACCESSES):
            self._handlers[str(name)](*arguments)
        else:
            self._do_with_race(race, str(name), arguments)
        self.model.forget()

    def _do_with_race(
        self, race: tuple[str, int, str, tuple[int | str, ...]], name: str, arguments: list[int | str]
    ) -> None:
        point, nth, act, numbers = race
        self._flapping, self._race_is_on = act == "flap", True
        with self.bed.racing(point, nth, lambda: self._come_between(point, act, numbers)):
            self._handlers[name](*arguments)
        self._flapping = self._race_is_on = False
        self._forget_harvested()
        self.model.raced, self.model.begun = {}, {}

    def _during(self, point: str, nth: int, act: str, number: int) -> None:
        self._race = (point, nth, act, (number,))

    def _amid(self, point: str, nth: int, *access: int | str) -> None:
        self._race = (point, nth, "access", access)

    def _come_between(self, point: str, act: str, numbers: tuple[int | str, ...]) -> None:
        if act == "access":
            if numbers[0] != self._running and self._stays_fit(*numbers):  # type: ignore[arg-type]  # see shapes.py
                self._access_between(numbers)
            return
        number = int(numbers[0])
        if act == "hog":
            self.bed.hog(number, _RACING_HOG)
        elif act == "dontneed" and (number in self._walked or point not in at.POINTS_WITHOUT_LOCKS):
            pass
        elif act != "flap":
            self._handlers[act](number)
        elif number not in self.model.memory.unmapped and number not in self.model.memory.read_only:
            self.bed.flap(number)

    def _stays_fit(self, number: int, kind: str, va: int, value: int, *_: int) -> bool:
        """Whether the access that waits still makes sense with what another CPU is going to store."""
        cpu, words = self.model.cpus[number], self.model.memory.words
        mask = (1 << 8 * int(kind[1])) - 1 << 8 * (va & 7)
        fit = True
        for path in self.model.paths(cpu, va & (0xFFFFFFFF if cpu.control.mode < at.PT64 else at.MASK64)):
            if path.hpage < 0:
                continue
            place = path.hpage << 9 | (va & 0xFFF) >> 3
            old = words.get(place, 0)
            words[place] = old & ~mask | value << 8 * (va & 7) & mask & at.MASK64
            self.model.forget()
            fit = fit and all(self._is_fit(*each) for each in self._waiting)
            words[place] = old
            self.model.forget()
        return fit

    def _access_between(self, numbers: tuple[int | str, ...]) -> None:
        """Another CPU does an access while one waits: what it changes may have been read before or is read after."""
        model, running, waiting = self.model, self._running, self._waiting
        self._race_is_on = False
        model.memory.journal = {}
        self._access(*numbers)  # type: ignore[arg-type]  # see shapes.py
        model.raced, model.memory.journal = model.memory.journal, None
        self._race_is_on, self._running, self._waiting = True, running, waiting

    # Guest instructions.

    def _access(self, number: int, kind: str, va: int, value: int, cpl: int, ac: int) -> None:
        mode = self.model.cpus[number].control.mode
        if mode < at.PT64:
            va &= 0xFFFFFFFF
            if kind.endswith("8"):
                kind = kind[0] + "4"
        va = va & -4096 | at.SNIPPET_WORD * 8 if kind == "x" else _inside_page(va, int(kind[1]))
        self._execute(number, kind, va, value, cpl, ac)

    def _cross(self, number: int, kind: str, va: int, value: int, cpl: int, ac: int) -> None:
        """The lowest bits of `va` say how much of it is in the first page, where nothing but zeros is stored: the last
        word of a page of the pool is a link, whose upper bytes are zero."""
        mode = self.model.cpus[number].control.mode
        if mode < at.PT64:
            va &= 0xFFFFFFFF
            if kind.endswith("8"):
                kind = kind[0] + "4"
        first = 1 + va % (int(kind[1]) - 1)
        va = (va | 0xFFF) + 1 - first
        if kind[0] != "r":
            value = value >> 8 * first << 8 * first
        last = va + 8 & (0xFFFFFFFF if mode < at.PT64 else at.MASK64)
        # A segment ends where addresses do, and what wraps around is not compared.
        if last > va and _is_canonical(va, mode) and _is_canonical(last, mode):
            self._execute(number, kind, va, value, cpl, ac)

    def _execute(self, number: int, kind: str, va: int, value: int, cpl: int, ac: int) -> None:
        cpu = self.model.cpus[number]
        mode, access = cpu.control.mode, access_of(kind, cpl, bool(ac))
        tried = attempts(cpu, va, kind, value, access, Outcome(OK))
        looks = [(cpu, each.va, kind, each.size) for each in tried]
        if not all(self._is_fit(*each) for each in looks):
            return
        self._running, self._waiting = number, looks
        if self._race_is_on and _is_canonical(va, mode):
            self._note_walk(cpu, [each.va for each in tried], kind)
            self.model.begun, self.model.begun_in_smm = marks_of(self.model, tried), cpu.smm
        outcome = self.bed.access(number, mode, kind, va, value, cpl=cpl, ac=bool(ac))
        self.model.forget()
        if outcome.kind == EFAULT and self._flapping:
            # It may have come between the two halves.
            self.bed.wait_for_race()
            outcome = self.bed.access(number, mode, kind, va, value, cpl=cpl, ac=bool(ac))
        if outcome.kind == GP:
            if not _is_canonical(va, mode):
                return
            raise Mismatch(f"#GP at canonical {va:#x}")
        if not _is_canonical(va, mode):
            raise Mismatch(f"{outcome.kind} at {va:#x}, which is not canonical")
        settle(self.model, attempts(cpu, va, kind, value, access, outcome))

    def _note_walk(self, cpu: Cpu, addresses: list[int], kind: str) -> None:
        """The pages that must stay what they are: tables on the way, and what is to be executed."""
        paths = [path for va in addresses for path in self.model.paths(cpu, va)]
        self._walked = {step.at >> 9 for path in paths for step in path.steps}
        if kind == "x":
            self._walked.update(path.hpage for path in paths)

    def _is_fit(self, cpu: Cpu, va: int, kind: str, size: int) -> bool:
        """Not a store to what must stay, nor a fetch of what is no code."""
        if not _is_canonical(va, cpu.control.mode):
            return True
        for path in self.model.paths(cpu, va):
            if path.hpage < 0:
                continue
            if kind == "x":
                if path.hpage not in at.POOL:
                    return False
            elif kind[0] != "r":
                words = {(va & 0xFFF) >> 3, (va & 0xFFF) + size - 1 >> 3}
                if size < int(kind[1]) and va & 7 >= _LINK_BYTES:
                    words.discard(at.LINK_WORD)
                if path.hpage in _IMMUTABLE or (path.hpage in at.POOL and not words.isdisjoint(at.FIXED_WORDS)):
                    return False
        return True

    def _control(self, number: int, what: str, value: int, *, allowed: bool = True) -> None:
        mode = self.model.cpus[number].control.mode
        outcome = self.bed.control(number, mode, what, value)
        if outcome.kind != (OK if allowed else GP):
            raise Mismatch(f"{what} {value:#x}: {outcome}, not {OK if allowed else GP}")

    def _invlpg(self, number: int, va: int) -> None:
        cpu = self.model.cpus[number]
        if cpu.control.mode < at.PT64:
            va &= 0xFFFFFFFF
        self._control(number, "invlpg", va)
        if _is_canonical(va, cpu.control.mode):
            cpu.flushed_pages[va >> 12] = self.model.now

    def _cr3(self, number: int, value: int) -> None:
        cpu = self.model.cpus[number]
        value = _cr3_for(cpu.control.mode, value)
        pdptrs = self._pdptrs(value) if cpu.control.mode == at.PAE else cpu.control.pdptrs
        self._control(number, "cr3", value, allowed=pdptrs is not None)
        if pdptrs is not None:
            cpu.control.cr3, cpu.control.pdptrs = value, pdptrs
            if cpu.control.mode != at.NONPAGING:
                self._flush(cpu)

    def _bit(self, number: int, name: str, value: int) -> None:
        """A change of NX is followed by a flush: what a stale entry with NX means without it, nobody says."""
        cpu = self.model.cpus[number]
        control = cpu.control
        old, new = getattr(control, name), bool(value)
        setattr(control, name, new)
        if name == "nxe":
            self._control(number, "wrmsr", efer_of(control))
            self._cr3(number, control.cr3)
            return
        pdptrs: tuple[int, ...] | None = control.pdptrs
        if control.mode == at.PAE and old != new and name in ("pse", "smep"):
            pdptrs = self._pdptrs(control.cr3)
        what, register = ("cr0", cr0_of(control)) if name == "wp" else ("cr4", cr4_of(control))
        self._control(number, what, register, allowed=pdptrs is not None)
        if pdptrs is None:
            setattr(control, name, old)
            return
        control.pdptrs = pdptrs
        if name == "smep" and new and not old:
            self._flush(cpu)

    def _pkru(self, number: int, value: int) -> None:
        cpu = self.model.cpus[number]
        if cpu.control.pke and cpu.control.mode >= at.PT64:
            value &= 0xFFFFFFFC
            self._control(number, "wrpkru", value)
            cpu.control.pkru = value

    def _mode(self, number: int, name: str, cr3: int) -> None:
        cpu = self.model.cpus[number]
        control: Control = cpu.control
        mode = at.MODES.index(name)
        cr3 = _cr3_for(mode, cr3)
        pdptrs = self._pdptrs(cr3) if mode == at.PAE else (0, 0, 0, 0)
        if pdptrs is None:
            return
        control.mode, control.cr3, control.pdptrs = mode, cr3, pdptrs
        self.bed.set_sregs(number, control)
        self._flush(cpu)

    def _flush(self, cpu: Cpu) -> None:
        cpu.flush(self.model.now)
        self.model.memory.horizon = min(each.flushed for each in self.model.cpus)

    def _pdptrs(self, cr3: int) -> tuple[int, ...] | None:
        """The PAE pointers at CR3; None if one has reserved bits."""
        place = self.model.memory.find(cr3 >> 12) << 9 | (cr3 & 0xFE0) >> 3
        values = tuple(self.model.memory.words.get(place + n, 0) for n in range(4))
        return None if any(value & at.PRESENT and value & PDPTR_RESERVED for value in values) else values

    # Acts of the host and its VMM.

    def _outside(self, place: int, value: int) -> None:
        memory, hpage = self.model.memory, place >> 9
        fixed = hpage in _IMMUTABLE or (hpage in at.POOL and place & 511 in at.FIXED_WORDS)
        if not fixed and hpage not in memory.unmapped and hpage not in memory.read_only:
            memory.set_outside(place, value, self.model.now)
            self.bed.set_outside(place, value)

    def _dontneed(self, hpage: int) -> None:
        memory = self.model.memory
        if hpage not in _IMMUTABLE and hpage not in memory.unmapped and hpage not in memory.read_only:
            self._discard(hpage)
            self.bed.dontneed(hpage)

    def _discard(self, hpage: int) -> None:
        memory = self.model.memory
        memory.clear_page(hpage, self.model.now)
        if hpage in at.POOL:
            memory.words.update({hpage << 9 | word: value for word, value in at.fixed_words(hpage).items()})

    def _readonly(self, hpage: int) -> None:
        if hpage not in self.model.memory.unmapped:
            self.bed.protect(hpage, writable=False)
            self.model.memory.read_only.add(hpage)

    def _writable(self, hpage: int) -> None:
        if hpage not in self.model.memory.unmapped:
            self.bed.protect(hpage, writable=True)
            self.model.memory.read_only.discard(hpage)

    def _reprotect(self, slot: int) -> None:
        memory = self.model.memory
        if all(hpage >> 16 != slot & 0xFFFF for hpage in (*memory.read_only, *memory.unmapped)):
            self.bed.reprotect(slot & 0xFFFF)

    def _unmap(self, hpage: int) -> None:
        """One page at a time, and no root: the code could not run."""
        if self._missing < 0 and hpage >> 16 != at.LOW:
            self.bed.unmap(hpage)
            self._missing = hpage
            self.model.memory.unmapped.add(hpage)
            self.model.memory.read_only.discard(hpage)

    def _map(self) -> None:
        hpage, self._missing = self._missing, -1
        if hpage >= 0:
            self.bed.map(hpage)
            self.model.memory.unmapped.discard(hpage)
            self._discard(hpage)

    def _smm(self, number: int, on: int) -> None:
        cpu = self.model.cpus[number]
        if self.bed.has_smm and cpu.smm != bool(on):
            cpu.smm = bool(on)
            self.bed.set_smm(number, cpu.smm)
            self._flush(cpu)

    def _slot(self, base: int) -> None:
        if base != self.model.memory.bases.get(at.MOVING, -1) or self.model.memory.rom:
            self._set_third_slot(base, rom=False)

    def _rom(self, base: int) -> None:
        """What is read-only does not become writable, nor the other way: it is deleted in between."""
        if base >= 0:
            self._set_third_slot(base, rom=True)

    def _set_third_slot(self, base: int, *, rom: bool) -> None:
        memory = self.model.memory
        if memory.rom or rom:
            self._delete_third_slot()
        log = at.MOVING in memory.logged
        if base < 0:
            self._delete_third_slot()
            return
        self.bed.set_slot(at.MOVING, base, log=log, rom=rom)
        memory.bases[at.MOVING], memory.rom = base, rom
        self._forget_dirty(at.MOVING)

    def _delete_third_slot(self) -> None:
        memory = self.model.memory
        if memory.bases.pop(at.MOVING, -1) >= 0:
            self.bed.set_slot(at.MOVING, -1, log=False)
        memory.rom = False
        memory.logged.discard(at.MOVING)
        self._forget_dirty(at.MOVING)

    def _log(self, slot: int, on: int) -> None:
        memory = self.model.memory
        base = self._base_of(slot)
        if base < 0 or bool(on) == (slot in memory.logged):
            return
        self.bed.set_slot(slot, base, log=bool(on), rom=memory.rom and slot == at.MOVING)
        (memory.logged.add if on else memory.logged.discard)(slot)
        self._forget_dirty(slot)

    def _base_of(self, slot: int) -> int:
        """Where a slot is, negative if nowhere."""
        if not slot & at.IN_SMM:
            return self.model.memory.bases.get(slot, -1)
        if not self.bed.has_smm:
            return -1
        return at.SMM_BASE if slot & 0xFFFF == at.MOVING else self.model.memory.bases[slot & 0xFFFF]

    def _harvest(self, slot: int) -> None:
        """Every page that was written is in the log, and not any more then; with manual protection it stays there."""
        memory = self.model.memory
        if slot not in memory.logged:
            return
        logs = self.bed.dirty_logs.harvest(slot)
        for number in sorted(memory.logged) if self.bed.dirty_logs.is_ring else [slot]:
            written, harvest = memory.dirty.get(number, set()), logs.get(number, set())
            if written - harvest:
                page = min(written - harvest)
                raise Mismatch(f"dirty log of slot {number:#x}: page {page:#x} was written and is not in it")
            if not self.bed.dirty_logs.is_manual:
                self._take_from_log(number, harvest)

    def _clear(self, slot: int, first: int, pages: int) -> None:
        """Whole words of the bitmap, inside the slot."""
        memory = self.model.memory
        if slot not in memory.logged or not self.bed.dirty_logs.is_manual:
            return
        size = at.SLOT_PAGES[slot & 0xFFFF] - (at.SMM_OFFSET if slot == at.IN_SMM | at.MOVING else 0)
        first = first % size & -64
        end = min(first + max(pages, 1) + 63 & -64, size)
        self._take_from_log(slot, self.bed.dirty_logs.clear(slot, first, end - first))

    def _take_from_log(self, slot: int, pages: set[int]) -> None:
        """What is written from now on has to be in the next harvest. Amid an access, nobody knows yet what it wrote."""
        self.model.memory.dirty[slot] = self.model.memory.dirty.get(slot, set()) - pages
        if self._race_is_on:
            self._harvested |= {hpage: self.bed.resident(hpage) for hpage in pages if hpage in at.POOL}

    def _forget_harvested(self) -> None:
        """A page that was harvested amid the access, and is as it was then, had been written before."""
        words = self.model.memory.words
        for hpage, then in self._harvested.items():
            if all(word == words.get(hpage << 9 | n, 0) for n, word in enumerate(then)):
                for pages in self.model.memory.dirty.values():
                    pages.discard(hpage)
        self._harvested = {}

    def _forget_dirty(self, slot: int) -> None:
        self.model.memory.dirty.pop(slot, None)

    def check(self) -> None:
        """Compare every page that has ever been used."""
        memory = self.model.memory
        for hpage in sorted({place >> 9 for place in memory.words}):
            page = self.bed.page(hpage)
            if page is None:
                if hpage not in memory.unmapped:
                    raise Mismatch(f"page {hpage:#x} cannot be read")
                continue
            first = hpage << 9
            get = memory.words.get
            expected = [get(place, 0) for place in range(first, first + 512)]
            if page.tolist() != expected:
                word = next(n for n in range(512) if page[n] != expected[n])
                raise Mismatch(f"page {hpage:#x} word {word}: {page[word]:#x}, not {expected[word]:#x}")


def _cr3_for(mode: int, value: int) -> int:
    """The PAE pointers of a page are in its last words."""
    return value & -4096 | (at.PDPT_OFFSET if mode == at.PAE else 0)


def _inside_page(va: int, size: int) -> int:
    """An access of `size` bytes there or, if it crosses the page's end, before it."""
    return min(va & 0xFFF, 0x1000 - size) | va & -4096


def _is_canonical(va: int, mode: int) -> bool:
    if mode < at.PT64:
        return True
    bits = 56 if mode == at.LA57 else 47
    return va >> bits in (0, (1 << 64 - bits) - 1)
