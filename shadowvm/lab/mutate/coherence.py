"""Bugs that let shadow tables fall behind the guest's tables, and of references to frames."""

from __future__ import annotations

from dataclasses import replace

from ...kvm import emulate
from ...kvm.mmu import page_fault
from ...params import KvmParams
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit
from .scenario import Scenario
from .shadow import TABLE_IN_USE

TABLE_TRACKED = replace(TABLE_IN_USE, config={"kvm_params": KvmParams(unsync=0)})
"""Without unsync pages a leaf table is tracked as the others are."""

MUTATIONS = (
    Mutation(
        "gpte-write-not-tracked",
        "",
        "a store to a guest page table leaves the spte behind it as it was",
        ("I22", "I23"),
        (Edit(emulate._track_writes, "_changes(window, after, retired)", "()"),),
        TABLE_TRACKED,
    ),
    Mutation(
        "pfn-changed-in-place",
        "",
        "a present spte gets another frame without being zapped and flushed",
        ("I22", "I23", "I19"),
        (
            Edit(emulate._track_writes, "_changes(window, after, retired)", "()"),
            Edit(page_fault.mmu_set_spte, "        drop_spte(kvm, sptep)\n", ""),
        ),
        TABLE_TRACKED,
    ),
    Mutation(
        "zero-page-never-put",
        "7df003c85218",
        "each fault takes a reference to the page of zeros, and release skips it",
        ("FRAME",),
        (
            Edit(
                page_fault._map,
                "    put_page(kvm.mm.host, fault.page)\n",
                "    if fault.page is not kvm.mm.host.zone.zero_page:\n        put_page(kvm.mm.host, fault.page)\n",
            ),
        ),
        Scenario(Code().load(PAGE).exit()),
    ),
)
