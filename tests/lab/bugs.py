"""Seeded bugs for the sanitizer to find: what to break, in which run it shows, and which law it breaks."""

from __future__ import annotations

from typing import NamedTuple

from shadowvm.kvm import emulate, memslot, notifier, vcpu, vm
from shadowvm.kvm.mmu import guest_walker, page_fault, page_track, rmap, root, shadow, spte, sync, sync_spte, unsync
from shadowvm.mm import fault, gup, page_alloc, pgtable, swap, vmscan
from shadowvm.mm import rmap as mm_rmap
from tests import tiny
from tests.kvm.smp import touch_together
from tests.lab.broken import Edit


class Guest(NamedTuple):
    """A bundled guest with its parameters, or the source of a tiny one. Its pages may be raced for (race.py).

    kvm: knobs.
    """

    name: str
    append: str = ""
    source: str = ""
    race: str = ""
    seed: int = 0
    smp: int = 1
    kvm: str = ""


TOUCH = Guest("memtouch", "size=3M passes=2")
TOUCH_RACED = TOUCH._replace(race="whole")
TOUCH_HALFWAY = TOUCH._replace(race="halfway")
TOUCH_PREEMPTED = TOUCH._replace(seed=1)
CHURN = Guest("ptchurn", "pages=512 rounds=1 switches=8")
CHURN_TRACKED = CHURN._replace(kvm="unsync=0")
DEMAND = Guest("demand", "size=1M shared=512k")
CHASE = Guest("chase", "nodes=32k steps=4000")
HELLO = Guest("hello")
ZERO_PAGE = Guest("tiny", source=tiny.READ_THEN_WRITE)
LARGE_PAGE = Guest("tiny", source=tiny.CLEAN_LARGE_PAGE)
ALIASED = Guest("tiny", source=tiny.ALIASED_TABLE)
REMAPPED = Guest("tiny", source=tiny.REMAPPED_PAGE, kvm="unsync=0")
ROOT_ZAPPED = Guest("tiny", source=tiny.ODD_STORE_TO_ROOT)
CR3_LOADED = Guest("tiny", source=tiny.REDIRECTED_CR3)
PGE_FLUSHED = Guest("tiny", source=tiny.REDIRECTED_PGE)
SHOOTDOWN = Guest("smp-shootdown", "pages=512 changes=96", smp=2)
TOGETHER = Guest("tiny", source=touch_together(2, 544), smp=2)
TOGETHER_PREEMPTED = TOGETHER._replace(seed=4)


class Bug(NamedTuple):
    """`edits` break shadowvm; in `guest` one of `laws` is violated, or the guest fails ("guest").

    `blind` laws are taken from the sanitizer, to show that what stands behind them finds the bug as well.
    """

    name: str
    laws: str
    edits: list[Edit]
    guest: Guest = TOUCH
    blind: str = ""


START = notifier.KvmMmuNotifier.invalidate_range_start
END = notifier.KvmMmuNotifier.invalidate_range_end
SERVE = vcpu.Vcpu.service_requests
SPTE = spte.make_spte
SAMPLE = "kvm_mmu_seq_sample(vcpu.id, fault.gfn, fault.mmu_seq)"
SKIP_YOUNG_FLUSH: Edit = (notifier.KvmMmuNotifier.clear_flush_young, "self.kvm.flush_remote_tlbs()", "pass")
SKIP_FLUSH: Edit = (START, "kvm.flush_remote_tlbs()", "pass")

NO_RETRY: Edit = (page_fault._map, "is_page_fault_stale(vcpu, fault)", "False")

