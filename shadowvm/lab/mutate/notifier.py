"""Bugs of the notifier protocol, of its order of flushes, and of the retry of faults."""

from __future__ import annotations

from functools import partial

from ...addr import PAGE_SIZE, Hva
from ...api import Vm
from ...events import host_pte_change, kvm_faultin_pfn, lock_release
from ...kvm import notifier
from ...kvm.mmu import page_fault
from ...machine import Machine
from ...mm import fault, mm_struct, mmu_notifier, pgtable
from ...mm.mm_struct import exit_mmap
from ...mm.mmu_notifier import MmuNotifier, MmuNotifierEvent, MmuNotifierRange, mmu_notifier_register
from ...mm.uaccess import read_user_u64
from ...sync import Lock
from . import host
from .guest import PAGE, Code
from .mutation import Mutation
from .patch import Edit, Swap
from .scenario import Meanwhile, Scenario

START = notifier.KvmMmuNotifier.invalidate_range_start
END = notifier.KvmMmuNotifier.invalidate_range_end
FLUSH = "kvm.flush_remote_tlbs()"
OTHER = PAGE + 0x100000


def _store_then() -> Code:
    """Write a page, let the host act, and write it again."""
    return Code().store(PAGE, 7).host(0).store(PAGE, 8).expect(PAGE, 8).exit()


PAGED_OUT = Scenario(_store_then(), actions=(partial(host.page_out, gpa=PAGE),))


def _exit_first(vm: Vm) -> None:
    """The process dies before its VM is destroyed."""
    exit_mmap(vm.mm)
    vm.kvm.destroy()


def _is_page(machine: Machine, vcpu_id: int, gfn: int, pfn: int, write: bool) -> bool:
    return gfn == PAGE >> 12


RACED = Scenario(
    Code().store(PAGE, 7).load(PAGE).expect(PAGE, 7).exit(),
    actors=(Meanwhile(kvm_faultin_pfn, partial(host.page_out, gpa=PAGE), when=_is_page),),
)
"""The page goes out after the fault has looked it up, and before its spte is set."""

RACED_HALFWAY = Scenario(
    Code().store(PAGE, 7).load(PAGE).expect(PAGE, 7).exit(),
    actors=(Meanwhile(kvm_faultin_pfn, partial(host.page_out, gpa=PAGE), when=_is_page, pause=host_pte_change),),
)
"""As RACED, but the fault goes on while the invalidation is open."""


class _Refuser(MmuNotifier):
    """A subscriber that would have to sleep."""

    def invalidate_range_start(self, range_: MmuNotifierRange) -> bool:
        return range_.blockable


def _reap(machine: Machine) -> None:
    """What the OOM reaper does to a page: it must not sleep, and lets be what it cannot have."""
    start = host.hva_of(machine, PAGE)
    range_ = MmuNotifierRange(machine.mm, start, Hva(start + PAGE_SIZE), MmuNotifierEvent.UNMAP, blockable=False)
    mmu_notifier.mmu_notifier_invalidate_range_start(range_)


def _add_refuser(machine: Machine) -> None:
    mmu_notifier_register(_Refuser(), machine.mm)


def _seq_near_2_31(machine: Machine) -> None:
    machine.kvm.mmu_invalidate_seq = (1 << 31) - 1


def _has_begun(machine: Machine, lock: Lock) -> bool:
    """mmu_lock is dropped by the first of two invalidations, which has yet to change its pte."""
    return lock is machine.kvm.mmu_lock and machine.kvm.mmu_invalidate_in_progress == 1


TWO_AT_ONCE = Scenario(
    Code().store(PAGE, 7).store(OTHER, 8).host(0).expect(PAGE, 0).expect(OTHER, 0).exit(),
    actions=(partial(host.drop, gpa=PAGE),),
    actors=(Meanwhile(lock_release, partial(host.drop, gpa=OTHER), when=_has_begun),),
)
"""Another page is dropped, from start to end, while the invalidation of the first is open."""


