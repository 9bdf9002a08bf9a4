"""Bugs of the reverse map: sptes that stand in no list, or in that of another frame."""

from __future__ import annotations

from functools import partial

from ...kvm.mmu import page_fault, rmap
from . import host
from .guest import DATA, PAGE, PDPT, PS, Code
from .mutation import Mutation
from .patch import Edit
from .scenario import Scenario
from .shadow import TABLE_IN_USE

GIB = 1 << 30

REDIRECTED = Scenario(
    Code().store(PDPT + 8, DATA | PS).reload_cr3().load(GIB + PAGE).host(0).load(GIB + PAGE + (2 << 20)).exit(),
    prepare=partial(host.add_slot, gpa=GIB),
    actions=(partial(host.write, gpa=PDPT + 8, value=GIB | DATA | PS),),
)
"""From outside of the guest the entry of a page of 1 GiB is pointed at another one."""

MUTATIONS = (
    Mutation(
        "direct-page-of-another-gfn",
        "0cb2af2ea66a",
        "the shadow of a large page goes on below an entry that names another: its sptes are in the wrong rmap",
        ("I21", "I22", "I23"),
        (Edit(page_fault.fetch, "            or child.gfn != table_gfn\n", ""),),
        REDIRECTED,
    ),
    Mutation(
        "rmap-entry-left-behind",
        "",
        "a dropped spte stays in its rmap list",
        ("I21",),
        (Edit(rmap.drop_spte, "    rmap_remove(slot, gfn, sptep)\n", ""),),
        TABLE_IN_USE,
    ),
    Mutation(
        "rmap-entry-missing",
        "",
        "an spte is in no rmap list: no invalidation finds it",
        ("I21",),
        (Edit(page_fault.mmu_set_spte, "rmap_add(kvm, fault.slot, gfn, sptep)", "False"),),
        TABLE_IN_USE,
    ),
)