NOTIFIER_BUGS = [
    Bug(
        "zap skipped",
        "I3",
        [(START, "kvm_unmap_gfn_range(kvm, slot, first, last, may_yield=range_.blockable)", "False")],
    ),
    Bug("flush skipped", "I16", [SKIP_FLUSH]),
    Bug("flush skipped", "I3", [SKIP_FLUSH, SKIP_YOUNG_FLUSH], blind="I16"),
    Bug("flush skipped", "I4", [SKIP_FLUSH, SKIP_YOUNG_FLUSH], blind="I16 I3"),
    Bug("flush skipped", "POISON SWAP CONTENT guest", [SKIP_FLUSH, SKIP_YOUNG_FLUSH], blind="I16 I3 I4"),
    Bug("flush not served at entry", "I16", [(SERVE, "self.engine.flush_tlb()", "pass")]),
    Bug("flush tells nobody", "I16", [(vm.Kvm.flush_remote_tlbs, "vcpu.requests |= KVM_REQ_TLB_FLUSH", "pass")]),
    Bug(
        "flush after the frame is freed",
        "I16",
        [SKIP_FLUSH, (END, "kvm = self.kvm\n", "kvm = self.kvm; kvm.flush_remote_tlbs()\n")],
    ),
    Bug(
        "flush after mmu_lock is dropped",
        "I16",
        [SKIP_FLUSH, (START, "kvm.mmu_lock.release()", "kvm.mmu_lock.release(); kvm.flush_remote_tlbs()")],
    ),
    Bug(
        "flush before the zap",
        "I16",
        [
            SKIP_FLUSH,
            (START, "kvm_mmu_invalidate_begin(kvm)", "kvm_mmu_invalidate_begin(kvm); kvm.flush_remote_tlbs()"),
        ],
    ),
    Bug("no retry check", "I23", [NO_RETRY], TOUCH_RACED),
    Bug("no retry check", "I10", [NO_RETRY], TOUCH_RACED, "I23"),
    Bug("no retry check", "I2", [NO_RETRY], TOUCH_HALFWAY, "I23"),
    Bug("no retry check", "I3 I4 I7 I21", [NO_RETRY], TOUCH_RACED, "I23 I10"),
    Bug(
        "retry without the range",
        "I2",
        [(page_fault.mmu_invalidate_retry_gfn, "kvm.mmu_invalidate_in_progress and", "False and")],
        TOUCH_HALFWAY,
        "I23",
    ),
    Bug(
        "retry without the sequence",
        "I10",
        [(page_fault.mmu_invalidate_retry_gfn, "kvm.mmu_invalidate_seq != mmu_seq", "False")],
        TOUCH_RACED,
        "I23",
    ),
    Bug(
        "sequence sampled after the frame is looked up",
        "I10",
        [(page_fault.kvm_mmu_faultin_pfn, "fault.page = page\n", f"fault.page = page; {SAMPLE}\n")],
    ),
    Bug(
        "sequence sampled under the lock",
        "I10",
        [(page_fault._map, "kvm.mmu_lock.acquire()", "kvm.mmu_lock.acquire(); fault.mmu_seq = kvm.mmu_invalidate_seq")],
        TOUCH_RACED,
        "I23",
    ),
    Bug("range_end forgotten by kvm", "I13", [(END, "kvm_mmu_invalidate_end(kvm)", "pass")]),
    Bug(
        "range_end forgotten by mm",
        "I13 I15",
        [(mm_rmap.try_to_unmap, "mmu_notifier_invalidate_range_end(range_)", "pass")],
    ),
    Bug(
        "range_start forgotten by mm",
        "I1",
        [(mm_rmap.try_to_unmap, "mmu_notifier_invalidate_range_start(range_)", "range_.started = mm.notifiers")],
    ),
    Bug(
        "sequence moves after the count drops",
        "I11",
        [
            (notifier.kvm_mmu_invalidate_end, "kvm.mmu_invalidate_seq += 1", "pass"),
            (END, "kvm.mmu_lock.release()", "kvm.mmu_lock.release(); kvm.mmu_invalidate_seq += 1"),
        ],
    ),
    Bug(
        "tracked range is not a union",
        "I14",
        [
            (
                notifier.kvm_mmu_invalidate_range_add,
                "kvm.mmu_invalidate_range_start == kvm.mmu_invalidate_range_end",
                "True",
            )
        ],
        TOUCH_PREEMPTED,
    ),
    Bug("range one short", "I3 I14", [(memslot.MemSlots.gfn_ranges, "(slot, first, last)", "(slot, first, last - 1)")]),
    Bug(
        "range begins one late",
        "I3 I14",
        [(memslot.MemSlots.gfn_ranges, "(slot, first, last)", "(slot, first + 1, last)")],
    ),
    Bug(
        "zap hits the neighbour",
        "I3",
        [(notifier.kvm_unmap_gfn_range, "kvm_zap_rmap(kvm, slot, first)", "kvm_zap_rmap(kvm, slot, first + 1)")],
    ),
    Bug("mmu_lock not taken", "LOCKDEP", [(START, "kvm.mmu_lock.acquire()", "pass")]),
]

