"""Runs of the oracle: episodes of operations, each on a machine of its own, and what is left of one that fails."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from ...errors import ConfigError
from ..invariants import Sanitizer
from .bed import Bed
from .generate import Generator
from .model import Mismatch
from .operations import Oracle
from .setup import Setup, draw_setup
from .shapes import Operation

EPISODE = 4000
"""Operations after which a new machine begins."""
CHECK_EVERY = 256

Source = Callable[[Oracle], Iterator[Operation]]
"""What gives the operations of an episode, one after the other."""


@dataclass
class Failure:
    """What was seen first, on which machine and after which operations. kind: what stays the same if others lead to it
    too."""

    text: str
    operations: list[Operation]
    kind: str
    details: str = ""
    setup: Setup = field(default_factory=Setup)


@dataclass
class Report:
    """A run: how many operations were done, and the episodes that failed."""

    operations: int = 0
    episodes: int = 0
    failures: list[Failure] = field(default_factory=list)


def random_run(
    setup: Setup, operations: int, seed: int, *, max_failures: int = 1, pinned: Collection[str] | None = None
) -> Iterator[Report]:
    """Random episodes until so many operations are done; yields the report so far after each.

    With `pinned`, each is on a machine of its own: see draw_setup().
    """
    report = Report()
    while report.operations < operations and len(report.failures) < max_failures:
        count = min(EPISODE, operations - report.operations)
        random = Random(seed * 1_000_003 + report.episodes)
        drawn = setup if pinned is None else draw_setup(setup, random, pinned)
        done, failure = _random_episode(drawn, count, random)
        report.operations += done
        report.episodes += 1
        if failure is not None:
            report.failures.append(failure)
        yield report


def _random_episode(setup: Setup, count: int, random: Random) -> tuple[int, Failure | None]:
    done: list[Operation] = []
    counted = 0

    def operations(oracle: Oracle) -> Iterator[Operation]:
        nonlocal counted
        generator = Generator(random, oracle.model, setup)
        for operation in generator.beginning():
            done.append(operation)
            yield operation
        for number in range(count):
            operation = ["check"] if number % CHECK_EVERY == CHECK_EVERY - 1 else generator.next()
            counted = number + 1
            done.append(operation)
            yield operation

    failure = _episode(setup, operations)
    return counted, None if failure is None else Failure(failure[0], done, *failure[1:], setup)


def replay(setup: Setup, sequence: list[Operation]) -> Failure | None:
    """Do these operations; what fails is told with the operations up to it."""
    done: list[Operation] = []

    def operations(_oracle: Oracle) -> Iterator[Operation]:
        for operation in sequence:
            done.append(operation)
            yield operation

    failure = _episode(setup, operations)
    return None if failure is None else Failure(failure[0], done, *failure[1:], setup)


def _episode(setup: Setup, operations: Source) -> tuple[str, str, str] | None:
    """One machine from its start to its end: (what was seen, kind, details), None if all was well.

    Anything that goes wrong is a finding, a bug in the oracle itself included; only the user's errors are not.
    """
    bed = Bed(setup)
    with ExitStack() as stack:
        sanitizer = Sanitizer(bed.machine) if setup.check else None
        try:
            if sanitizer is not None:
                stack.enter_context(sanitizer.watching())
            bed.machine.system.start_thread("oracle", lambda: _do_all(Oracle(bed, setup.smp), operations))
            bed.machine.system.run()
            bed.machine.close()
            if sanitizer is not None:
                sanitizer.finish()
        except ConfigError:
            raise
        except Exception as error:
            bed.machine.close()
            return _describe(error)
    return None


def _do_all(oracle: Oracle, operations: Source) -> None:
    oracle.begin()
    for operation in operations(oracle):
        oracle.do(operation)
    oracle.check()


def _describe(error: Exception) -> tuple[str, str, str]:
    """One line, its kind, and for all but a difference the place."""
    if isinstance(error, Mismatch):
        return str(error), _without_numbers(str(error).partition(";")[0]), ""
    where = traceback.extract_tb(error.__traceback__)[-1].name
    name = type(error).__name__
    text = str(error).partition("\n")[0]
    seen = f"{name}: {text} in {where}"
    return seen, _without_numbers(seen), "".join(traceback.format_exception(error))


def _without_numbers(text: str) -> str:
    return re.sub(r"\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b", "", text)
