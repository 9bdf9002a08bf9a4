"""Random operations about huge pages: 2 MiB are mapped by one entry, and something happens to a part of them.

As in scenarios.py. Whether there is a large spte is up to the MMU; the operations are such that its absence, or that of
the small ones which have to come instead, is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...addr import PAGE_SHIFT
from . import layout as at
from .model import Cpu, Path
from .paging import levels_of
from .scenarios import access_with_path, flush_for, store_to_entry
from .shapes import Operation

if TYPE_CHECKING:
    from .generate import Generator

_TRIES = 24
_SIZE = 1 << 21
_BASES = {at.LOW: at.LOW_BASE, at.HIGH: at.HIGH_BASE}
_PAGES = {slot: tuple(hpage & 0xFFFF for hpage in at.POOL if hpage >> 16 == slot) for slot in _BASES}


class Region(NamedTuple):
    """2 MiB at `va` of CPU `number`, behind which `slot` is; `table` is the page of the entry, -1 for none.

    With a negative `va` the pages are used by the addresses at which they always can be: for two-dimensional paging
    they need not be one for the guest.
    """

    number: int
    cpu: Cpu
    va: int
    slot: int
    table: int = -1

    def address(self, page: int) -> int:
        """Of a page of the slot, of those that can be tables."""
        if self.va < 0:
            return at.window_address(self.cpu.control.mode, _BASES[self.slot] + page)
        return self.va + (page << PAGE_SHIFT)


def large(gen: Generator) -> list[Operation]:
    """A slot's 2 MiB become one page for the guest and for the host, are used, and lose that again."""
    region, before = _region(gen)
    if region is None:
        return before
    use = [look(gen, region) for _ in range(gen.random.choice((1, 1, 2, 3)))]
    kinds = [_host, _log, _worker if gen.setup.params.nx_huge_pages else _log]
    if gen.setup.mmu == "shadow":
        kinds += [_table, _table]
    what = gen.random.choice(kinds)
    return [*before, *_let_it_be(gen, region.slot), *use, *what(gen, region)]


def _let_it_be(gen: Generator, slot: int) -> list[Operation]:
    """What stands against a large page goes, most often."""
    if gen.random.random() < 0.1:
        return []
    logs: list[Operation] = [["log", slot, 0]]
    if gen.setup.mmu == "tdp":
        logs.append(["log", slot | at.IN_SMM, 0])
    return [["map"], *logs, ["collapse", slot]]


def _region(gen: Generator) -> tuple[Region | None, list[Operation]]:
    """Where, and what maps it there; no region if the tables have no place for it."""
    random = gen.random
    slot = at.HIGH if random.random() < 0.8 else at.LOW
    access, number, cpu, path = access_with_path(gen)
    mode = cpu.control.mode
    if mode == at.NONPAGING or (gen.setup.mmu == "tdp" and random.random() < 0.6):
        return Region(number, cpu, -1, slot), [access]
    for _ in range(_TRIES):
        # An entry of level 2, in a table that can be stored to and is not in what it is going to map.
        found = path.steps[levels_of(mode) - 2 :][:1]
        if found and found[0].at >> 9 in at.POOL and found[0].at >> 25 != slot and not path.cause:
            break
        access, number, cpu, path = access_with_path(gen, by=(number, cpu))
    else:
        return None, [access]
    edit = store_to_entry(gen, number, path._replace(steps=found), mode)
    if edit is None:
        return None, [access]
    size = 2 * _SIZE if mode == at.PT32 else _SIZE
    edit[3] = _entry(gen, 0 if mode == at.PT32 else _BASES[slot])
    va = int(access[3]) & -size
    inside = va + _SIZE if mode == at.PT32 and slot == at.HIGH else va
    return Region(number, cpu, inside, slot, found[0].at >> 9), [["access", *edit], flush_for(gen, number, cpu, inside)]


def _entry(gen: Generator, gfn: int) -> int:
    """An entry of level 2 for a large page that mostly allows everything."""
    bits = at.PRESENT | at.ACCESSED | at.LARGE
    for bit, share in ((at.WRITABLE, 0.9), (at.USER, 0.7), (at.DIRTY, 0.7)):
        bits |= bit if gen.random.random() < share else 0
    return gfn << PAGE_SHIFT | bits


