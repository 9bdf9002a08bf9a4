"""Bugs of the reverse map: sptes that stand in no list, or in that of another frame."""

from __future__ import annotations

from functools import partial

from ...kvm.mmu import page_fault, rmap
from . import host
from .guest import DATA, KERNEL, PAGE, PAGE_PDE, PDPT, PS, TABLE, A, Code, P, W
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

SAME_FRAME = Scenario(
    Code()
    .store(PAGE, 1)
    .store(TABLE, PAGE | P | W | A)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .load(PAGE)
    .store(TABLE, host.EXTRA | DATA)
    .store(PAGE, 7)
    .expect(PAGE, 7)
    .exit(),
    prepare=partial(host.add_alias, gpa=PAGE),
)
"""Two slots have the same memory. An entry is pointed from the one at the other, and its spte is not synced yet."""

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
    Mutation(
        "spte-of-the-same-frame-kept",
        "",
        "an spte that has the right frame, by way of another gfn, stays, and with it its place in the rmap of that",
        ("I21",),
        (Edit(page_fault.mmu_set_spte, " or sp.gfn_of(index) != gfn):\n        drop_spte", "):\n        drop_spte"),),
        SAME_FRAME,
    ),
)