IGNORE_WRITES: Edit = (emulate._track_writes, "_changes(window, after, retired)", "()")

MMU_BUGS = [
    Bug(
        "write protection forgotten when a table becomes shadowed",
        "I25",
        [(page_track.account_shadowed, "rmap_write_protect(kvm, slot, sp.gfn)", "False")],
        CHURN,
    ),
    Bug(
        "write protection forgotten in a new spte",
        "I25",
        [(page_fault.mmu_set_spte, "access &= ~ACC_WRITE_MASK", "pass")],
        CHURN_TRACKED,
    ),
    Bug(
        "no flush after write protection",
        "I16",
        [(page_track.account_shadowed, "kvm.flush_remote_tlbs()", "pass")],
        CHURN,
    ),
    Bug("rmap entry not removed", "I21", [(rmap.drop_spte, "rmap_remove(slot, gfn, sptep)", "pass")], CHURN),
    Bug("rmap entry not added", "I21", [(page_fault.mmu_set_spte, "rmap_add(kvm, fault.slot, gfn, sptep)", "False")]),
    Bug("spte ignores the host pte", "I23", [(SPTE, "if host_writable:", "if True:")], ZERO_PAGE),
    Bug(
        "spte ignores the guest's W",
        "I23",
        [
            (page_fault.mmu_set_spte, "access = fault.access", "access = fault.access | ACC_WRITE_MASK"),
            (page_fault.kvm_mmu_faultin_pfn, " if fault.access & slot.write_mask else None", ""),
        ],
        CHURN,
    ),
    Bug("spte ignores the guest's U", "I23", [(SPTE, "access & ACC_USER_MASK", "ACC_USER_MASK")], DEMAND),
    Bug("spte ignores the guest's NX", "I23", [(SPTE, " | PT_NX", "")], DEMAND),
    Bug("spte names another frame", "I23", [(SPTE, "return pfn << 12", "return (pfn ^ 1) << 12")]),
    Bug(
        "role access of the last level at every level",
        "I22",
        [
            (
                page_fault.kvm_mmu_page_fault,
                "fault.gfn = gfn\n",
                "fault.gfn = gfn; walker.access_to[:] = [walker.access_to[walker.level % 6]] * len(walker.access_to)\n",
            )
        ],
        CHURN,
    ),
    Bug(
        "role access without the levels above",
        "I22",
        [
            (
                page_fault.kvm_mmu_page_fault,
                "fault.gfn = gfn\n",
                "fault.gfn = gfn; walker.access_to[:] = [7] * len(walker.access_to)\n",
            )
        ],
        CHURN,
    ),
    Bug(
        "rights of the last entry only",
        "I23",
        [
            (
                guest_walker._walk_addr64,
                "walker.pte_access = access",
                "walker.pte_access = access = pte & 6 | (not pte >> 63)",
            )
        ],
        CHURN,
    ),
    Bug("child reused whatever its rights", "I23", [(page_fault.fetch, " or child.access != access", "")], LARGE_PAGE),
    Bug("write to a guest table ignored", "I22 I23", [IGNORE_WRITES], CHURN_TRACKED),
    Bug(
        "write tracked at the wrong page",
        "I22 I23",
        [(emulate._track_writes, "window.gfn <<", "window.gfn + 1 <<")],
        CHURN_TRACKED,
    ),
    Bug(
        "write tracked at the wrong entry",
        "I22 I23",
        [(emulate._changes, "[(start, window.size)]", "[(start ^ 8, window.size)]")],
        CHURN_TRACKED,
    ),
    Bug(
        "window of an emulated store left open",
        "I25",
        [(emulate.emulate_write, "vcpu.engine.clear_windows()", "pass")],
        CHURN,
    ),
    Bug(
        "pfn changes in place",
        "I19",
        [
            IGNORE_WRITES,
            (page_fault.mmu_set_spte, "drop_spte(kvm, sptep)", "pass"),
            (page_fault.mmu_set_spte, "old = 0", "pass"),
        ],
        REMAPPED,
        "I22 I23",
    ),
    Bug(
        "shadow page freed before the flush",
        "I16 I18",
        [(shadow.kvm_mmu_commit_zap_page, "kvm.flush_remote_tlbs()", "pass")],
        CHURN,
    ),
    Bug(
        "shadow page freed before the flush",
        "I18",
        [(shadow.kvm_mmu_commit_zap_page, "kvm.flush_remote_tlbs()", "pass")],
        CHURN,
        "I16",
    ),
    Bug(
        "tracking of a gone table stays",
        "I25 I28",
        [(shadow.kvm_mmu_prepare_zap_page, "unaccount_shadowed(kvm, sp)", "pass")],
        CHURN,
    ),
    Bug("leaves counted wrongly", "I35", [(rmap.drop_spte, "kvm.stat.pages_4k -= 1", "pass")], CHURN),
    Bug(
        "zapped root kept",
        "I18",
        [(root.free_obsolete_roots, "is_obsolete_root(vcpu.kvm, root)", "False")],
        ROOT_ZAPPED,
    ),
    Bug(
        "ageing gives rights",
        "I24",
        [(rmap.kvm_rmap_age, "mark_spte_old(spte)", "mark_spte_old(spte) | PT_WRITABLE")],
        DEMAND,
    ),
    Bug(
        "allocation under mmu_lock",
        "LOCKDEP",
        [(page_fault.fetch, "kvm = vcpu.kvm\n", "kvm = vcpu.kvm; kvm.mm.host.alloc_page()\n")],
    ),
    Bug(
        "only one spte of a frame write-protected",
        "I25",
        [(rmap.rmap_write_protect, "            flush = True", "            return True")],
        ALIASED,
    ),
    Bug(
        "only one spte of a frame zapped",
        "I3 I21",
        [(rmap.kvm_zap_rmap, "for sptep in head:", "for sptep in head[:1]:")],
        CHURN,
    ),
    Bug(
        "shadow page found without its role",
        "I22 I23",
        [(shadow._find_shadow_page, "sp.role == role and", "")],
        CHURN,
    ),
    Bug(
        "guest's dirty bit forgotten",
        "I22 I23",
        [(guest_walker._update_accessed_dirty_bits, "new |= PT_DIRTY", "pass")],
        LARGE_PAGE,
    ),
    Bug(
        "read makes a clean page writable",
        "I22 I23",
        [(guest_walker.protect_clean_gpte, "walker.pte_access & ~ACC_WRITE_MASK", "walker.pte_access")],
        LARGE_PAGE,
    ),
    Bug(
        "root of another CR3",
        "I22",
        [(root._alloc_root, "vcpu.root_gfn, pack", "vcpu.root_gfn + (vcpu.root_gfn != 9), pack")],
        CHURN,
    ),
]

