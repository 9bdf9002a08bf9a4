"""Bugs of the rights that sptes and shadow pages have, and of how they are published."""

from __future__ import annotations

from ...kvm.mmu import page_fault, page_track, role, shadow
from ...kvm.mmu.spte import make_spte
from ...machine import Machine
from .guest import (
    CR0_WP,
    CR4_SMEP,
    DATA,
    EFER_NX,
    KERNEL,
    NX,
    PAGE,
    PAGE_PDE,
    PD,
    PDPT,
    PML4,
    PS,
    RET,
    TABLE,
    A,
    Code,
    D,
    P,
    U,
    W,
)
from .mutation import Mutation
from .patch import Edit
from .scenario import Scenario

SHARED_PMD = Scenario(
    Code()
    .cr0(put=CR0_WP)
    .store(TABLE, (TABLE + 0x1000) | P | A)
    .store(TABLE + 8, (TABLE + 0x2000) | P | W | A)
    .store(TABLE + 0x1000, PAGE | DATA)
    .store(TABLE + 0x2000, (PAGE + 0x1000) | DATA)
    .store(PDPT + 32, TABLE | P | W | A)
    .store(PDPT + 40, TABLE | P | A)
    .reload_cr3()
    .far_load(4 << 30)
    .far_load((4 << 30) + (2 << 20))
    .far_load(5 << 30)
    .far_load((5 << 30) + (2 << 20))
    .exit()
)
"""Two entries of the PDPT, one of them read-only, share a page directory."""

CLEAN_LARGE_PAGE = Scenario(
    Code().store(PAGE_PDE, PAGE | P | W | A | PS).reload_cr3().load(PAGE).store(PAGE, 7).expect(PAGE, 7).exit()
)
"""A large page is read while it is clean, and then written."""


def _user_page(code: Code) -> Scenario:
    return Scenario(
        code.store(PML4, PDPT | KERNEL | U)
        .store(PDPT, PD | KERNEL | U)
        .store(PAGE_PDE, TABLE | KERNEL | U)
        .store(TABLE, PAGE | P | U | A | D)
        .reload_cr3()
        .cr0(clear=CR0_WP)
        .load(PAGE)
        .store(PAGE, 7)
        .expect(PAGE, 7)
        .exit()
    )


USER_PAGE = _user_page(Code())
"""With CR0.WP = 0 the kernel stores to a page that is read-only, and the user's."""

SMEP = _user_page(Code().cr4(CR4_SMEP))
"""So it does while it may not execute the user's pages."""

WP_TOGGLED = Scenario(
    Code()
    .store(TABLE, PAGE | P | A | D)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .cr0(clear=CR0_WP)
    .store(PAGE, 7)
    .cr0(put=CR0_WP)
    .load(PAGE)
    .cr0(clear=CR0_WP)
    .store(PAGE, 8)
    .expect(PAGE, 8)
    .exit()
)
"""The kernel stores to its own read-only page with CR0.WP = 0, and sets it again."""

DATA_PAGE = Scenario(
    Code().store(TABLE, PAGE | DATA | NX).store(PAGE_PDE, TABLE | KERNEL).reload_cr3().store(PAGE, 7).exit()
)
"""A page that is not executable."""

CLEAN_CODE = Scenario(
    Code()
    .efer(EFER_NX)
    .store(TABLE, PAGE | DATA | NX)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .store(PAGE, RET)
    .store(TABLE, PAGE | KERNEL)
    .call(PAGE)
    .expect(PAGE, RET)
    .exit()
)
"""A page that was written becomes executable, for which no flush is owed, and clean."""

TABLE_IN_USE = Scenario(
    Code()
    .store(TABLE, PAGE | DATA)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .store(PAGE, 7)
    .store(TABLE, (PAGE + 0x1000) | DATA)
    .invlpg(PAGE)
    .store(PAGE, 8)
    .expect(PAGE, 8)
    .exit()
)
"""The guest points an entry in use at another frame."""


def _few_shadow_pages(machine: Machine) -> None:
    machine.kvm.n_max_mmu_pages = 10


FEW_SHADOW_PAGES = Scenario(
    Code().fill(PAGE, 1).fill(PAGE + (2 << 20), 1).fill(PAGE + (4 << 20), 1).fill(PAGE + (6 << 20), 1).exit(),
    prepare=_few_shadow_pages,
)
"""Shadow pages have to be recycled."""

