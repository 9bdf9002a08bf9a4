"""The oracle's operations: each is a list of a name and numbers, done to the machine and to the model.

    access CPU KIND VA VALUE CPL AC     one instruction of layout.KINDS
    invlpg CPU VA                       cr3 CPU VALUE
    bit CPU NAME VALUE                  MOV to CR0 or CR4, or WRMSR EFER, that changes one control bit
    pkru CPU VALUE                      mode CPU MODE CR3
    outside AT VALUE                    the VMM stores a word
    dontneed|pageout|readonly|writable|unmap|age HPAGE      map
    hog FIRST PAGES                     host memory gets short
    slot BASE                           the third slot moves, or is deleted (-1) or created
    log SLOT ON                         harvest SLOT
    check                               all memory is compared
    during POINT NTH ACT NUMBER         amid the next one another thread does one of RACES

One that makes no sense where it stands is skipped, so that any part of a sequence is a sequence.
"""

from __future__ import annotations

from collections.abc import Callable

from . import layout as at
from .bed import Bed, cr0_of, cr4_of, efer_of
from .model import EFAULT, GP, OK, Cpu, Mismatch, Model, access_of
from .paging import PDPTR_RESERVED, Control
from .settle import Attempt, settle

Operation = list[int | str]

BITS = ("wp", "pse", "smep", "smap", "pke", "nxe")
_SLOT_PAGES = {at.LOW: at.LOW_PAGES, at.HIGH: at.HIGH_PAGES, at.MOVING: at.MOVING_PAGES}
_SHAPES = {
    "access": "isiiii",
    "invlpg": "ii",
    "cr3": "ii",
    "bit": "isi",
    "pkru": "ii",
    "mode": "isi",
    "outside": "ii",
    "dontneed": "i",
    "pageout": "i",
    "readonly": "i",
    "writable": "i",
    "unmap": "i",
    "map": "",
    "age": "i",
    "hog": "ii",
    "slot": "i",
    "log": "ii",
    "harvest": "i",
    "check": "",
    "during": "sisi",
}
"""By name: which arguments are numbers (i) and which are words (s)."""
RACES = ("pageout", "age", "flap", "hog", "harvest", "dontneed")
"""What the guest does not see, or, of the last, sees as soon as it has gone on."""
_MAX_PASSES = 64
_RACING_HOG = 16
_IMMUTABLE = (at.LINKS, at.LINKS32, at.CODE, at.TRAPS)


def problem_with(operation: object, cpus: int) -> str:
    """What is wrong with something that ought to be an operation, or ""."""
    if not isinstance(operation, list) or not operation or operation[0] not in _SHAPES:
        return "no operation"
    name, *arguments = operation
    shape = _SHAPES[name]
    kinds = "".join("i" if type(each) is int else "s" if type(each) is str else "?" for each in arguments)
    if kinds != shape:
        return f"{name} takes other arguments"
    if any(type(each) is int and not -1 <= each < 1 << 64 for each in arguments):
        return f"{name}: a number is out of range"
    return _problem_with_values(name, arguments, cpus)


def _problem_with_values(name: str, arguments: list[int | str], cpus: int) -> str:
    first = arguments[0] if arguments else 0
    if name in ("access", "invlpg", "cr3", "bit", "pkru", "mode") and not 0 <= int(first) < cpus:
        return f"{name}: there is no CPU {first}"
    if name == "during":
        return _problem_with_race(*arguments)
    words = {"access": at.ACCESS_KINDS, "bit": BITS, "mode": at.MODES}
    if name in words and arguments[1] not in words[name]:
        return f"{name}: there is no '{arguments[1]}'"
    if name == "access" and (arguments[4] not in (0, 3) or arguments[5] not in (0, 1)):
        return "access: CPL is 0 or 3, AC 0 or 1"
    if name in ("cr3", "mode") and int(arguments[-1]) >> 12 not in at.ROOTS:
        return f"{name}: no root is at {int(arguments[-1]):#x}"
    if name in ("dontneed", "pageout", "readonly", "writable", "unmap", "age") and not _is_page(int(first)):
        return f"{name}: there is no page {int(first):#x}"
    if name == "outside" and not _is_page(int(first) >> 9):
        return f"outside: there is no word {int(first):#x}"
    if name == "slot" and first not in (-1, *at.MOVING_BASES):
        return f"slot: base {int(first):#x} is none of those that a slot may have"
    if name in ("log", "harvest") and first not in _SLOT_PAGES:
        return f"{name}: there is no slot {first}"
    return "hog: too many pages" if name == "hog" and int(arguments[1]) > 1024 else ""


def _problem_with_race(point: object, nth: object, act: object, number: object) -> str:
    if point not in at.POINTS or act not in RACES:
        return f"during: there is no '{point}' or no '{act}'"
    if not isinstance(nth, int) or not 1 <= nth <= _MAX_PASSES:
        return f"during: {nth} is out of range"
    known = isinstance(number, int) and (
        number in _SLOT_PAGES if act == "harvest" else act == "hog" or _is_page(number)
    )
    return "" if known else f"during: there is no {number} to {act}"


