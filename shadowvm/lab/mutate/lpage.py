"""Bugs of large pages: sizes that change without a flush, and large sptes where none may be."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Gpa, Hva
from ...config import MIB
from ...kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from ...kvm.mmu import large_spte, lpage, page_fault, page_track, split
from ...machine import Machine
from ...mm import huge
from ...mm.khugepaged import collapse_huge_page
from ...mm.mm_struct import madvise_dontneed, mmap
from ...mm.uaccess import copy_from_user
from . import host
from .guest import DATA, KERNEL, PD, Code
from .host import EXTRA, EXTRA_SLOT
from .mutation import Mutation
from .patch import Edit
from .scenario import Scenario

TABLE_GPA = EXTRA + 0x3000
CONFIG: dict[str, Any] = {"thp": "always", "host_memory": 16 * MIB}


def add_slot(machine: Machine, skip: int = 0, skew: int = 0) -> None:
    """2 MiB or a bit less at EXTRA, which the host has huge pages for."""
    hva = mmap(machine.mm, 2 * HUGE_PAGE_SIZE)
    gpa = Gpa(EXTRA + skip)
    machine.kvm.set_user_memory_region(EXTRA_SLOT, gpa, HUGE_PAGE_SIZE - skip, Hva(hva + skip + skew))


def add_slot_of_small_pages(machine: Machine) -> None:
    """The same, where only khugepaged would make a huge page: the page of zeros is mapped there already."""
    add_slot(machine)
    copy_from_user(machine.mm, host.hva_of(machine, EXTRA + 0x8000), 1)


def log_on_and_off(machine: Machine) -> None:
    """Turn the log of the slot on, and off again."""
    slot = host.slot_of(machine, EXTRA + 0x9000)
    gpa, size = Gpa(slot.base_gfn << PAGE_SHIFT), slot.npages << PAGE_SHIFT
    for flags in (KVM_MEM_LOG_DIRTY_PAGES, 0):
        machine.kvm.set_user_memory_region(slot.id, gpa, size, slot.userspace_addr, flags)


def collapse(machine: Machine) -> None:
    """khugepaged comes by."""
    collapse_huge_page(machine.mm, host.hva_of(machine, EXTRA) >> PAGE_SHIFT)  # type: ignore[arg-type]


def drop_one(machine: Machine) -> None:
    """MADV_DONTNEED of one page of the 2 MiB."""
    madvise_dontneed(machine.mm, Hva(host.hva_of(machine, EXTRA) + 0x8000), 4096)


STORES = Scenario(Code().store(EXTRA, 1).expect(EXTRA, 1).exit(), config=CONFIG, prepare=add_slot)

SHADOWED = Scenario(
    Code()
    .store(TABLE_GPA, 0x400000 | DATA)
    .store(PD + 24, TABLE_GPA | KERNEL)
    .load(0x600000)
    .store(EXTRA + 0x9000, 2)
    .exit(),
    config=CONFIG,
    prepare=add_slot,
)
"""A page table in a page that is large: the next store to that finds no large spte."""

COLLAPSED = Scenario(
    Code().load(EXTRA).store(EXTRA, 1).host(0).store(EXTRA + 0x9000, 2).expect(EXTRA, 1).exit(),
    config=CONFIG,
    prepare=add_slot,
    actions=(collapse,),
)
"""Small pages of the host become a huge one."""

MUTATIONS = (
    Mutation(
        "large-to-table-no-flush",
        "93a423e7045c",
        "a table takes the place of a large spte while TLBs still have that",
        ("I20", "I16"),
        (Edit(page_fault._get_child_sp, "kvm.flush_remote_tlbs()", "pass"),),
        SHADOWED,
    ),
    Mutation(
        "table-to-large-no-flush",
        "3be2264be3c0",
        "a large spte takes the place of a table while TLBs still have its leaves",
        ("I20", "I16"),
        (
            Edit(
                large_spte.mmu_set_large_spte,
                "        kvm.flush_remote_tlbs()\n        old = 0\n",
                "        old = 0\n",
            ),
        ),
        COLLAPSED,
    ),
    Mutation(
        "large-page-out-of-step",
        "ac04527f7947",
        "a slot whose gfns and hvas differ modulo 2 MiB gets large sptes: other memory is mapped",
        ("I29", "I23"),
        (Edit(lpage.is_lpage_disallowed, "not slot.is_congruent or ", ""),),
        Scenario(STORES.guest, config=CONFIG, prepare=partial(add_slot, skew=0x5000)),
    ),
    Mutation(
        "large-page-in-logged-slot",
        "e244584fe3a5",
        "a store to a logged slot gets a large spte: what else is written there goes unseen",
        ("I29", "I30"),
        (Edit(lpage.kvm_mmu_hugepage_adjust, "fault.slot.flags & KVM_MEM_LOG_DIRTY_PAGES", "False"),),
        Scenario(
            Code().host(0).store(EXTRA, 1).exit(),
            config=CONFIG,
            prepare=add_slot,
            actions=(partial(host.log_dirty, gpa=EXTRA),),
        ),
    ),
    Mutation(
        "lpage-count-forgotten",
        "",
        "a shadow page of a guest table does not forbid large sptes over the table",
        ("I28", "I29"),
        (Edit(page_track.account_shadowed, "        kvm_mmu_gfn_disallow_lpage(slot, sp.gfn)\n", "        pass\n"),),
        SHADOWED,
    ),
    Mutation(
        "large-rmap-of-another-gfn",
        "",
        "a large spte is in the rmap list of its neighbour: no invalidation finds it",
        ("I21",),
        (
            Edit(
                large_spte.mmu_set_large_spte,
                "rmap_add_large(kvm, fault.slot, gfn, sptep)",
                "rmap_add_large(kvm, fault.slot, Gfn(gfn + 512), sptep)",
            ),
        ),
        STORES,
    ),
    Mutation(
        "split-without-flush",
        "",
        "an eager split links the table without a flush",
        ("I20", "I16", "I31"),
        (Edit(split._shadow_mmu_split_huge_page, "kvm.flush_remote_tlbs()", "pass"),),
        Scenario(
            Code().store(EXTRA + 0x9000, 1).host(0).exit(),
            config=CONFIG,
            prepare=add_slot,
            actions=(log_on_and_off,),
        ),
    ),
    Mutation(
        "lpage-info-outside-of-slot",
        "c3da7ea316ff",
        "the end of a log looks up a large page that begins below its slot, in an array that has nothing for it",
        ("I29",),
        (Edit(split.kvm_mmu_recover_huge_pages, "slot.base_gfn <= sp.gfn < slot.end_gfn and ", ""),),
        Scenario(
            Code().store(EXTRA + 0x9000, 1).host(0).expect(EXTRA + 0x9000, 1).exit(),
            config=CONFIG,
            prepare=partial(add_slot, skip=0x4000),
            actions=(log_on_and_off,),
        ),
    ),
    Mutation(
        "huge-split-notifies-one-page",
        "c7ab0d2fdc84",
        "the host splits 2 MiB and tells secondary MMUs of 4 KiB",
        ("I1", "I14", "I3"),
        (Edit(huge.split_huge_pmd, "Hva(start + HUGE_PAGE_SIZE)", "Hva(start + 4096)"),),
        Scenario(
            Code().store(EXTRA + 0x9000, 1).host(0).expect(EXTRA + 0x9000, 1).exit(),
            config=CONFIG,
            prepare=add_slot,
            actions=(drop_one,),
        ),
    ),
)
