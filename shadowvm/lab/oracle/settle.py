"""Judging an access: whether some way of translating it explains all that is seen, and following it in the model.

A #PF is always by the tables as they are: whoever would fault by an older entry looks again first. A is set by whoever
walks, D by stores that nothing refuses. Data are of one page, and all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

from ...addr import PAGE_SHIFT
from .layout import ACCESSED, DIRTY, MASK64, PRESENT, PT64, device_word
from .model import FAULT, MMIO, OK, Cpu, Mismatch, Model, Outcome, Path
from .paging import FETCH, READ, WRITE, Access, needed_marks

Marks = dict[int, int]
"""By word: bits, of A and D, that the access may have set there."""


class Attempt(NamedTuple):
    """One access, or its part in one page, and what became of it. kind: of layout.KINDS; size: bytes, 0 for a fetch;
    stored: what it stores. elsewhere: what it may have loaded from another page than it has stored to."""

    cpu: Cpu
    va: int
    kind: str
    size: int
    stored: int
    access: Access
    outcome: Outcome
    elsewhere: frozenset[int] = frozenset()

    @property
    def loads(self) -> bool:
        return self.kind[0] in "ra"

    @property
    def stores(self) -> bool:
        return self.kind[0] in "wa"

    def span(self, hpage: int) -> tuple[int, ...]:
        """The words of a page that it touches: one, or two if it is not aligned."""
        first = hpage << 9 | (self.va & 0xFFF) >> 3
        return (first, first + 1) if (self.va & 7) + self.size > 8 else (first,)


class Part(NamedTuple):
    """An attempt, and the ways in which it may be translated, with what each would come to."""

    attempt: Attempt
    paths: list[Path]
    verdicts: list[tuple[str, int]]


def attempts(cpu: Cpu, va: int, kind: str, value: int, access: Access, outcome: Outcome) -> list[Attempt]:
    """An access as a whole; in two parts, lower address first, if it crosses the end of a page."""
    size = 0 if kind == "x" else int(kind[1])
    stored = value + (outcome.value if kind[0] == "a" else 0)
    first = 0x1000 - (va & 0xFFF)
    if size <= first:
        return [Attempt(cpu, va, kind, size, stored, access, outcome)]
    device = outcome.device.items()
    low = outcome._replace(
        value=outcome.value & (1 << 8 * first) - 1, device={gpa: byte for gpa, byte in device if gpa & 0x800}
    )
    high = outcome._replace(
        value=outcome.value >> 8 * first, device={gpa: byte for gpa, byte in device if not gpa & 0x800}
    )
    following = va + first & (0xFFFFFFFF if cpu.control.mode < PT64 else MASK64)
    return [
        Attempt(cpu, va, kind, first, stored, access, low),
        Attempt(cpu, following, kind, size - first, stored >> 8 * first, access, high),
    ]


def settle(model: Model, tried: list[Attempt]) -> None:
    """Compare what an access did with what it may do, and follow it. Raises Mismatch."""
    parts = [_look(model, attempt) for attempt in tried]
    marks = dict(model.begun)
    for part in parts:
        _add_marks(marks, part)
    outcome = tried[0].outcome
    if outcome.kind == FAULT:
        _settle_fault(parts, outcome)
        _follow_marks(model, parts, marks, ())
        return
    kinds = [_kinds(part) for part in parts]
    if outcome.kind == OK:
        may_be = all(OK in each or MMIO in each for each in kinds)
    else:
        may_be = any(outcome.kind in each for each in kinds)
    if not may_be or (outcome.kind == MMIO and tried[0].access.kind != FETCH):
        raise Mismatch(f"{outcome.kind}; {_expected(parts)}")
    if outcome.kind != OK:
        _follow_marks(model, parts, marks, ())
        return
    _follow_data(model, parts, marks)


def _look(model: Model, attempt: Attempt) -> Part:
    paths = model.paths(attempt.cpu, attempt.va)
    return Part(attempt, paths, [model.verdict(attempt.cpu, path, attempt.access) for path in paths])


def marks_of(model: Model, tried: list[Attempt]) -> Marks:
    """What an access that has only begun may have marked."""
    marks: Marks = {}
    for attempt in tried:
        _add_marks(marks, _look(model, attempt))
    return marks


def _kinds(part: Part) -> set[str]:
    """What the part may come to, by any path that may be used."""
    usable = (_is_usable(path, part.attempt.access) for path in part.paths)
    return {kind for (kind, _), may in zip(part.verdicts, usable, strict=True) if may}


def _settle_fault(parts: list[Part], outcome: Outcome) -> None:
    """A part faults. Of two that do, either may be told: an instruction that also stores looks at both pages for its
    load first."""
    for part in parts:
        fresh = [verdict for verdict, path in zip(part.verdicts, part.paths, strict=True) if path.is_fresh]
        if (FAULT, outcome.error) in fresh and outcome.address == part.attempt.va:
            return
    raise Mismatch(f"#PF({outcome.error:#x}) at {outcome.address:#x}; {_expected(parts)}")


def _loads_elsewhere(model: Model, attempt: Attempt, paths: list[Path]) -> frozenset[int]:
    """What an instruction that also stores may have loaded: by an older entry that serves loads only, so that its store
    looked at the tables again, and found another page."""
    access = attempt.access._replace(kind=READ)
    found = set()
    for path in paths:
        if path.hpage < 0 or not _is_usable(path, access) or model.verdict(attempt.cpu, path, access)[0] != OK:
            continue
        value = _combine([model.memory.words.get(at, 0) for at in attempt.span(path.hpage)])
        found.add(value >> 8 * (attempt.va & 7) & (1 << 8 * attempt.size) - 1)
    return frozenset(found)


def _follow_data(model: Model, parts: list[Part], marks: Marks) -> None:
    """The access succeeded: each part by one of its paths, to which loaded data, stored data and marks must fit."""
    stored: dict[int, int] = {}
    for part in parts:
        # Another part may store to an entry that this one has marked.
        others = {at for other in parts if other is not part for at in _touched(other)}
        stored |= _find_words(model, part, marks, others)
    cpu = parts[0].attempt.cpu
    _follow_marks(model, parts, marks, stored)
    for at, word in stored.items():
        if marks.get(at):
            # The walk has marked the entry, and a TLB may hold it so, before the store overwrote it.
            model.memory.mark_word(at, marks[at], model.now, cpu.smm)
        model.memory.set_word(at, word, model.now, cpu.smm)


def _touched(part: Part) -> set[int]:
    """The words that it may store to."""
    pages = {path.hpage for path in part.paths if path.hpage >= 0} if part.attempt.stores else ()
    return {at for hpage in pages for at in part.attempt.span(hpage)}


def _find_words(model: Model, part: Part, marks: Marks, others: set[int]) -> dict[int, int]:
    """By the first path that explains what is seen: the words that it has stored. others: words that say nothing."""
    attempt, reasons = part.attempt, []
    if attempt.loads and attempt.stores:
        attempt = attempt._replace(elsewhere=_loads_elsewhere(model, attempt, part.paths))
    fitting = [
        path
        for path, (kind, _) in zip(part.paths, part.verdicts, strict=True)
        if kind in (OK, MMIO) and _is_usable(path, attempt.access)
    ]
    for path in fitting:
        reason, stored = _try_data(model, attempt, path, marks)
        reason = reason or _try_marks(model, path, attempt.access, stored.keys() | others)
        if not reason and attempt.stores:
            reason = _others_unchanged(model, attempt, fitting, stored, marks)
        if not reason:
            return stored
        reasons.append(reason)
    raise Mismatch("; or ".join(dict.fromkeys(reasons)))


def _try_data(model: Model, attempt: Attempt, path: Path, marks: Marks) -> tuple[str, dict[int, int]]:
    """("", words that a store has changed) if the data fit to this path, else why not."""
    loaded = attempt.outcome.value
    if path.hpage < 0:
        return _try_device(attempt, path), {}
    if attempt.outcome.device and not path.rom:
        return f"stored to a device, not to page {path.hpage:#x}", {}
    if attempt.kind == "x":
        return (f"fetched from page {loaded:#x}, not {path.hpage:#x}" if loaded != path.hpage else ""), {}
    if path.rom and attempt.outcome.device != _device_bytes(attempt, path):
        return f"the device got {_bytes_text(attempt.outcome.device)}", {}
    span = attempt.span(path.hpage)
    old = _combine([model.memory.words.get(at, 0) for at in span])
    actual = [model.peek(at) for at in span]
    now = None if None in actual else _combine([word or 0 for word in actual])
    shift, mask = 8 * (attempt.va & 7), (1 << 8 * attempt.size) - 1
    for extra in _subsets(_combine([marks.get(at, 0) for at in span])):
        before = (old | extra) >> shift & mask
        if attempt.loads and loaded != before and loaded not in attempt.elsewhere:
            continue
        if not attempt.stores:
            return "", {}
        if path.rom:
            if now is None or now == old | extra:
                return "", {}
            continue
        stored = (old | extra) & ~(mask << shift) | (attempt.stored & mask) << shift
        if now is None or now == stored:
            return "", {at: stored >> 64 * n & MASK64 for n, at in enumerate(span)}
    what = f"loaded {loaded:#x}, " if attempt.loads else ""
    is_now = "swapped out" if now is None else f"{now:#x}"
    return f"{what}page {path.hpage:#x} offset {attempt.va & 0xFFF:#x} was {old:#x} and is {is_now}", {}


def _device_bytes(attempt: Attempt, path: Path) -> dict[int, int]:
    gpa = path.gfn << PAGE_SHIFT | attempt.va & 0xFFF
    return {gpa + n: attempt.stored >> 8 * n & 0xFF for n in range(attempt.size)} if attempt.stores else {}


def _try_device(attempt: Attempt, path: Path) -> str:
    """The same where no memory is: a device answers, and gets every byte."""
    gpa = path.gfn << PAGE_SHIFT | attempt.va & 0xFFF
    loaded, answer = attempt.outcome.value, device_word(gpa, attempt.size)
    if attempt.loads and loaded != answer and loaded not in attempt.elsewhere:
        return f"loaded {loaded:#x} at {gpa:#x}, where no memory is, not {answer:#x}"
    wanted = _device_bytes(attempt, path)
    return "" if attempt.outcome.device == wanted else f"the device got {_bytes_text(attempt.outcome.device)}"


def _bytes_text(device: Mapping[int, int]) -> str:
    return " ".join(f"{value:02x}@{gpa:x}" for gpa, value in device.items()) or "nothing"


def _combine(words: list[int]) -> int:
    return sum(word << 64 * n for n, word in enumerate(words))


def _try_marks(model: Model, path: Path, access: Access, stored: Set[int]) -> str:
    """A and D that must be set by now; not judged of a word that the access itself or another one has stored to."""
    for step in path.steps:
        if not step.current or step.rom or step.at in stored or step.at in model.raced:
            continue
        needed = needed_marks(access, step is path.steps[-1])
        actual = model.peek(step.at)
        if actual is not None and actual >> step.shift & needed != needed:
            missing = "A" if not actual >> step.shift & ACCESSED else "D"
            return f"{missing} is not set in entry {actual >> step.shift:#x} at word {step.at:#x}"
    return ""


def _others_unchanged(model: Model, attempt: Attempt, fitting: list[Path], stored: dict[int, int], marks: Marks) -> str:
    """If the store may have gone to several pages it has changed one of them."""
    for hpage in sorted({path.hpage for path in fitting if path.hpage >= 0}):
        for at in attempt.span(hpage):
            actual = model.peek(at)
            if at in stored or actual is None:
                continue
            if (actual ^ model.memory.words.get(at, 0)) & ~marks.get(at, 0):
                return f"word {at:#x} has changed too: {actual:#x}"
    return ""


def _follow_marks(model: Model, parts: list[Part], marks: Marks, stored: dict[int, int] | tuple[()]) -> None:
    """Take over A and D from the machine; nothing else may have changed in an entry."""
    own: Marks = {}
    for part in parts if model.begun else ():
        _add_marks(own, part)
    smm = parts[0].attempt.cpu.smm
    for at, allowed in marks.items():
        actual = model.peek(at)
        if actual is None or at in stored:
            continue
        old = model.memory.words.get(at, 0)
        changed = actual ^ old
        if changed & ~allowed or changed & ~actual:
            raise Mismatch(f"entry {old:#x} at word {at:#x} has become {actual:#x}")
        if changed:
            model.memory.mark_word(at, changed, model.now, _whose(model, smm, at, own))


def _whose(model: Model, smm: bool, at: int, own: Marks) -> bool | None:
    """By which address space a word was marked, when an access in `smm` was done amid another; None: who can say."""
    if at not in model.begun or smm == model.begun_in_smm:
        return smm
    return None if at in own else model.begun_in_smm


def _expected(parts: list[Part]) -> str:
    return "allowed: " + ", and then ".join(map(_ways, parts))


def _ways(part: Part) -> str:
    texts = []
    for path, (kind, error) in zip(part.paths, part.verdicts, strict=True):
        entries = " ".join(f"{step.value:x}{'' if step.current else '(old)'}" for step in path.steps)
        what = f"#PF({error:#x})" if kind == FAULT else kind
        texts.append(f"{what} page {path.hpage:#x} by {entries or 'no table'}")
    return ", ".join(texts)


def _is_usable(path: Path, access: Access) -> bool:
    """As the tables are, or of older entries that a TLB can hold."""
    if path.is_fresh:
        return True
    if any(not step.current and not step.rom and not step.value & ACCESSED for step in path.steps):
        return False
    leaf = path.steps[-1]
    return leaf.current or leaf.rom or access.kind != WRITE or bool(leaf.value & DIRTY)


def _add_marks(marks: Marks, part: Part) -> None:
    """A in every entry that may be used, D only in the leaf of a store that nothing refuses."""
    access = part.attempt.access
    for path, (kind, _) in zip(part.paths, part.verdicts, strict=True):
        for step in path.steps:
            bits = needed_marks(access, kind != FAULT and step is path.steps[-1])
            if step.current and not step.rom and step.value & PRESENT:
                marks[step.at] = marks.get(step.at, 0) | bits << step.shift


def _subsets(bits: int) -> list[int]:
    """Every combination of a few bits, the fullest first."""
    found = [0]
    while bits:
        bit = bits & -bits
        bits ^= bit
        found = [each | bit for each in found] + found
    return found
