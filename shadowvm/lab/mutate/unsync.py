"""Bugs of unsync pages, of what the guest's flushes do to them, of prefetch, and of pages that are being zapped."""

from __future__ import annotations

from functools import partial

from ...events import kvm_faultin_pfn, lock_release
from ...kvm.mmu import page_fault, page_track, prefetch, shadow, sync, sync_spte, unsync
from ...machine import Machine
from . import host
from .guest import DATA, KERNEL, PAGE, PAGE_PDE, PD, PDPT, TABLE, A, Code, P
from .mutation import Mutation
from .patch import Edit
from .scenario import Meanwhile, Scenario

NEXT = PAGE + 0x1000
OTHER_PDE, OTHER_PAGE = PD + 24, PAGE + (2 << 20)


def _redirected() -> Code:
    """PAGE is mapped by TABLE, used, and its entry pointed at the next frame, which holds 8. No flush yet."""
    code = Code().store(PAGE, 7).store(NEXT, 8).store(TABLE, PAGE | DATA).store(PAGE_PDE, TABLE | KERNEL)
    return code.reload_cr3().load(PAGE).store(TABLE, NEXT | DATA)


INVALIDATED = Scenario(_redirected().invlpg(PAGE).expect(PAGE, 8).exit())
CR3_LOADED = Scenario(_redirected().reload_cr3().expect(PAGE, 8).exit())
LINKED_AGAIN = Scenario(_redirected().store(OTHER_PDE, TABLE | KERNEL).expect(OTHER_PAGE, 8).exit())
"""A table that is out of date is linked once more: a new link needs no flush."""

LINKED_ABOVE = Scenario(_redirected().store(PDPT + 64, PD | KERNEL).far_load((8 << 30) + PAGE).exit())
"""So is the directory above it."""

NARROWED = Scenario(
    Code()
    .store(TABLE, PAGE | DATA)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .store(PAGE, 7)
    .store(TABLE, PAGE | P | A)
    .reload_cr3()
    .load(PAGE)
    .exit()
)
"""A page is made read-only."""

MAPS_A_TABLE = Scenario(
    Code()
    .store(PAGE, 7)
    .store(TABLE, PAGE | DATA)
    .store(TABLE + 8, TABLE | DATA)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .load(PAGE)
    .exit()
)
"""Next to the page there is a mapping of the page table itself."""


def _is_page(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == PAGE >> 12


NEIGHBOUR_GOES = Scenario(
    Code().store(NEXT, 8).store(PAGE, 7).load(NEXT).expect(NEXT, 0).exit(),
    actors=(Meanwhile(kvm_faultin_pfn, partial(host.drop, gpa=NEXT), when=_is_page, pause=lock_release),),
)
"""While a page is faulted in, the one beside it is being unmapped."""

MUTATIONS = (
    Mutation(
        "invlpg-no-remote-flush",
        "4539b35881ae",
        "INVLPG drops an spte, and other CPUs that have it cached are not told: nobody will flush for the host now",
        ("I16",),
        (Edit(sync.kvm_mmu_invlpg, "kvm.flush_remote_tlbs()", "pass"),),
        INVALIDATED,
    ),
    Mutation(
        "invlpg-ignored",
        "",
        "INVLPG leaves the spte as it was",
        ("I27",),
        (Edit(sync.kvm_mmu_invlpg, "if _invalidate_addr(vcpu, root, gva):", "if False:"),),
        INVALIDATED,
    ),
    Mutation(
        "linked-before-synced",
        "65855ed8b034",
        "a table that is out of date is linked at another place, where the guest owes no flush",
        ("I27",),
        (Edit(shadow._find_shadow_page, "elif found is not None and found.unsync:", "elif False:"),),
        LINKED_AGAIN,
    ),
    Mutation(
        "linked-before-children-synced",
        "65855ed8b034",
        "so is a directory above such a table",
        ("I27",),
        (Edit(page_fault.fetch, "child.unsync_children and not mmu_sync_children(vcpu, child)", "False"),),
        LINKED_ABOVE,
    ),
    Mutation(
        "sync-flush-deferred",
        "f81602958c11",
        "a sync drops sptes and leaves the flush for later, which finds nothing to flush for",
        ("I16",),
        (Edit(sync._sync_pages, "    elif flush:\n", "    elif False:\n"),),
        CR3_LOADED,
    ),
    Mutation(
        "flush-without-sync",
        "6ad9f15c9482",
        "a flush of everything leaves stale sptes to be found again",
        ("I27",),
        (Edit(sync.kvm_mmu_sync_roots, "if not kvm.stat.mmu_unsync or", "if True or"),),
        CR3_LOADED,
    ),
    Mutation(
        "synced-while-writable",
        "",
        "a page is taken to be in sync while the guest can write its table",
        ("I25",),
        (Edit(sync._write_protect_gfn, "return slot is not None and", "return False and"),),
        CR3_LOADED,
    ),
    Mutation(
        "sync-keeps-rights",
        "",
        "a sync finds that the guest has taken a right away, and leaves it in the spte",
        ("I27",),
        (Edit(sync_spte._sync, "    mmu_spte_set(kvm, sp.q + index, new)\n", ""),),
        NARROWED,
    ),
    Mutation(
        "parents-not-marked",
        "",
        "a page becomes unsync, and the pages above it do not know",
        ("I26",),
        (Edit(unsync.mark_unsync, "    if parent.unsync_children == 1:\n", "    if False:\n"),),
        CR3_LOADED,
    ),
    Mutation(
        "flushes-do-not-exit",
        "",
        "a page becomes unsync, and the guest may flush its TLB unseen",
        ("I26",),
        (Edit(unsync._kvm_unsync_page, "        update_flush_exits(kvm)\n", "        pass\n"),),
        CR3_LOADED,
    ),
    Mutation(
        "directory-made-unsync",
        "",
        "a page directory may be written like a leaf table",
        ("I26", "I25"),
        (Edit(page_track.account_shadowed, "if sp.level > 1 or", "if sp.level > 2 or"),),
        LINKED_AGAIN,
    ),
    Mutation(
        "unsync-page-zapped-and-counted",
        "",
        "a page goes while it is unsync, and stays counted",
        ("I26",),
        (Edit(shadow.kvm_mmu_prepare_zap_page, "        kvm_unlink_unsync_page(kvm, sp)\n", "        pass\n"),),
        Scenario(_redirected().store(PAGE_PDE + 2, 0).exit()),
    ),
    Mutation(
        "prefetch-makes-unsync",
        "",
        "a guess makes a table unsync that nobody has written",
        ("I26",),
        (Edit(unsync.mmu_try_to_unsync_pages, "        if prefetch:\n            return False\n", ""),),
        MAPS_A_TABLE,
    ),
    Mutation(
        "prefetch-during-invalidation",
        "",
        "a guess maps a page again that is being unmapped",
        ("I2", "I10"),
        (Edit(prefetch.pte_prefetch, "if vcpu.kvm.mmu_invalidate_in_progress:", "if False:"),),
        NEIGHBOUR_GOES,
    ),
)
