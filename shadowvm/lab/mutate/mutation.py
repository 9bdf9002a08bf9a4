"""One fixed bug of KVM or the mm, put back: what to change, the run in which it shows, and the law that it breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .patch import Change, changed
from .scenario import Finding, Scenario, run_scenario


@dataclass(frozen=True)
class Mutation:
    """breaks: what goes wrong, in a line. laws: those under which it may be found; the first is what it is about.

    commit: of Linux, that fixed the bug or brought the rule; its CVE or number (Z...) where that is not known, and
    "" for a rule that KVM has kept, as far as we know.
    """

    name: str
    commit: str
    breaks: str
    laws: tuple[str, ...]
    changes: tuple[Change, ...]
    scenario: Scenario


class Result:
    """What came of one mutation: its run with the bug, and the same run without it."""

    def __init__(self, mutation: Mutation, broken: Finding, clean: Finding) -> None:
        self.mutation = mutation
        self.broken = broken
        self.clean = clean

    @property
    def found(self) -> bool:
        """The bug was found, and under its law."""
        return self.broken.law in self.mutation.laws

    @property
    def clean_without(self) -> bool:
        """Nothing was found that is not there."""
        return self.clean.law is None

    def as_dict(self) -> dict[str, Any]:
        """As in --json."""
        return {
            "name": self.mutation.name,
            "commit": self.mutation.commit,
            "invariant": self.broken.law,
            "found": self.found,
            "clean_without": self.clean_without,
            "events": self.broken.events,
        }


def run_mutation(mutation: Mutation) -> Result:
    """Run its scenario without the bug and with it."""
    clean = run_scenario(mutation.scenario)
    with changed(*mutation.changes):
        broken = run_scenario(mutation.scenario)
    return Result(mutation, broken, clean)