def _read(machine: Machine) -> None:
    """The kernel reads the page through its own mapping, and its TLB has it again."""
    read_user_u64(machine.mm, host.hva_of(machine, PAGE))


REFRESHED = Scenario(
    Code().store(PAGE, 7).host(0).store(PAGE, 8).expect(PAGE, 8).exit(),
    actions=(partial(host.page_out, gpa=PAGE),),
    actors=(Meanwhile(lock_release, _read, when=_has_begun),),
)
"""Between range_start and the change of the pte the kernel reads the page."""

PROTECTED = Scenario(
    Code().store(PAGE, 7).host(0).load(PAGE).host(1).store(PAGE, 8).expect(PAGE, 8).exit(),
    actions=(partial(host.protect, gpa=PAGE), partial(host.protect, gpa=PAGE, writable=True)),
)

READ_THEN_WRITTEN = Scenario(Code().load(PAGE).store(PAGE, 7).expect(PAGE, 7).exit())
"""The guest's first access maps the page of zeros, its second copies it."""

MUTATIONS = (
    Mutation(
        "flush-after-unlock",
        "Z2",
        "range_start drops mmu_lock before it flushes: another zap of the page finds no spte and frees at once",
        ("I16",),
        (Edit(START, FLUSH, "pass"), Edit(START, "kvm.mmu_lock.release()", f"kvm.mmu_lock.release(); {FLUSH}")),
        PAGED_OUT,
    ),
    Mutation(
        "no-flush-in-range-start",
        "e930bffe95e1",
        "range_start zaps sptes and leaves the TLBs alone",
        ("I16", "I3"),
        (Edit(START, FLUSH, "pass"),),
        PAGED_OUT,
    ),
    Mutation(
        "no-release",
        "85db06e51442",
        "kvm has no release: sptes survive the pages of a process that dies before its VM",
        ("I7",),
        (Swap(notifier.KvmMmuNotifier.release, lambda self, mm: None),),
        Scenario(Code().store(PAGE, 7).exit(), takedown=_exit_first),
    ),
    Mutation(
        "notify-after-new-pte",
        "c7ab0d2fdc84",
        "copy on write tells secondary MMUs when the new pte is set: they use the old page until then",
        ("I5", "I1", "I3"),
        (
            Edit(fault._wp_page_copy, "    mmu_notifier_invalidate_range_start(range_)\n", "    pass\n"),
            Edit(
                fault._wp_page_copy,
                "    mmu_notifier_invalidate_range_end(range_)\n",
                "    mmu_notifier_invalidate_range_start(range_); mmu_notifier_invalidate_range_end(range_)\n",
            ),
        ),
        READ_THEN_WRITTEN,
    ),
    Mutation(
        "pte-replaced-in-place",
        "",
        "copy on write replaces a present pte: some readers have the new page while others have the old one",
        ("I5",),
        (Edit(fault._wp_page_copy, "        ptep_clear_flush(mm, vpn, index)\n", ""),),
        READ_THEN_WRITTEN,
    ),
    Mutation(
        "mprotect-not-bracketed",
        "cddb8a5c14aa",
        "mprotect() tells no secondary MMU, and the guest goes on writing what is read-only",
        ("I6", "I1"),
        (
            Edit(mm_struct.mprotect, "        mmu_notifier_invalidate_range_start(range_)\n", ""),
            Edit(mm_struct.mprotect, "        mmu_notifier_invalidate_range_end(range_)\n", ""),
        ),
        PROTECTED,
    ),
    Mutation(
        "cached-frame-refreshed-too-early",
        "e649b3f0188f",
        "a cache of translations is dropped in range_start and refilled before the pte changes: it keeps the old frame",
        ("HOST-TLB",),
        (
            Swap(pgtable._flush_tlb_page, lambda mm, vpn: None),
            Edit(
                mmu_notifier.mmu_notifier_invalidate_range_start,
                "    mm = range_.mm\n",
                "    mm = range_.mm\n    mm.tlb.clear()\n    mm.tlb_w.clear()\n",
            ),
        ),
        REFRESHED,
    ),
    Mutation(
        "range-end-unpaired",
        "c2655835fd8c",
        "one subscriber refuses a start that may not sleep, and those that had heard it never hear its end",
        ("I1", "I13"),
        (
            Edit(
                mmu_notifier.mmu_notifier_invalidate_range_start,
                "        mmu_notifier_invalidate_range_end(range_)\n",
                "        pass\n",
            ),
        ),
        Scenario(_store_then(), prepare=_add_refuser, actions=(_reap,)),
    ),
    Mutation(
        "seq-in-int",
        "82d811ff5665",
        "a fault keeps its sample of the sequence in an int: after 2^31 invalidations it never equals the counter",
        ("I12", "I15"),
        (
            Edit(
                page_fault.kvm_mmu_faultin_pfn,
                "fault.mmu_seq = kvm.mmu_invalidate_seq",
                "fault.mmu_seq = (kvm.mmu_invalidate_seq + (1 << 31)) % (1 << 32) - (1 << 31)",
            ),
        ),
        Scenario(_store_then(), prepare=_seq_near_2_31, actions=(partial(host.page_out, gpa=PAGE),)),
    ),
    Mutation(
        "flush-forgotten-at-next-slot",
        "a835429cda91",
        "range_start forgets that it owes a flush for one slot when it goes on to the next",
        ("I16", "I3"),
        (
            Edit(START, "            if kvm_unmap_gfn_range(", "            flush = kvm_unmap_gfn_range("),
            Edit(
                START,
                "may_yield=range_.blockable):\n                flush = True\n",
                "may_yield=range_.blockable)\n",
            ),
        ),
        Scenario(
            _store_then(),
            prepare=partial(host.add_alias, gpa=PAGE),
            actions=(partial(host.page_out, gpa=PAGE),),
        ),
    ),
    Mutation(
        "no-retry-check",
        "e930bffe95e1",
        "a fault installs what it looked up before the page was taken away",
        ("I23", "I10"),
        (Swap(page_fault.mmu_invalidate_retry_gfn, lambda kvm, mmu_seq, gfn: False),),
        RACED,
    ),
    Mutation(
        "retry-without-range",
        "e930bffe95e1",
        "a fault looks at the sequence alone, which moves when the invalidation is over",
        ("I23", "I2"),
        (Swap(page_fault.mmu_invalidate_retry_gfn, lambda kvm, mmu_seq, gfn: bool(kvm.mmu_invalidate_seq != mmu_seq)),),
        RACED_HALFWAY,
    ),
    Mutation(
        "seq-sampled-after-lookup",
        "e930bffe95e1",
        "a fault samples the sequence after it has looked the frame up, and trusts a frame that is gone",
        ("I10", "I23"),
        (
            Edit(
                page_fault._map,
                "    kvm.mmu_lock.acquire()\n",
                "    kvm.mmu_lock.acquire()\n    fault.mmu_seq = kvm.mmu_invalidate_seq\n",
            ),
        ),
        RACED,
    ),
    Mutation(
        "count-drops-before-seq",
        "e930bffe95e1",
        "range_end lets faults go on before the sequence has moved",
        ("I11",),
        (
            Edit(notifier.kvm_mmu_invalidate_end, "kvm.mmu_invalidate_seq += 1", "pass"),
            Edit(END, "kvm.mmu_lock.release()", "kvm.mmu_lock.release(); kvm.mmu_invalidate_seq += 1"),
        ),
        PAGED_OUT,
    ),
    Mutation(
        "range-not-a-union",
        "e930bffe95e1",
        "the tracked range is that of the last invalidation, and faults in one that is still open go through",
        ("I14", "I2"),
        (
            Edit(
                notifier.kvm_mmu_invalidate_range_add,
                "kvm.mmu_invalidate_range_start == kvm.mmu_invalidate_range_end",
                "True",
            ),
        ),
        TWO_AT_ONCE,
    ),
)
