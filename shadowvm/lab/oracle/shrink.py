"""Cutting a failing sequence down to the operations that matter (delta debugging, Zeller and Hildebrandt 2002)."""

from __future__ import annotations

from collections.abc import Callable

from .run import Failure, replay
from .setup import Setup
from .shapes import Operation

MAX_TRIALS = 2000


def shrink(setup: Setup, failure: Failure) -> Failure:
    """The same kind of failure by fewer operations. Parts are left out, in halves first and one by one at last."""
    trials = 0

    def fails(operations: list[Operation]) -> Failure | None:
        nonlocal trials
        trials += 1
        if trials > MAX_TRIALS:
            return None
        found = replay(setup, operations)
        return found if found is not None and found.kind == failure.kind else None

    # At the end of an episode all memory is compared; now that comes last in the sequence.
    best = fails(failure.operations) or failure
    size = max(len(best.operations) // 2, 1)
    while True:
        smaller = _without_chunks(best, size, fails)
        if smaller is best and size == 1:
            return _simplified(best, fails)
        best = smaller
        size = max(size // 2, 1)


def _without_chunks(best: Failure, size: int, fails: Callable[[list[Operation]], Failure | None]) -> Failure:
    """Leave out each run of `size` operations that is not needed, the latest first."""
    start = len(best.operations)
    while start > 0:
        start = max(start - size, 0)
        operations = best.operations[:start] + best.operations[start + size :]
        found = fails(operations) if operations else None
        if found is not None:
            best = found
            start = min(start, len(best.operations))
    return best


def _simplified(best: Failure, fails: Callable[[list[Operation]], Failure | None]) -> Failure:
    """Accesses by the supervisor, and without AC, where that fails as well."""
    for number in range(len(best.operations)):
        operation = best.operations[number] if number < len(best.operations) else []
        if operation and operation[0] in ("access", "cross", "amid") and operation[-2:] != [0, 0]:
            plain: Operation = [*operation[:-2], 0, 0]
            found = fails([*best.operations[:number], plain, *best.operations[number + 1 :]])
            best = found or best
    return best
