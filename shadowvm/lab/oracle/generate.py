"""Random operations. A sequence is a pure function of its seed: it looks at the model, never at the machine.

Each sequence has its own taste (which modes, how many flushes, whether slots move), drawn first, so that every
mechanism is sometimes used much and sometimes left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from . import layout as at
from . import scenarios
from .large import large
from .model import OK, Cpu, Model
from .model import access_of as access_by
from .paging import levels_of
from .setup import Setup
from .shapes import Operation

_RECENT = 24
_TRIES = 8
"""So often an access is looked for that the tables allow."""
_UPPER_HALF = 256
"""The index of SMALL that makes an address of the upper half, in a topmost table."""
_INDICES32 = (0, 1, 2, 3, 4, 5, 6, 7, 512, 513)
_TABLE_WORDS = (*at.SMALL, 504, 505, 506)
_STAYING = len(at.POOL_LOW) + len(at.POOL_HIGH)
_GFNS: tuple[int, ...] = at.WINDOWS[:_STAYING] * 4 + at.WINDOWS
"""Frames that entries name: mostly of slots that stay."""
_GFNS_WITHOUT_HIGH: tuple[int, ...] = at.POOL_LOW * 4 + at.WINDOWS[_STAYING:]
_LARGE_GFNS = (0, 0, 0x200, 0x200, 0x400, 0x40000, 1, 0x201)


class Generator:
    """Operations for `model` on a machine like `setup`. recent: addresses used last; pending: what is to come next in
    any case.

    Under the sanitizer nobody but the guest changes its page tables. KVM does not hear of the others, and the sanitizer
    asks for shadows that agree with them.
    """

    def __init__(self, random: Random, model: Model, setup: Setup) -> None:
        self.random = random
        self.model = model
        self.setup = setup
        lawful = setup.check
        self.recent: list[int] = []
        self.pending: list[Operation] = []
        self._modes = [name for name in at.MODES if random.random() < 0.6] or [random.choice(at.MODES)]
        self._bad_entries = random.choice((0.0, 0.01, 0.05))
        self._rights = random.choice((0.8, 0.93, 0.98))
        self._present = random.choice((0.9, 0.98))
        self._last_gfn = 0
        self._large = random.choice((0.07, 0.07, 0.25))
        # Where no page table is there can be a large spte.
        self._gfns = _GFNS_WITHOUT_HIGH if setup.thp and random.random() < 0.75 else _GFNS
        self._host_acts = ["pageout", "pageout", "age", "readonly", "writable", "writable"]
        self._races = ["pageout", "pageout", "flap", "age", "hog", "harvest"]
        if setup.thp:
            self._races += ["collapse", "collapse"]
        if not lawful:
            self._host_acts.append("dontneed")
            self._races += ["dontneed", "dontneed", "dontneed"]
        makers: tuple[tuple[Callable[[], Operation], tuple[float, ...]], ...] = (
            (self.access, (40, 80)),
            (self._cross, (1, 8)),
            (self._huge, (1, 5) if setup.thp else (0,)),
            (self._edit, (10, 30)),
            (self._invlpg, (0, 2, 6)),
            (self._cr3, (1, 4, 10)),
            (partial(self._scenario, scenarios.bit), (0, 1, 5)),
            (partial(self._scenario, scenarios.remap), (0, 1, 4)),
            (partial(self._scenario, scenarios.relink), (0, 1, 4)),
            (partial(self._scenario, scenarios.logged), (0, 0.5, 3)),
            (partial(self._scenario, scenarios.rom), (0, 0, 0.5)),
            (partial(self._scenario, scenarios.smm), (0, 1, 4) if setup.mmu == "tdp" else (0,)),
            (partial(self._scenario, large), (2, 5) if setup.thp else (0,)),
            (partial(self._scenario, scenarios.amid), (0, 2, 10) if len(model.cpus) > 1 and not lawful else (0,)),
            (self._pkru, (0, 0.5)),
            (self._mode, (0, 0.2, 1)),
            (self._outside, (0,) if lawful else (0, 0, 0.5)),
            (self._host, (0, 1, 8)),
            (self._unmap, (0,) if lawful else (0, 0, 0.6)),
            (self._hog, (0, 0, 0.3)),
            (self._slot, (0, 0, 0.3)),
            (self._log, (0, 0.2, 2)),
            (self._race, (0, 2, 10)),
        )
        self._makers = [maker for maker, _ in makers]
        self._weights = [random.choice(weights) for _, weights in makers]

    def beginning(self) -> list[Operation]:
        """First contents of the tables, and the mode of each CPU."""
        operations: list[Operation] = []
        cpus = range(len(self.model.cpus))
        modes = [self.random.choice(self._modes) for _ in cpus]
        for hpage in at.POOL:
            mode = at.MODES.index(self.random.choice(modes))
            for word in at.SMALL:
                operations.append(["outside", hpage << 9 | word, self.word(mode)])
            for word in (504, 505, 506):
                operations.append(["outside", hpage << 9 | word, self._pdptr()])
        operations += [["mode", number, modes[number], self.root()] for number in cpus]
        return operations

    def next(self) -> Operation:
        """One operation."""
        if self.pending:
            return self.pending.pop(0)
        return self.random.choices(self._makers, self._weights)[0]()

    def _scenario(self, make: Callable[[Generator], list[Operation]]) -> Operation:
        """The first operation of several that belong together; the others come next."""
        first, *rest = make(self)
        self.pending += rest
        return first

    # Guest.

    def cpu(self) -> tuple[int, Cpu]:
        number = self.random.randrange(len(self.model.cpus))
        return number, self.model.cpus[number]

    def access(self) -> Operation:
        return self.access_of(*self.cpu())

    def access_of(self, number: int, cpu: Cpu) -> Operation:
        """Mostly one that succeeds."""
        random, model = self.random, self.model
        for _ in range(_TRIES):
            va = self._address(cpu)
            kind = random.choice(("r8", "r8", "r8", "r4", "r1", "w8", "w8", "w4", "w1", "a4", "a8", "x"))
            cpl, ac = random.choice((0, 3)), random.random() < 0.3
            path = model.paths(cpu, va)[0]
            if model.verdict(cpu, path, access_by(kind, cpl, ac))[0] == OK or random.random() < 0.1:
                break
        return ["access", number, kind, va, self.stored(cpu), cpl, int(ac)]

    def _cross(self) -> Operation:
        """Into the following page, which is often mapped too, or of two pages by the address of an edit."""
        number, cpu = self.cpu()
        random = self.random
        kind = random.choice(at.CROSSING_KINDS)
        page = at.window_address(cpu.control.mode, random.choice(at.WINDOWS)) if random.random() < 0.4 else -1
        va = (page if page >= 0 else self._address(cpu)) & -4096 | random.randrange(4096)
        return ["cross", number, kind, va, self.stored(cpu), random.choice((0, 3)), int(random.random() < 0.3)]

    def stored(self, cpu: Cpu) -> int:
        """Either an entry, or something that no entry is."""
        if self.random.random() < 0.6:
            return self.word(cpu.control.mode)
        return self.random.getrandbits(64) & ~1

    def _address(self, cpu: Cpu) -> int:
        random = self.random
        if self.recent and random.random() < 0.5:
            page = random.choice(self.recent)
        else:
            page = self._page(cpu.control.mode)
            if self.model.paths(cpu, page)[0].kind == OK:
                self.recent.append(page)
                del self.recent[:-_RECENT]
        return page | self._offset(cpu.control.mode)

    def _offset(self, mode: int) -> int:
        random = self.random
        if random.random() < 0.6:
            return random.choice(_TABLE_WORDS) * 8 + random.choice((0, 0, 4))
        return random.randrange(4096)

    def _page(self, mode: int) -> int:
        random = self.random
        if mode == at.NONPAGING:
            return random.choice((*_GFNS, *at.HOLES)) << 12
        if mode == at.PT32:
            return random.choice(_INDICES32) << 22 | random.choice(_INDICES32) << 12
        if mode == at.PAE:
            return random.randrange(3) << 30 | random.choice(at.SMALL) << 21 | random.choice(at.SMALL) << 12
        levels = levels_of(mode)
        page = 0
        for level in range(levels, 0, -1):
            index = random.choice(at.SMALL)
            if level == levels and index == _UPPER_HALF:
                page = -1
            page = page << 9 | index
        return page << 12 & at.MASK64

    def _edit(self) -> Operation:
        """A store to a page by the address at which it always can be stored to."""
        number, cpu = self.cpu()
        random = self.random
        mode = cpu.control.mode
        gfn = self._last_gfn if random.random() < 0.4 else random.choice(at.WINDOWS)
        self._last_gfn = gfn
        place = at.window_address(mode, gfn) | random.choice(_TABLE_WORDS) * 8
        if random.random() < 0.15:
            self.pending += self._look_after_edit(number, cpu)
        if mode == at.PT32:
            place |= random.choice((0, 4))
            return ["access", number, "w4", place, self.entry32(), 0, 0]
        kind = random.choice(("w8", "w8", "w8", "w8", "a8", "w4", "w1"))
        is_pdptr = place & 0xFFF >= at.PDPT_OFFSET and random.random() < 0.7
        return ["access", number, kind, place, self._pdptr() if is_pdptr else self.word(mode), 0, 0]

    def _look_after_edit(self, number: int, cpu: Cpu) -> list[Operation]:
        flush: Operation = ["cr3", number, cpu.control.cr3 & -4096]
        page = self.random.choice(self.recent or [0])
        if self.random.random() < 0.5:
            flush = ["invlpg", number, page]
        return [flush, ["access", number, self.random.choice(("r8", "w8")), page, self.stored(cpu), 0, 1]]

    def word(self, mode: int) -> int:
        if mode == at.PT32:
            return self.entry32() | self.entry32() << 32
        random = self.random
        bits = self._flags()
        gfn = random.choice(self._gfns) if random.random() < 0.94 else random.choice(at.HOLES)
        if random.random() < self._large:
            gfn = random.choice(_LARGE_GFNS)
            bits |= at.LARGE
        if random.random() > self._rights:
            bits |= at.NX
        if random.random() < self._bad_entries:
            bits |= 1 << random.choice((40, 45, 51, 52, 62))
        if random.random() < 0.1:
            bits |= random.randrange(16) << 59
        return gfn << 12 | bits

    def entry32(self) -> int:
        random = self.random
        bits = self._flags()
        gfn = random.choice(self._gfns) if random.random() < 0.94 else random.choice(at.HOLES)
        if random.random() < 0.15:
            gfn = random.choice((0, 0, 0x400, 0x1))
            bits |= at.LARGE
        if random.random() < self._bad_entries:
            bits |= 1 << 21
        return gfn << 12 | bits

    def _flags(self) -> int:
        random = self.random.random
        bits: int = at.PRESENT if random() < self._present else 0
        bits |= at.WRITABLE if random() < self._rights else 0
        bits |= at.USER if random() < self._rights else 0
        bits |= at.ACCESSED if random() < 0.6 else 0
        bits |= at.DIRTY if random() < 0.4 else 0
        return bits | (1 << 8 if random() < 0.1 else 0)

    def _pdptr(self) -> int:
        return self.random.choice(self._gfns) << 12 | (at.PRESENT if self.random.random() < 0.9 else 0)

    def root(self) -> int:
        return self.random.choice(at.ROOTS) << 12

    def _invlpg(self) -> Operation:
        number, cpu = self.cpu()
        return ["invlpg", number, self._address(cpu)]

    def _cr3(self) -> Operation:
        number, cpu = self.cpu()
        return ["cr3", number, cpu.control.cr3 & -4096 if self.random.random() < 0.5 else self.root()]

    def _pkru(self) -> Operation:
        return ["pkru", self.cpu()[0], self.random.getrandbits(32)]

    def _mode(self) -> Operation:
        self.recent.clear()
        return ["mode", self.cpu()[0], self.random.choice(self._modes), self.root()]

    # Host.

    def _huge(self) -> Operation:
        if self.setup.params.nx_huge_pages and self.random.random() < 0.5:
            return ["recover"]
        return [self.random.choice(("collapse", "collapse", "reprotect")), self.random.choice((at.LOW, at.HIGH))]

    def _outside(self) -> Operation:
        mode = self.cpu()[1].control.mode
        return ["outside", self.random.choice(at.POOL) << 9 | self.random.choice(_TABLE_WORDS), self.word(mode)]

    def _host(self) -> Operation:
        if self.setup.thp and self.random.random() < 0.7:
            return self._huge()
        pages = (*at.POOL, *at.POOL, at.LINKS, at.LINKS32, at.CODE)
        name = self.random.choice(self._host_acts)
        hpage = self.random.choice(pages)
        if name == "readonly":
            self.pending.append(self.access())
            if self.random.random() < 0.7:
                self.pending.append(["writable", hpage])
        return [name, hpage]

    def _unmap(self) -> Operation:
        if self.random.random() < 0.6:
            return ["map"]
        self.pending.append(self.access())
        return ["unmap", self.random.choice(at.POOL)]

    def _hog(self) -> Operation:
        return ["hog", self.random.randrange(256), self.random.randrange(1, 64)]

    def _slot(self) -> Operation:
        name = "rom" if self.random.random() < 0.4 else "slot"
        return [name, self.random.choice((-1, *at.MOVING_BASES))]

    def _log(self) -> Operation:
        random = self.random
        slot = random.choice((at.LOW, at.HIGH, at.MOVING))
        if self.setup.mmu == "tdp" and random.random() < 0.2:
            slot |= at.IN_SMM
        if random.random() < 0.3:
            return ["log", slot, int(random.random() < (0.25 if self.setup.thp else 0.5))]
        if self.setup.dirty_log in ("manual", "initially-set") and random.random() < 0.6:
            first = random.choice((0, 0, 64))
            return ["clear", slot, first, random.choice((64, 512))]
        return ["harvest", slot]

    def _race(self) -> Operation:
        """Often for a page of the access that follows, which has to fault since its sptes were zapped just before."""
        random = self.random
        act = random.choice(self._races)
        point = random.choice(at.POINTS)
        nth = random.choice((1, 1, 2, 3, 5, 8)) if point.startswith("lock") else random.choice((1, 1, 1, 1, 2))
        race: Operation = ["during", point, nth, act]
        if act == "harvest":
            return [*race, random.choice((at.LOW, at.HIGH, at.MOVING))]
        if act == "collapse":
            return [*race, random.choice((at.LOW, at.HIGH))]
        access = self.access()
        paths = self.model.paths(self.model.cpus[int(access[1])], int(access[3]))
        pages = [path.hpage for path in paths]
        if random.random() < 0.25:
            pages = [step.at >> 9 for path in paths for step in path.steps]
        hpage = random.choice([hpage for hpage in pages if hpage >= 0] or at.POOL)
        if random.random() < 0.3:
            return [*race, hpage]
        zap = self.zap(hpage)
        self.pending += [*zap[1:], [*race, hpage], access]
        return zap[0]

    def zap(self, hpage: int) -> list[Operation]:
        """What takes the sptes of a page away; of a whole slot if that is to leave huge pages as they are."""
        if self.setup.thp and self.random.random() < 0.8:
            return [["reprotect", hpage >> 16]]
        return [["readonly", hpage], ["writable", hpage]]