MUTATIONS = (
    Mutation(
        "upper-levels-with-leaf-access",
        "CVE-2021-38198",
        "shadow pages of upper levels have the rights of the last level, and are shared where they differ",
        ("I22", "I23"),
        (
            Edit(
                page_fault.kvm_mmu_page_fault,
                "    fault.gfn = gfn\n",
                "    fault.gfn = gfn\n"
                "    walker.access_to[:] = [walker.access_to[walker.level % 6]] * len(walker.access_to)\n",
            ),
        ),
        SHARED_PMD,
    ),
    Mutation(
        "direct-page-ignores-access",
        "6aa0b9dec5d6",
        "the shadow of a large page that is read-only in one mapping serves one that is writable, and the reverse",
        ("I22", "I23"),
        (Edit(page_fault.fetch, "            or child.access != access\n", ""),),
        CLEAN_LARGE_PAGE,
    ),
    Mutation(
        "cr0-wp-keeps-user",
        "69325a122580",
        "the spte with which the kernel may write a read-only page lets the user write it too",
        ("I23",),
        (
            Edit(
                page_fault._cr0_wp_clear_access,
                "(access | ACC_WRITE_MASK) & ~ACC_USER_MASK",
                "access | ACC_WRITE_MASK",
            ),
        ),
        USER_PAGE,
    ),
    Mutation(
        "cr0-wp-keeps-exec",
        "69325a122580",
        "the spte with which the kernel may write a user's page lets the kernel execute it, which SMEP forbids",
        ("I23",),
        (
            Edit(
                page_fault._cr0_wp_clear_access,
                "return access & ~ACC_EXEC_MASK if vcpu.cr4 & CR4_SMEP else access",
                "return access",
            ),
        ),
        SMEP,
    ),
    Mutation(
        "cr0-wp-not-in-role",
        "69325a122580",
        "CR0.WP is set, and sptes of before go on, with which the kernel may write what is read-only",
        ("I23", "I22"),
        (Edit(role.kvm_calc_cpu_role, "cr0 & CR0_WP", "True"),),
        WP_TOGGLED,
    ),
    Mutation(
        "torn-spte",
        "cd5998ebfbc9",
        "an spte is stored in two halves: for a moment the entry is present without its upper half",
        ("I23",),
        (
            Edit(
                page_fault.mmu_set_spte,
                "        spte_change(sptep * 8, old, spte)\n    q[sptep] = spte\n",
                "        spte_change(sptep * 8, old, spte & 0xFFFFFFFF)\n    q[sptep] = spte & 0xFFFFFFFF\n"
                "    if spte_change.on:\n        spte_change(sptep * 8, q[sptep], spte)\n    q[sptep] = spte\n",
            ),
        ),
        DATA_PAGE,
    ),
    Mutation(
        "published-before-listed",
        "Z48",
        "a shadow page is linked before it is on the list: who zaps everything does not find it",
        ("I35",),
        (
            Edit(shadow._alloc_shadow_page, "    kvm.active_mmu_pages[sp.pfn] = sp\n", ""),
            Edit(
                shadow.link_shadow_page,
                "    mmu_spte_set(kvm, sptep, make_nonleaf_spte(sp.pfn))\n",
                "    mmu_spte_set(kvm, sptep, make_nonleaf_spte(sp.pfn))\n    kvm.active_mmu_pages[sp.pfn] = sp\n",
            ),
        ),
        CLEAN_LARGE_PAGE,
    ),
    Mutation(
        "recycled-without-lock",
        "47b0c2e4c220",
        "a fault recycles shadow pages without mmu_lock",
        ("LOCKDEP",),
        (
            Edit(
                page_fault._map,
                "    kvm.mmu_lock.acquire()\n",
                "    make_mmu_pages_available(vcpu)\n    kvm.mmu_lock.acquire()\n",
            ),
        ),
        FEW_SHADOW_PAGES,
    ),
    Mutation(
        "freed-before-flush",
        "",
        "a shadow page is freed before the TLBs are flushed, and walkers have left it",
        ("I18", "I16"),
        (Edit(shadow.kvm_mmu_commit_zap_page, "    kvm.flush_remote_tlbs()\n", ""),),
        FEW_SHADOW_PAGES,
    ),
    Mutation(
        "narrowed-without-flush",
        "",
        "a fault takes the right to write from an spte, and TLBs keep it",
        ("I16",),
        (
            Edit(
                page_fault.mmu_set_spte,
                "    if old & SPTE_MMU_WRITABLE and not spte & SPTE_MMU_WRITABLE:\n        kvm.flush_remote_tlbs()\n",
                "",
            ),
        ),
        CLEAN_CODE,
    ),
    Mutation(
        "table-not-write-protected",
        "",
        "a page becomes a page table, and the guest goes on writing it unseen",
        ("I25",),
        (Edit(page_track.account_shadowed, "rmap_write_protect(kvm, slot, sp.gfn)", "False"),),
        TABLE_IN_USE,
    ),
    Mutation(
        "host-write-access-assumed",
        "",
        "an spte is writable whatever the host pte says: a store goes into the page of zeros",
        ("I23",),
        (Edit(make_spte, "    if host_writable:\n", "    if True:\n"),),
        Scenario(Code().load(PAGE).exit()),
    ),
)
