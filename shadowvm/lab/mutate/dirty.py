"""Bugs of dirty logging: stores that the log does not see."""

from __future__ import annotations

from functools import partial

from ...kvm import dirty
from ...kvm.mmu import page_fault, rmap
from . import host
from .guest import KERNEL, PAGE, PD, Code
from .mutation import Mutation
from .patch import Edit
from .scenario import Scenario

LOG = partial(host.log_dirty, gpa=PAGE)
HARVEST = partial(host.harvest, gpa=PAGE)

LOGGED = Scenario(
    Code().store(PAGE, 1).host(0).store(PAGE, 2).host(1).store(PAGE, 3).host(1).expect(PAGE, 3).exit(),
    actions=(LOG, HARVEST),
)

LOGGED_TABLE = Scenario(
    Code()
    .host(0)
    .store(PAGE, 0x500000 | 0x63)
    .host(1)
    .store(PD + 24, PAGE | KERNEL)
    .reload_cr3()
    .load(0x600000)
    .exit(),
    actions=(LOG, HARVEST),
)
"""A page that is clean in the log, read-only for that, becomes a page table."""

MUTATIONS = (
    Mutation(
        "enable-log-no-flush",
        "b64d740ea7dd",
        "a log is turned on without a flush: stores through TLB entries that are writable go unseen",
        ("I31", "I17"),
        (Edit(dirty.kvm_mmu_slot_apply_flags, "kvm.flush_remote_tlbs()", "pass"),),
        LOGGED,
    ),
    Mutation(
        "read-log-no-flush",
        "171d595d3b32",
        "a harvest takes W from the sptes and leaves the TLBs writable",
        ("I17",),
        (Edit(dirty.kvm_get_dirty_log, "            kvm.flush_remote_tlbs()\n", "            pass\n"),),
        LOGGED,
    ),
    Mutation(
        "log-forgets-write-fault",
        "",
        "a page becomes writable again and its bit is not set",
        ("I17", "I30"),
        (Edit(page_fault.mmu_set_spte, "fault.slot.dirty_bitmap.add(gfn)", "pass"),),
        LOGGED,
    ),
    Mutation(
        "wrprot-skips-what-has-no-w",
        "7c8a4742c4ab",
        "an spte that the log has made read-only stays MMU-writable when its page becomes a page table",
        ("I25", "I24"),
        (
            Edit(
                rmap.rmap_write_protect,
                "if spte & (PT_WRITABLE | SPTE_MMU_WRITABLE):",
                "if spte & PT_WRITABLE:",
            ),
        ),
        LOGGED_TABLE,
    ),
)
