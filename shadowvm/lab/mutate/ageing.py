"""Bugs of ageing: pages that are in use look idle to the host's reclaim, or lose more than their mark."""

from __future__ import annotations

from ...kvm import notifier
from ...kvm.mmu import rmap
from ...machine import Machine
from ...mm import rmap as mm_rmap
from ...mm.vmscan import try_to_free_pages
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit, Swap
from .scenario import Scenario


def _scan(machine: Machine) -> None:
    """One round of direct reclaim over all that the guest has."""
    try_to_free_pages(machine.host)


SCANNED = Scenario(
    Code().fill(PAGE, 64).host(0).fill(PAGE, 64).host(0).fill(PAGE, 64).host(0).expect(PAGE, PAGE).exit(),
    actions=(_scan,),
)
"""The guest uses its pages all the time, and the host asks again and again."""

MUTATIONS = (
    Mutation(
        "age-returns-0",
        "6316e1c8c6af",
        "kvm says that no page was used, and the host swaps out what the guest works on",
        ("I8",),
        (Swap(notifier.KvmMmuNotifier._age, lambda self, start, end, *, clear: False),),
        SCANNED,
    ),
    Mutation(
        "age-primary-only",
        "1d4832becdc2",
        "a walk clears the host's own mark and does not ask the secondary MMUs for theirs",
        ("I8",),
        (Edit(mm_rmap.folio_referenced, "if mm.notifiers.clear_flush_young:", "if False:"),),
        SCANNED,
    ),
    Mutation(
        "age-takes-write-access",
        "e930bffe95e1",
        "ageing takes an spte's right to write with its mark, and tells nobody",
        ("I9", "I16"),
        (Edit(rmap.kvm_rmap_age, "mark_spte_old(spte)", "mark_spte_old(spte) & ~(PT_WRITABLE | SPTE_MMU_WRITABLE)"),),
        SCANNED,
    ),
)