NO_SYNC: Edit = (sync.kvm_mmu_sync_roots, "not kvm.stat.mmu_unsync", "True")
UNSYNC_BUGS = [
    Bug("flush by CR3 without a sync", "I27", [NO_SYNC], CHURN),
    Bug("flush by CR4 without a sync", "I27", [NO_SYNC], PGE_FLUSHED),
    Bug("sync keeps what is gone", "I27", [(sync_spte._sync, "gfn != sp.gfns[index]", "False")], CR3_LOADED),
    Bug(
        "flushes of the first vCPU exit only",
        "I26",
        [(unsync.update_flush_exits, "in kvm.vcpus:", "in kvm.vcpus[:1]:")],
        SHOOTDOWN,
    ),
]

FIRST_ONLY: Edit = (vm.Kvm.flush_remote_tlbs, "in self.vcpus:", "in self.vcpus[:1]:")
SMP_BUGS = [
    Bug("flush reaches the first vCPU only", "I16", [FIRST_ONLY], TOGETHER),
    Bug("flush reaches the first vCPU only", "I3", [FIRST_ONLY], TOGETHER, blind="I16"),
    Bug("flush reaches the first vCPU only", "I4", [FIRST_ONLY], TOGETHER, blind="I16 I3"),
    Bug("no retry", "I2 I3 I10", [NO_RETRY], TOGETHER_PREEMPTED),
    Bug("sequence not moved at the end", "I10 I11", [(notifier.kvm_mmu_invalidate_end, "+= 1", "+= 0")], TOGETHER),
    Bug("mmu_lock not taken by a fault", "LOCKDEP", [(page_fault._map, "kvm.mmu_lock.acquire()", "pass")], TOGETHER),
]

