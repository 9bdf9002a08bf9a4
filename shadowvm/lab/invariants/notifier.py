"""Laws of the notifier protocol: I1-I3, I5-I7, I10-I15."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Gfn, Pfn
from ...events import (
    follow_pfnmap,
    get_user_page,
    host_pte_change,
    kvm_emulate_insn,
    kvm_mmu_seq_sample,
    kvm_page_fault,
    lock_acquired,
    lock_release,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_failed,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
    spte_change,
)
from ...kvm.mmu.spte import SPTE_HOST_WRITABLE, SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from ...mm.gup import host_pte
from ...mm.pfnmap import maps_device_frame
from ...x86 import PT_ADDR_MASK, PT_PRESENT, PT_USER, PT_WRITABLE
from .rules import Handler, Rules
from .shadow import Leaf, gfns_of, vpn_of
from .spaces import plain
from .tlb import cached_frames, stale_tlb

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...mm.mmu_notifier import MmuNotifierRange
    from ...sync import Task
    from .sanitizer import Sanitizer

MAX_FRUITLESS_FAULTS = 1000


class NotifierRules(Rules):
    """See the module. `open`: invalidations between start and end, by identity of the range.

    _range_of: the one that a task has opened. _begun: the open ones that kvm knows of: its callbacks take mmu_lock once
    at the start and once at the end, at which other tasks may run.
    """

    laws = frozenset("I1 I2 I3 I5 I6 I7 I10 I11 I12 I13 I14 I15".split())

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        self.kvm = sanitizer.machine.kvm
        self.open: dict[int, MmuNotifierRange] = {}
        self._range_of: dict[Task, MmuNotifierRange] = {}
        self._begun: set[int] = set()
        self._released = False
        self._clock = self._locked_at = 0
        self._sampled: dict[Task, tuple[int, int, Gfn]] = {}
        self._read_at: dict[Task, tuple[int, int]] = {}
        self._last_seq = self.kvm.mmu_invalidate_seq
        self._last_in_progress = self.kvm.mmu_invalidate_in_progress
        self._fault: dict[int, tuple[int, int, int]] = {}
        self._fruitless: dict[int, int] = {}
        self._faulting: dict[Task, int] = {}

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Brackets, changes of host ptes, and the steps of a fault."""
        return {
            mmu_notifier_invalidate_range_start: self._on_start,
            mmu_notifier_invalidate_range_end: self._on_end,
            mmu_notifier_invalidate_range_failed: self._on_failed,
            mmu_notifier_release: self._on_release,
            host_pte_change: self._on_host_pte_change,
            spte_change: self._on_spte_change,
            kvm_mmu_seq_sample: self._on_seq_sample,
            get_user_page: self._on_get_user_page,
            follow_pfnmap: self._on_get_user_page,
            kvm_page_fault: self._on_page_fault,
            kvm_emulate_insn: self._on_emulate_insn,
            lock_acquired: self._on_lock_acquired,
            lock_release: self._on_lock_release,
        }

    def validate(self) -> None:
        """What is mapped is still the process's, as writable; nothing is counted as open that is not."""
        self.shadow.adopt()
        kvm = self.kvm
        in_progress = kvm.mmu_invalidate_in_progress
        if in_progress < 0 or in_progress > kvm.mn_active_invalidate_count:
            self.sanitizer.fail(
                "I13", f"mmu_invalidate_in_progress is {in_progress}", f"{kvm.mn_active_invalidate_count} are open"
            )
        for leaf in self.shadow.leaves.values():
            vpn = vpn_of(kvm, leaf.gfn)
            pte = 0 if vpn is None else host_pte(kvm.mm, vpn)
            if not self._registered():
                self.sanitizer.fail("I7", f"spte {leaf.spte:#x} maps gfn {leaf.gfn:#x}", "kvm hears of no invalidation")
            if not pte & PT_PRESENT:
                self.sanitizer.fail("I3", f"spte {leaf.spte:#x} maps gfn {leaf.gfn:#x}", f"its host pte is {pte:#x}")
            if leaf.spte & SPTE_MMU_WRITABLE and not pte & PT_WRITABLE:
                self.sanitizer.fail("I6", f"spte {leaf.spte:#x} is writable", f"its host pte {pte:#x} is read-only")
        self._validate_tlbs()

    def _validate_tlbs(self) -> None:
        zone = self.kvm.mm.host.zone
        for vcpu in self.kvm.vcpus:
            for pfn in cached_frames(vcpu):
                page = zone.mem_map[pfn]
                if page is not zone.zero_page and not page.mapcount and not maps_device_frame(self.kvm.mm, pfn):
                    self.sanitizer.fail("I3", f"vcpu {vcpu.id} caches pfn {pfn:#x}", "no host pte maps it")

    def finish(self) -> None:
        """No invalidation may be left open."""
        if self.open:
            left = ", ".join(f"{r.start:#x}-{r.end:#x}" for r in self.open.values())
            self.sanitizer.fail("I1", f"open at the end of the run: {left}", "every start has an end")

    def _on_start(self, range_: MmuNotifierRange) -> None:
        if id(range_) in self.open:
            self.sanitizer.fail("I1", f"range {range_.start:#x}-{range_.end:#x} starts again", "it has not ended")
        self.open[id(range_)] = range_
        self._range_of[self._task()] = range_

    def _on_end(self, range_: MmuNotifierRange) -> None:
        if self.open.pop(id(range_), None) is None:
            self.sanitizer.fail("I1", f"range {range_.start:#x}-{range_.end:#x} ends", "it has not started")
        self._begun.discard(id(range_))
        self._range_of.pop(self._task(), None)
        in_progress = self.kvm.mmu_invalidate_in_progress
        if not self.open and in_progress and self._registered():
            self.sanitizer.fail("I13", f"mmu_invalidate_in_progress is {in_progress}", "no invalidation is open")

    def _on_failed(self, range_: MmuNotifierRange) -> None:
        """A start that may not sleep was refused. Whoever had heard it has heard the end by now."""
        if id(range_) in self.open:
            self.sanitizer.fail("I1", f"range {range_.start:#x}-{range_.end:#x} is given up", "it never ended")

    def _on_release(self, mm_id: int) -> None:
        if mm_id == self.kvm.mm.id:
            self._released = True

    def _on_host_pte_change(self, mm_id: int, vpn: int, old: int, new: int) -> None:
        if mm_id != self.kvm.mm.id or not old & PT_PRESENT:
            return
        pfn = Pfn((old & PT_ADDR_MASK) >> PAGE_SHIFT)
        moved = bool(new & PT_PRESENT) and new & PT_ADDR_MASK != old & PT_ADDR_MASK
        if moved:
            self.sanitizer.fail("I5", f"host pte of vpn {vpn:#x} maps pfn {pfn:#x}", f"it becomes {new:#x} directly")
        if not new & PT_PRESENT:
            self._check_bracket(vpn, old, new)
            self._check_unmapped(vpn, pfn)
        elif old & PT_WRITABLE and not new & PT_WRITABLE:
            self._check_bracket(vpn, old, new)
            self._check_write_protected(vpn, pfn)

    def _check_bracket(self, vpn: int, old: int, new: int) -> None:
        address = vpn << PAGE_SHIFT
        if not any(r.start <= address < r.end for r in self.open.values()):
            self.sanitizer.fail("I1", f"host pte of vpn {vpn:#x}: {old:#x} becomes {new:#x}", "no range is open there")
        kvm = self.kvm
        for gfn in gfns_of(kvm, vpn):
            covered = kvm.mmu_invalidate_range_start <= plain(gfn) < kvm.mmu_invalidate_range_end
            if self._registered() and not (kvm.mmu_invalidate_in_progress and covered):
                tracked = f"{kvm.mmu_invalidate_range_start:#x}-{kvm.mmu_invalidate_range_end:#x}"
                self.sanitizer.fail(
                    "I14",
                    f"gfn {gfn:#x} is being invalidated",
                    f"kvm tracks {tracked}, {kvm.mmu_invalidate_in_progress} in progress",
                )

    def _registered(self) -> bool:
        """kvm hears of invalidations: not before its notifier is on the mm's list, nor once it was taken off."""
        return self.kvm.notifier in self.kvm.mm.notifiers.everyone

    def _leaves_of_vpn(self, vpn: int) -> list[int]:
        return [sptep for gfn in gfns_of(self.kvm, vpn) for sptep in self.shadow.by_gfn.get(gfn, ())]

    def _check_unmapped(self, vpn: int, pfn: Pfn) -> None:
        law = "I7" if self._released else "I3"
        leaves = self._leaves_of_vpn(vpn)
        if leaves:
            spte = self.shadow.leaves[leaves[0]].spte
            self.sanitizer.fail(law, f"host pte of vpn {vpn:#x} is being cleared", f"spte {spte:#x} still maps it")
        vcpu = None if self.shadow.by_pfn.get(pfn) else stale_tlb(self.kvm.vcpus, pfn)
        if vcpu is not None and self._is_private(pfn):
            self.sanitizer.fail(
                law, f"host pte of vpn {vpn:#x} is being cleared", f"vcpu {vcpu.id} caches pfn {pfn:#x}"
            )

    def _is_private(self, pfn: Pfn) -> bool:
        """Only one pte maps the frame, so that a TLB entry for it is one for this pte."""
        page = self.kvm.mm.host.zone.mem_map[pfn]
        return page is not self.kvm.mm.host.zone.zero_page and page.mapcount <= 1

    def _check_write_protected(self, vpn: int, pfn: Pfn) -> None:
        for sptep in self._leaves_of_vpn(vpn):
            spte = self.shadow.leaves[sptep].spte
            if spte & (PT_WRITABLE | SPTE_MMU_WRITABLE):
                self.sanitizer.fail("I6", f"vpn {vpn:#x} is being write-protected", f"spte {spte:#x} is writable")
        vcpu = stale_tlb(self.kvm.vcpus, pfn, writable=True)
        if vcpu is not None and self._is_private(pfn):
            self.sanitizer.fail(
                "I6", f"vpn {vpn:#x} is being write-protected", f"vcpu {vcpu.id} caches pfn {pfn:#x} writable"
            )

    def _on_seq_sample(self, vcpu_id: int, gfn: Gfn, seq: int) -> None:
        self._clock += 1
        if seq != self.kvm.mmu_invalidate_seq:
            self.sanitizer.fail("I12", f"sequence {seq} is sampled", f"it is {self.kvm.mmu_invalidate_seq}")
        self._sampled[self._task()] = (self._clock, self.kvm.mmu_invalidate_seq, gfn)

    def _on_get_user_page(self, mm_id: int, vpn: int, pfn: int, write: bool) -> None:
        self._clock += 1
        if mm_id == self.kvm.mm.id:
            self._read_at[self._task()] = (vpn, self._clock)

    def _task(self) -> Task:
        """Several vCPUs may be inside a fault; each sampled and looked up for itself."""
        return self.sanitizer.machine.sched.current

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        """An spte that was HOST_WRITABLE may get W without another look at the host, which would have zapped it."""
        sptep = hpa >> 3
        leaf = self.shadow.leaves.get(sptep)
        self._fruitless.clear()
        if leaf is None or not new & SPTE_MMU_PRESENT:
            return
        widened = not old & SPTE_MMU_PRESENT or (new & ~old & SPTE_MMU_WRITABLE and not old & SPTE_HOST_WRITABLE)
        if widened:
            self._check_install(sptep, leaf, new)

    def _check_install(self, sptep: int, leaf: Leaf, spte: int) -> None:
        gfn = leaf.gfn
        what = f"spte {spte:#x} is installed for gfn {gfn:#x}"
        if self._released:
            self.sanitizer.fail("I7", what, "the mm was released")
        vpn = vpn_of(self.kvm, gfn) or 0
        start, end = vpn << PAGE_SHIFT, vpn + leaf.npages << PAGE_SHIFT
        for key, range_ in self.open.items():
            if range_.start < end and start < range_.end and key in self._begun:
                self.sanitizer.fail("I2", what, f"range {range_.start:#x}-{range_.end:#x} is open")
        if self._is_split(sptep, leaf):
            return
        sampled = self._sampled.get(self._task())
        if sampled is None or not plain(gfn) <= sampled[2] < plain(gfn) + leaf.npages:
            if not self._looked_up_under_lock(vpn):
                self.sanitizer.fail("I10", what, "no sequence was sampled for it")
            return
        sampled_at, seq, _ = sampled
        read_vpn, read_at = self._read_at.get(self._task(), (-1, 0))
        if vpn <= read_vpn < vpn + leaf.npages and read_at < sampled_at:
            self.sanitizer.fail("I10", f"{what}: its frame was looked up first", "the sequence was sampled after that")
        if seq != self.kvm.mmu_invalidate_seq:
            self.sanitizer.fail("I10", f"{what} with sequence {seq}", f"it is {self.kvm.mmu_invalidate_seq} by now")

    def _looked_up_under_lock(self, vpn: int) -> bool:
        """A prefetch needs no sequence: it looks at the host and maps in one critical section, with nothing open."""
        read_vpn, read_at = self._read_at.get(self._task(), (-1, 0))
        return read_vpn == vpn and read_at > self._locked_at and not self.kvm.mmu_invalidate_in_progress

    def _on_lock_acquired(self, lock: Any) -> None:
        if lock is self.kvm.mmu_lock:
            self._clock += 1
            self._locked_at = self._clock

    def _is_split(self, sptep: int, leaf: Leaf) -> bool:
        """A piece of a large spte that is still there, with no more rights: what that was allowed this is."""
        rights = PT_WRITABLE | SPTE_MMU_WRITABLE | PT_USER
        for other in self.shadow.by_gfn[leaf.gfn] - {sptep}:
            large = self.shadow.leaves[other]
            same = large.pfn - large.gfn == leaf.pfn - leaf.gfn
            if large.npages > 1 == leaf.npages and same and not leaf.spte & ~large.spte & rights:
                return True
        return False

    def _on_page_fault(self, vcpu_id: int, rip: int, gva: int, error_code: int) -> None:
        fault = (rip, gva, error_code)
        fruitless = self._fruitless.get(vcpu_id, 0) + 1 if fault == self._fault.get(vcpu_id) else 0
        self._fault[vcpu_id], self._fruitless[vcpu_id] = fault, fruitless
        self._faulting[self._task()] = vcpu_id
        if fruitless > MAX_FRUITLESS_FAULTS:
            self.sanitizer.fail("I15", f"{fruitless} faults at gva {gva:#x}", "no spte has changed meanwhile")

    def _on_emulate_insn(self, rip: int, insn: str, failed: str) -> None:
        """The instruction is done: a guest that polls a device register faults at one place and gets on."""
        if not failed:
            vcpu_id = self._faulting.get(self._task(), -1)
            self._fruitless.pop(vcpu_id, None)

    def _on_lock_release(self, lock: Any) -> None:
        if lock is not self.kvm.mmu_lock:
            return
        seq, in_progress = self.kvm.mmu_invalidate_seq, self.kvm.mmu_invalidate_in_progress
        range_ = self._range_of.get(self._task())
        if range_ is not None and in_progress != self._last_in_progress:
            self._begun ^= {id(range_)}
        if in_progress < 0:
            self.sanitizer.fail("I13", f"mmu_invalidate_in_progress is {in_progress}", "it is a count")
        if seq < self._last_seq:
            self.sanitizer.fail("I12", f"mmu_invalidate_seq is {seq}", f"it was {self._last_seq}")
        if in_progress < self._last_in_progress and seq == self._last_seq:
            self.sanitizer.fail("I11", f"in_progress dropped to {in_progress}", f"the sequence is still {seq}")
        self._last_seq, self._last_in_progress = seq, in_progress
