"""Judging an access: whether some way of translating it explains all that is seen, and following it in the model.

A #PF is always by the tables as they are: whoever would fault by an older entry looks again first. A is set by whoever
walks, D by stores that nothing refuses. Data are of one page, and all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...addr import PAGE_SHIFT
from .layout import ACCESSED, DIRTY, MASK64, PRESENT, device_word
from .model import FAULT, MMIO, OK, Cpu, Mismatch, Model, Outcome, Path
from .paging import FETCH, READ, WRITE, Access, needed_marks

Marks = dict[int, int]
"""By word: bits, of A and D, that the access may have set there."""


class Attempt(NamedTuple):
    """One access and what became of it. kind: of layout.KINDS; value: the operand. elsewhere: what it may have
    loaded from another page than it has stored to."""

    cpu: Cpu
    va: int
    kind: str
    value: int
    access: Access
    outcome: Outcome
    elsewhere: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        return 0 if self.kind == "x" else int(self.kind[1])

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


def settle(model: Model, attempt: Attempt) -> None:
    """Compare what an access did with what it may do, and follow it. Raises Mismatch."""
    cpu, access, outcome = attempt.cpu, attempt.access, attempt.outcome
    paths = model.paths(cpu, attempt.va)
    verdicts = [model.verdict(cpu, path, access) for path in paths]
    marks = _marks(paths, verdicts, access)
    if outcome.kind == FAULT:
        fresh = [verdict for verdict, path in zip(verdicts, paths, strict=True) if path.is_fresh]
        if (FAULT, outcome.error) not in fresh or outcome.address != attempt.va:
            raise Mismatch(f"#PF({outcome.error:#x}) at {outcome.address:#x}; {_expected(paths, verdicts)}")
        _follow_marks(model, marks, ())
        return
    fitting = [
        path
        for path, (kind, _) in zip(paths, verdicts, strict=True)
        if (kind == outcome.kind or (outcome.kind == OK and kind == MMIO)) and _is_usable(path, access)
    ]
    if not fitting or (outcome.kind == MMIO and access.kind != FETCH):
        raise Mismatch(f"{outcome.kind}; {_expected(paths, verdicts)}")
    if outcome.kind != OK:
        _follow_marks(model, marks, ())
        return
    if attempt.loads and attempt.stores:
        attempt = attempt._replace(elsewhere=_loads_elsewhere(model, attempt, paths))
    _follow_data(model, attempt, fitting, marks)


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


def _follow_data(model: Model, attempt: Attempt, fitting: list[Path], marks: Marks) -> None:
    """The access succeeded: by one of these paths, to which loaded data, stored data and marks must fit."""
    reasons = []
    for path in fitting:
        reason, stored = _try_data(model, attempt, path, marks)
        reason = reason or _try_marks(model, path, attempt.access, stored)
        if not reason and attempt.stores:
            reason = _others_unchanged(model, attempt, fitting, stored, marks)
        if not reason:
            _follow_marks(model, marks, stored)
            for at, word in stored.items():
                if marks.get(at):
                    # The walk has marked the entry, and a TLB may hold it so, before the store overwrote it.
                    model.memory.mark_word(at, marks[at], model.now)
                model.memory.set_word(at, word, model.now)
            return
        reasons.append(reason)
    raise Mismatch("; or ".join(dict.fromkeys(reasons)))


def _try_data(model: Model, attempt: Attempt, path: Path, marks: Marks) -> tuple[str, dict[int, int]]:
    """("", words that a store has changed) if the data fit to this path, else why not."""
    loaded = attempt.outcome.value
    if path.hpage < 0:
        return _try_device(attempt, path), {}
    if attempt.outcome.device:
        return f"stored to a device, not to page {path.hpage:#x}", {}
    if attempt.kind == "x":
        return (f"fetched from page {loaded:#x}, not {path.hpage:#x}" if loaded != path.hpage else ""), {}
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
        after = attempt.value + loaded if attempt.loads else attempt.value
        stored = (old | extra) & ~(mask << shift) | (after & mask) << shift
        if now is None or now == stored:
            return "", {at: stored >> 64 * n & MASK64 for n, at in enumerate(span)}
    what = f"loaded {loaded:#x}, " if attempt.loads else ""
    is_now = "swapped out" if now is None else f"{now:#x}"
    return f"{what}page {path.hpage:#x} offset {attempt.va & 0xFFF:#x} was {old:#x} and is {is_now}", {}


def _try_device(attempt: Attempt, path: Path) -> str:
    """The same where no memory is: a device answers, and gets every byte."""
    gpa, mask = path.gfn << PAGE_SHIFT | attempt.va & 0xFFF, (1 << 8 * attempt.size) - 1
    loaded, answer = attempt.outcome.value, device_word(gpa, attempt.size)
    if attempt.loads and loaded != answer and loaded not in attempt.elsewhere:
        return f"loaded {loaded:#x} at {gpa:#x}, where no memory is, not {answer:#x}"
    stored = (attempt.value + (loaded if attempt.loads else 0)) & mask
    wanted = {gpa + n: stored >> 8 * n & 0xFF for n in range(attempt.size)} if attempt.stores else {}
    return "" if attempt.outcome.device == wanted else f"the device got {_bytes_text(attempt.outcome.device)}"


def _bytes_text(device: Mapping[int, int]) -> str:
    return " ".join(f"{value:02x}@{gpa:x}" for gpa, value in device.items()) or "nothing"


def _combine(words: list[int]) -> int:
    return sum(word << 64 * n for n, word in enumerate(words))


def _try_marks(model: Model, path: Path, access: Access, stored: dict[int, int]) -> str:
    """A and D that must be set by now; not judged of a word that the access itself or another one has stored to."""
    for step in path.steps:
        if not step.current or step.at in stored or step.at in model.raced:
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


def _follow_marks(model: Model, marks: Marks, stored: dict[int, int] | tuple[()]) -> None:
    """Take over A and D from the machine; nothing else may have changed in an entry."""
    for at, allowed in marks.items():
        actual = model.peek(at)
        if actual is None or at in stored:
            continue
        old = model.memory.words.get(at, 0)
        changed = actual ^ old
        if changed & ~allowed or changed & ~actual:
            raise Mismatch(f"entry {old:#x} at word {at:#x} has become {actual:#x}")
        if changed:
            model.memory.mark_word(at, changed, model.now)


def _expected(paths: list[Path], verdicts: list[tuple[str, int]]) -> str:
    texts = []
    for path, (kind, error) in zip(paths, verdicts, strict=True):
        entries = " ".join(f"{step.value:x}{'' if step.current else '(old)'}" for step in path.steps)
        what = f"#PF({error:#x})" if kind == FAULT else kind
        texts.append(f"{what} page {path.hpage:#x} by {entries or 'no table'}")
    return "allowed: " + ", ".join(texts)


def _is_usable(path: Path, access: Access) -> bool:
    """As the tables are, or of older entries that a TLB can hold."""
    if path.is_fresh:
        return True
    if any(not step.current and not step.value & ACCESSED for step in path.steps):
        return False
    leaf = path.steps[-1]
    return leaf.current or access.kind != WRITE or bool(leaf.value & DIRTY)


def _marks(paths: list[Path], verdicts: list[tuple[str, int]], access: Access) -> Marks:
    """D only in the leaf of a store that nothing refuses."""
    marks: Marks = {}
    for path, (kind, _) in zip(paths, verdicts, strict=True):
        for step in path.steps:
            bits = needed_marks(access, kind != FAULT and step is path.steps[-1])
            if step.current and step.value & PRESENT:
                marks[step.at] = marks.get(step.at, 0) | bits << step.shift
    return marks


def _subsets(bits: int) -> list[int]:
    """Every combination of a few bits, the fullest first."""
    found = [0]
    while bits:
        bit = bits & -bits
        bits ^= bit
        found = [each | bit for each in found] + found
    return found