MM_BUGS = [
    Bug(
        "dirty page dropped at swap-out",
        "SWAP",
        [
            (vmscan.shrink_folio_list, "page.dirty and host.swap.count(page.private)", "False"),
            (vmscan._free_reclaimed, "not (page.dirty and swap.count(page.private))", "True"),
        ],
    ),
    Bug(
        "page written through its reference stays clean",
        "SWAP",
        [
            (gup.get_user_page_fast, "page.dirty = True", "pass"),
            (gup.get_user_page_fast, "pte & _WRITTEN != _WRITTEN", "False"),
        ],
    ),
    Bug(
        "frame written after it was freed",
        "POISON",
        [(vmscan._free_reclaimed, "put_page(host, page)", "put_page(host, page); host.ram.q[page.pfn << 9] = 1")],
    ),
    Bug(
        "another frame poisoned",
        "POISON CONTENT",
        [(page_alloc._free_page, "start = pfn << PAGE_SHIFT", "start = (pfn ^ 1) << PAGE_SHIFT")],
    ),
    Bug("new page not cleared", "CONTENT", [(page_alloc._rmqueue, "if zeroed:", "if False:")]),
    Bug(
        "copy of the wrong page",
        "CONTENT",
        [(fault._wp_page_copy, "host.alloc_page(old is None)", "host.alloc_page()")],
        ZERO_PAGE,
    ),
    Bug(
        "frame freed under its user",
        "ModelBug",
        [
            (
                page_fault._map,
                "put_page(kvm.mm.host, fault.page)",
                "put_page(kvm.mm.host, fault.page); put_page(kvm.mm.host, fault.page)",
            )
        ],
        HELLO,
    ),
    Bug("frame leaked", "FRAME", [(page_fault._map, "put_page(kvm.mm.host, fault.page)", "pass")], HELLO),
    Bug(
        "host TLB keeps unmapped pages",
        "HOST-TLB",
        [(pgtable._flush_tlb_page, "mm.tlb.pop(vpn, None) is not None", "False")],
        CHURN,
    ),
    Bug(
        "swap read of another slot",
        "SWAP",
        [(swap._transfer, "first << PAGE_SHIFT)", "(first ^ (what == 'read')) << PAGE_SHIFT)")],
    ),
    Bug(
        "swap write to another slot",
        "SWAP",
        [(swap._transfer, "first << PAGE_SHIFT)", "(first ^ (what == 'write')) << PAGE_SHIFT)")],
    ),
    Bug(
        "swap entry names another slot",
        "SWAP",
        [(mm_rmap.try_to_unmap, "ptep_swap_out(mm, vpn, index, slot)", "ptep_swap_out(mm, vpn, index, slot ^ 1)")],
    ),
    Bug(
        "data taken for zeros",
        "SWAP",
        [
            (swap.swap_write_pages, "bytes(frame) == ZERO_PAGE", "True"),
            (swap.swap_write_pages, "not q[start + PAGE_SIZE - 8 >> 3] and ", ""),
        ],
        CHASE,
    ),
]