def _is_page(hpage: int) -> bool:
    return 0 <= hpage & 0xFFFF < _SLOT_PAGES.get(hpage >> 16, 0)


class Oracle:
    """A machine and a model that do the same operations. `do` raises Mismatch where they part."""

    def __init__(self, bed: Bed, cpus: int) -> None:
        self.bed = bed
        self.model = Model(cpus, bed.peek)
        self._missing = -1
        self._handlers: dict[str, Callable[..., None]] = {
            "access": self._access,
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
        self._race: tuple[str, int, str, int] | None = None
        self._flapping = self._race_is_on = False
        self._walked: set[int] = set()

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
        if race is None or (name != "access" and race[2] in ("flap", "harvest", "dontneed")):
            self._handlers[str(name)](*arguments)
        else:
            point, nth, act, number = race
            self._flapping, self._race_is_on = act == "flap", True
            with self.bed.racing(point, nth, lambda: self._come_between(point, act, number)):
                self._handlers[str(name)](*arguments)
        self._flapping = self._race_is_on = False
        self.model.forget()

    def _during(self, point: str, nth: int, act: str, number: int) -> None:
        self._race = (point, nth, act, number)

    def _come_between(self, point: str, act: str, number: int) -> None:
        if act == "hog":
            self.bed.hog(number, _RACING_HOG)
        elif act == "dontneed" and (number in self._walked or point not in at.POINTS_WITHOUT_LOCKS):
            pass
        elif act != "flap":
            self._handlers[act](number)
        elif number not in self.model.memory.unmapped and number not in self.model.memory.read_only:
            self.bed.flap(number)

    # Guest instructions.

    def _access(self, number: int, kind: str, va: int, value: int, cpl: int, ac: int) -> None:
        cpu = self.model.cpus[number]
        mode = cpu.control.mode
        if mode < at.PT64:
            va &= 0xFFFFFFFF
            if kind.endswith("8"):
                kind = kind[0] + "4"
        va = va & -4096 | at.SNIPPET_WORD * 8 if kind == "x" else _inside_page(va, int(kind[1]))
        if not self._is_fit(cpu, va, kind):
            return
        self._note_walk(cpu, va, kind)
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
        settle(self.model, Attempt(cpu, va, kind, value, access_of(kind, cpl, bool(ac)), outcome))

    def _note_walk(self, cpu: Cpu, va: int, kind: str) -> None:
        """The pages that must stay what they are: tables on the way, and what is to be executed."""
        if self._race_is_on and _is_canonical(va, cpu.control.mode):
            paths = self.model.paths(cpu, va)
            self._walked = {step.at >> 9 for path in paths for step in path.steps}
            if kind == "x":
                self._walked.update(path.hpage for path in paths)

    def _is_fit(self, cpu: Cpu, va: int, kind: str) -> bool:
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
                words = {(va & 0xFFF) >> 3, (va & 0xFFF) + int(kind[1]) - 1 >> 3}
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
            memory.set_outside(place, value)
            self.bed.set_outside(place, value)

    def _dontneed(self, hpage: int) -> None:
        memory = self.model.memory
        if hpage not in _IMMUTABLE and hpage not in memory.unmapped and hpage not in memory.read_only:
            self._discard(hpage)
            self.bed.dontneed(hpage)

    def _discard(self, hpage: int) -> None:
        memory = self.model.memory
        memory.clear_page(hpage)
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

    def _slot(self, base: int) -> None:
        bases = self.model.memory.bases
        old = bases.get(at.MOVING, -1)
        if base == old:
            return
        log = at.MOVING in self.model.memory.logged and base >= 0
        self.bed.set_slot(at.MOVING, max(base, 0), at.MOVING_PAGES if base >= 0 else 0, log=log)
        if base < 0:
            del bases[at.MOVING]
            self.model.memory.logged.discard(at.MOVING)
        else:
            bases[at.MOVING] = base
        self._forget_dirty(at.MOVING)

    def _log(self, slot: int, on: int) -> None:
        memory = self.model.memory
        base = memory.bases.get(slot, -1)
        if base < 0 or bool(on) == (slot in memory.logged):
            return
        self.bed.set_slot(slot, base, _SLOT_PAGES[slot], log=bool(on))
        (memory.logged.add if on else memory.logged.discard)(slot)
        self._forget_dirty(slot)

    def _harvest(self, slot: int) -> None:
        memory = self.model.memory
        if slot in memory.logged:
            written = {hpage for hpage in memory.dirty if hpage >> 16 == slot}
            harvest = self.bed.harvest(slot)
            if written - harvest:
                raise Mismatch(f"dirty log: page {min(written - harvest):#x} was written and is not in it")
            memory.dirty -= harvest

    def _forget_dirty(self, slot: int) -> None:
        self.model.memory.dirty = {hpage for hpage in self.model.memory.dirty if hpage >> 16 != slot}

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
            expected = [memory.words.get(first + word, 0) for word in range(512)]
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