def look(gen: Generator, region: Region, page: int = -1, kind: str = "") -> Operation:
    """An access to a page of the region, of those that tell which page they are."""
    random = gen.random
    page = random.choice(_PAGES[region.slot]) if page < 0 else page
    kind = kind or random.choice(("r8", "r8", "x", "w8", "w8", "a8"))
    va = region.address(page) + random.choice(at.SMALL) * 8
    return ["access", region.number, kind, va, gen.stored(region.cpu), 0, 1]


def _host(gen: Generator, region: Region) -> list[Operation]:
    """The host takes a page away, or all of them, and who has it in a TLB has to hear of it."""
    random = gen.random
    page = random.choice(_PAGES[region.slot])
    hpage = region.slot << 16 | page
    again: Operation = ["collapse", region.slot]
    acts: list[list[Operation]] = [[["pageout", hpage], ["hog", 0, 32]], [["reprotect", region.slot]]]
    acts.append([["readonly", hpage], ["writable", hpage], again])
    if not gen.setup.check:
        forget: Operation = ["dontneed", hpage]
        acts += [[forget], [forget], [forget, again]]
    first = [] if random.random() < 0.3 else [look(gen, region, page)]
    act = random.choice(acts)
    if random.random() < 0.2:
        act = [*act, ["during", random.choice(at.POINTS), random.choice((1, 1, 2)), "collapse", region.slot]]
    return [*first, *act, look(gen, region, page), look(gen, region)]


def _log(gen: Generator, region: Region) -> list[Operation]:
    """The slot's log is turned on, and off: what was large becomes small, and large again."""
    slot = region.slot | (at.IN_SMM if region.cpu.smm else 0)
    page = gen.random.choice(_PAGES[region.slot])
    harvest: Operation = ["harvest", slot]
    forget: Operation = ["clear", slot, page, 64] if gen.setup.dirty_log in ("manual", "initially-set") else harvest
    # Loads first, since a store has its small spte set anew.
    looks = [look(gen, region, kind=kind) for kind in (*gen.random.choices(("r8", "x"), k=3), "")]
    store = look(gen, region, page, "w8")
    again = look(gen, region, page, "w8")
    on: Operation = ["log", slot, 1]
    off: Operation = ["log", slot, 0]
    logged = [on, *looks[:3], store, harvest, forget, again, harvest, off]
    return [store, *logged, looks[3], *_host(gen, region)]


def _table(gen: Generator, region: Region) -> list[Operation]:
    """A page of the region is a table, in use before or only then; stores to it by the region are seen."""
    access, path = _by_table_of(gen, region)
    number, cpu = region.number, region.cpu
    steps = [step for step in path.steps if step.at >> 25 == region.slot]
    if not steps:
        return _host(gen, region)
    step = gen.random.choice(steps)
    place = region.address(step.at >> 9 & 0xFFFF) + (step.at & 511) * 8 + step.shift // 8
    value = gen.entry32() if cpu.control.mode == at.PT32 else gen.word(cpu.control.mode)
    kind = "w4" if cpu.control.mode < at.PT64 else "w8"
    used: Operation = ["access", number, "r4", place, 0, 0, 1]
    store: Operation = ["access", number, kind, place, value, 0, 1]
    return [used, access, *gen.random.choice(([], [used])), store, flush_for(gen, number, cpu, int(access[3])), access]


def _by_table_of(gen: Generator, region: Region) -> tuple[Operation, Path]:
    for _ in range(_TRIES):
        access, _, _, path = access_with_path(gen, by=(region.number, region.cpu))
        pages = {step.at >> 9 for step in path.steps}
        if region.table not in pages and any(page >> 16 == region.slot for page in pages):
            break
    return access, path


def _worker(gen: Generator, region: Region) -> list[Operation]:
    """Code is executed in a large page, and the worker of nx_huge_pages takes back what that has split."""
    fetch = look(gen, region, kind="x")
    return [fetch, look(gen, region), ["recover"], *_host(gen, region)]
