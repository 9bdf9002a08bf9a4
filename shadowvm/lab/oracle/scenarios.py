"""Random operations that belong together: each sets up a state in which one mechanism shows, and looks at it.

Every function returns a few operations for the generator, which do one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layout as at
from .model import OK, Cpu, Path, access_of
from .shapes import BITS, Operation

if TYPE_CHECKING:
    from .generate import Generator

_TRIES = 24
"""So often an access is looked for that tells two states apart."""
_OF_ENTRIES = ("pse", "nxe")
"""Control bits that say what an entry means, not only what it allows."""


def bit(gen: Generator) -> list[Operation]:
    """A control bit there and back, with the same access after both: most often one that it decides about.

    Sometimes followed by the same of the other privilege.
    """
    number, cpu = gen.cpu()
    name, value = gen.random.choice(("wp", *BITS)), gen.random.randrange(2)
    access = _telling_access(gen, number, cpu, name)
    if gen.random.random() < 0.2:
        return [["bit", number, name, value]]
    other: Operation = [*access[:5], 3 - int(access[5]), access[6]]
    accesses = [access, other] if gen.random.random() < 0.4 else [access]
    return [["bit", number, name, value], *accesses, ["bit", number, name, 1 - value], *accesses]


def _telling_access(gen: Generator, number: int, cpu: Cpu, name: str) -> Operation:
    control, model = cpu.control, gen.model
    old = getattr(control, name)
    access = gen.access_of(number, cpu)
    for _ in range(_TRIES):
        va, by = int(access[3]), access_of(str(access[2]), int(access[5]), bool(access[6]))
        verdicts = []
        for value in (False, True):
            setattr(control, name, value)
            if name in _OF_ENTRIES:
                model.forget()
            verdicts.append(model.verdict(cpu, model.paths(cpu, va)[0], by))
        setattr(control, name, old)
        if name in _OF_ENTRIES:
            model.forget()
        if verdicts[0] != verdicts[1]:
            break
        access = gen.access_of(number, cpu)
    return access


def remap(gen: Generator) -> list[Operation]:
    """The CPU changes an entry that it has used, flushes, and looks."""
    access, number, cpu, path = access_with_path(gen)
    stores = [store_to_entry(gen, number, path, cpu.control.mode) for _ in range(gen.random.choice((1, 1, 2)))]
    after: Operation = ["access", number, "r4", access[3], 0, 0, 1]
    edits: list[Operation] = [["access", *store] for store in stores if store]
    return [access, *edits, flush_for(gen, number, cpu, int(access[3])), gen.random.choice((access, after))]


def relink(gen: Generator) -> list[Operation]:
    """A leaf entry changes, and then the tables above it are linked at a place where nothing was: no flush is due.

    The first access there is by a neighbour of the entry, since a fault sets its own spte anew.
    """
    access, number, cpu, path = access_with_path(gen)
    for _ in range(_TRIES):
        # Only a page that is nothing but a leaf table can be out of sync.
        pages = [step.at >> 9 for step in path.steps]
        if path.kind == OK and len(pages) > 3 and pages[-1] not in pages[:-1] and pages[-3] != pages[-2]:
            break
        access, number, cpu, path = access_with_path(gen)
    if len(path.steps) < 3:
        return [access]
    upper = path.steps[-3]
    index = gen.random.choice([index for index in at.SMALL[:4] if index != upper.at & 511] or [0])
    va = int(access[3]) & ~(511 << 30) | index << 30
    gfn = _gfn_of(gen, upper.at >> 9)
    edit = store_to_entry(gen, number, path._replace(steps=path.steps[-1:]), cpu.control.mode)
    if gfn not in at.WINDOWS or edit is None:
        return [access]
    place = at.window_address(cpu.control.mode, gfn) | index * 8
    clear: Operation = ["access", number, "w8", place, 0, 0, 0]
    flush: Operation = ["cr3", number, cpu.control.cr3 & -4096]
    link: Operation = ["access", number, "w8", place, upper.value | at.ACCESSED, 0, 0]
    neighbour = gen.random.choice(at.SMALL)
    looks: list[Operation] = [
        ["access", number, "r4", each, 0, 0, 1] for each in (va & ~(511 << 12) | neighbour << 12, va)
    ]
    return [clear, flush, access, ["access", *edit], link, *looks]


def amid(gen: Generator) -> list[Operation]:
    """Another CPU changes an entry of an access that waits. After a flush the new one counts."""
    random = gen.random
    access, number, cpu, path = access_with_path(gen)
    other = random.choice([each for each in range(len(gen.model.cpus)) if each != number])
    point, nth = random.choice(at.POINTS_WITHOUT_LOCKS), random.choice((1, 1, 1, 2))
    store = store_to_entry(gen, other, path, cpu.control.mode)
    if store is None:
        return [access]
    page = path.hpage if path.hpage >= 0 and random.random() < 0.7 else path.steps[-1].at >> 9
    flush = flush_for(gen, number, cpu, int(access[3]))
    return [*gen.zap(page), ["amid", point, nth, *store], access, flush, access]


def logged(gen: Generator) -> list[Operation]:
    """A page is written, harvested, and written again."""
    random = gen.random
    access, _, cpu, path = access_with_path(gen)
    for _ in range(_TRIES):
        if str(access[2])[0] == "w" and path.hpage in at.POOL:
            break
        access, _, cpu, path = access_with_path(gen)
    page = path.hpage if path.hpage >= 0 else at.POOL[0]
    slot = page >> 16 | (at.IN_SMM if cpu.smm else 0)
    again: Operation = [*access[:4], random.getrandbits(64) & ~1, *access[5:]]
    harvest: Operation = ["harvest", slot]
    if gen.setup.dirty_log in ("manual", "initially-set"):
        forget: Operation = ["clear", slot, page & 0xFFFF, 64]
    else:
        forget = harvest
    before = [access] if random.random() < 0.5 else []
    # What an aged page gets back with the next access is not more than it had.
    aged: list[Operation] = []
    if random.random() < (0.3 if gen.setup.params.eptad else 0.7):
        aged = [["age", page], *random.choice(([], [[*access[:2], "r4", *access[3:]]]))]
    return [*before, ["log", slot, 1], forget, access, harvest, forget, *aged, again, harvest]


def rom(gen: Generator) -> list[Operation]:
    """The third slot becomes read-only, a page of it is mapped, and used."""
    random = gen.random
    access, number, cpu, path = access_with_path(gen)
    base = random.choice(at.MOVING_BASES)
    if not path.steps or cpu.control.mode == at.PT32:
        return [["rom", base], access]
    entry = (base + random.choice(at.POOL_MOVING)) << 12 | path.steps[-1].value & 0xFFF | at.PRESENT | at.WRITABLE
    edit = store_to_entry(gen, number, path._replace(steps=path.steps[-1:]), cpu.control.mode)
    if edit is None:
        return [["rom", base], access]
    edit[3] = entry
    flush = flush_for(gen, number, cpu, int(access[3]))
    return [["rom", base], ["access", *edit], flush, access, [*access[:2], "w8", *access[3:]], access]


def smm(gen: Generator) -> list[Operation]:
    """The same access outside and inside of system management mode."""
    number, cpu = gen.cpu()
    access = gen.access_of(number, cpu)
    return [access, ["smm", number, 1 - cpu.smm], access]


def access_with_path(gen: Generator, by: tuple[int, Cpu] | None = None) -> tuple[Operation, int, Cpu, Path]:
    """An access, by this CPU or by any, and how it goes by the tables as they are."""
    number, cpu = by or gen.cpu()
    access = gen.access_of(number, cpu)
    return access, number, cpu, gen.model.paths(cpu, int(access[3]))[0]


def flush_for(gen: Generator, number: int, cpu: Cpu, va: int) -> Operation:
    if gen.random.random() < 0.5:
        return ["invlpg", number, va]
    return ["cr3", number, cpu.control.cr3 & -4096]


def store_to_entry(gen: Generator, number: int, path: Path, mode: int) -> list[int | str] | None:
    """The arguments of a store by CPU `number` to an entry of the path, mostly the leaf's, by the address at which it
    always can. mode: of those who read the entry."""
    if not path.steps:
        return None
    step = path.steps[-1] if gen.random.random() < 0.7 else gen.random.choice(path.steps)
    gfn = _gfn_of(gen, step.at >> 9)
    if gfn not in at.WINDOWS:
        return None
    own = gen.model.cpus[number].control.mode
    place = at.window_address(own, gfn) | (step.at & 511) * 8 + step.shift // 8
    value = gen.entry32() if mode == at.PT32 else gen.word(mode)
    return [number, "w4" if mode == at.PT32 or own < at.PT64 else "w8", place, value, 0, 0]


def _gfn_of(gen: Generator, hpage: int) -> int:
    """Where a host page is outside of system management mode, negative if nowhere."""
    bases = (at.LOW_BASE, at.HIGH_BASE, gen.model.memory.bases.get(at.MOVING, -1))
    base = bases[hpage >> 16] if hpage >= 0 else -1
    return base + (hpage & 0xFFFF) if base >= 0 else -1
