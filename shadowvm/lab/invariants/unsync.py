"""Laws of unsync pages: I26, I27.

What a vCPU asks to be flushed is taken from its exits; that each flush exits while a page is unsync is part of I26. The
sptes that disagree with the guest's entries at such an exit must have been looked at before the vCPU runs on. Other
vCPUs may change the guest's entries meanwhile: what becomes stale after the exit is as good as in a TLB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...addr import PAGE_SHIFT, Gfn
from ...cpu.mailbox import EXIT_VA, KEY_CR3, NR_PREV_ROOTS, PREV_ROOTS, ROOT
from ...events import (
    kvm_cr,
    kvm_entry,
    kvm_exit,
    kvm_inj_exception,
    kvm_mmu_sync_page,
    kvm_mmu_unsync_page,
    lock_release,
    spte_change,
)
from ...kvm.mmu.role import ROLE_CR0_WP
from ...kvm.mmu.spte import SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE
from ...x86 import (
    CR4_PGE,
    GP_VECTOR,
    PT_ACCESSED,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PKEY_MASK,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)
from .rules import Handler, Rules

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.mmu.shadow import KvmMmuPage
    from ...kvm.vcpu import Vcpu
    from .sanitizer import Sanitizer


class UnsyncRules(Rules):
    """See the module. _all, _one: by vCPU, the stale sptes at its exit, of everything and at INVLPG's address."""

    laws = frozenset(("I26", "I27"))

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.shadow = sanitizer.shadow
        self.kvm = sanitizer.machine.kvm
        self._all: dict[int, dict[int, int]] = {}
        self._one: dict[int, dict[int, int]] = {}
        self._cr4: dict[int, int] = {}
        self._cr3_value: int | None = None
        self._synced: set[Gfn] = set()

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Marks and their end, stores to shadow tables, the end of a critical section, exits and entries."""
        return {
            kvm_mmu_unsync_page: self._on_unsync,
            kvm_mmu_sync_page: self._on_sync,
            spte_change: self._on_spte_change,
            lock_release: self._on_lock_release,
            kvm_cr: self._on_cr,
            kvm_inj_exception: self._on_exception,
            kvm_exit: self._on_exit,
            kvm_entry: self._on_entry,
        }

    def validate(self) -> None:
        """The marks as they are."""
        self._on_lock_release(self.kvm.mmu_lock)

    def unsync_pages(self) -> list[KvmMmuPage]:
        """All of them."""
        return [sp for sp in self.kvm.sp_by_pfn.values() if sp.unsync]

    def _on_unsync(self, gen: int, gfn: Gfn, *_: Any) -> None:
        if all(vcpu.fault.gfn != gfn for vcpu in self.kvm.vcpus):
            self.sanitizer.fail("I26", f"gfn {gfn:#x} is made unsync", "no vCPU has faulted on it")
        for sp in self.unsync_pages():
            if sp.gfn == gfn:
                self._check_mark(sp)
        self._check_exits()

    def _on_sync(self, gen: int, gfn: Gfn, *_: Any) -> None:
        self._synced.add(gfn)

    def _check_mark(self, sp: KvmMmuPage) -> None:
        where = f"the unsync page of gfn {sp.gfn:#x}, level {sp.level}"
        if sp.level != 1 or sp.direct or sp.root_count or sp.invalid:
            self.sanitizer.fail("I26", where, "only a leaf table in use may be unsync")
        for sptep in sp.parent_ptes:
            self._check_parent(sptep, where)

    def _check_parent(self, sptep: int, where: str) -> None:
        parent = self.kvm.sp_by_pfn[sptep >> 9]
        if not parent.unsync_child_bitmap >> (sptep & 511) & 1:
            self.sanitizer.fail("I26", where, f"the page of level {parent.level} above it has no bit for the link")
        if parent.unsync_children != parent.unsync_child_bitmap.bit_count():
            self.sanitizer.fail("I26", where, f"above it {parent.unsync_children} bits are counted")
        for above in parent.parent_ptes:
            self._check_parent(above, where)

    def _check_exits(self) -> None:
        for vcpu in self.kvm.vcpus:
            if not (vcpu.engine.controls.invlpg and vcpu.engine.controls.cr3):
                self.sanitizer.fail("I26", f"vcpu {vcpu.id} can flush its TLB unseen", "a page is unsync")

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        sptep = hpa >> 3
        for pending in (*self._all.values(), *self._one.values()):
            pending.pop(sptep, None)
        sp = self.kvm.sp_by_pfn.get(sptep >> 9)
        if sp is None or not new & SPTE_MMU_PRESENT:
            return
        if sp.level > 1 and not new & PT_PAGE_SIZE:
            self._check_linked((new & PT_ADDR_MASK) >> PAGE_SHIFT)
        elif new & SPTE_MMU_WRITABLE and not old & SPTE_MMU_WRITABLE:
            gfn = sp.gfn_of(sptep & 511)
            for each in self.kvm.page_hash.get(gfn, ()):
                if each.unsync:
                    self._check_mark(each)

    def _check_linked(self, pfn: int) -> None:
        """With one vCPU, which is not in the guest: what hangs below a new link is up to date."""
        if len(self.kvm.vcpus) > 1:
            return
        for sp in self.unsync_pages():
            if _is_below(self.kvm.sp_by_pfn, sp, {pfn}):
                for index, spte in self._stale(sp).items():
                    self.sanitizer.fail("I27", f"spte {spte:#x} at {index * 8:#x} is linked", "it is out of date")

    def _on_lock_release(self, lock: Any) -> None:
        if lock is not self.kvm.mmu_lock:
            return
        pages = self.unsync_pages()
        if len(pages) != self.kvm.stat.mmu_unsync:
            self.sanitizer.fail("I26", f"mmu_unsync is {self.kvm.stat.mmu_unsync}", f"{len(pages)} pages are unsync")
        for sp in pages:
            self._check_mark(sp)
        if pages:
            self._check_exits()
        if self._synced and not self.shadow.store_under_way():
            for sp in list(self.kvm.sp_by_pfn.values()):
                if sp.gfn in self._synced and sp.level == 1 and not (sp.direct or sp.unsync or sp.invalid):
                    for sptep, spte in self._stale(sp).items():
                        self.sanitizer.fail("I27", f"spte {spte:#x} at {sptep * 8:#x} is stale", "its page was synced")
        self._synced.clear()

    def _stale(self, sp: KvmMmuPage) -> dict[int, int]:
        """sptep -> spte of what disagrees with the guest's entries."""
        entries = self.kvm.q[sp.q : sp.q + 512].tolist()
        return {sp.q + i: spte for i, spte in enumerate(entries) if spte & SPTE_MMU_PRESENT and self._differs(sp, i)}

    def _differs(self, sp: KvmMmuPage, index: int) -> bool:
        spte, gpte = self.kvm.q[sp.q + index], self.shadow.guest_entry(sp, index)
        if gpte is None or not spte & SPTE_MMU_PRESENT:
            return False
        if gpte & (PT_PRESENT | PT_ACCESSED) != PT_PRESENT | PT_ACCESSED:
            return True
        if sp.gfn_of(index) != (gpte & PT_ADDR_MASK) >> PAGE_SHIFT or (spte ^ gpte) & PT_PKEY_MASK:
            return True
        allowed = sp.access & (gpte & (PT_USER | (PT_WRITABLE if gpte & PT_DIRTY else 0)) | (not gpte & PT_NX))
        may_write = allowed & PT_WRITABLE or (not spte & PT_USER and not sp.role & ROLE_CR0_WP)
        wider = spte & ~allowed & PT_USER or (spte & PT_WRITABLE and not may_write)
        return bool(wider or not (spte & PT_NX or allowed & 1))

    def _on_exit(self, vcpu_id: int, reason: str, *_: Any) -> None:
        self._all.pop(vcpu_id, None)
        self._one.pop(vcpu_id, None)
        self._cr3_value = None
        if not self.kvm.stat.mmu_unsync or reason not in ("CR_ACCESS", "INVLPG"):
            return
        vcpu = self.kvm.vcpus[vcpu_id]
        if reason == "INVLPG":
            self._one[vcpu_id] = self._stale_at(vcpu, vcpu.engine.box[EXIT_VA])
            return
        self._cr4[vcpu_id] = vcpu.engine.cr4
        self._all[vcpu_id] = {sptep: spte for sp in self.unsync_pages() for sptep, spte in self._stale(sp).items()}

    def _stale_at(self, vcpu: Vcpu, va: int) -> dict[int, int]:
        box, q = vcpu.engine.box, self.kvm.q
        found = {}
        for root in (box[ROOT], *(box[at + 1] for at in range(PREV_ROOTS, PREV_ROOTS + 2 * NR_PREV_ROOTS, 2))):
            level, table = vcpu.root.level if vcpu.root is not None else 0, root >> PAGE_SHIFT
            while level and root and table in self.kvm.sp_by_pfn:
                sptep = (table << 9) + (va >> 3 + 9 * level & 511)
                sp = self.kvm.sp_by_pfn[table]
                if level == 1 and sp.unsync and self._differs(sp, sptep & 511):
                    found[sptep] = q[sptep]
                if level == 1 or not q[sptep] & PT_PRESENT or q[sptep] & PT_PAGE_SIZE:
                    break
                level, table = level - 1, (q[sptep] & PT_ADDR_MASK) >> PAGE_SHIFT
        return found

    def _on_cr(self, register: int, value: int) -> None:
        self._cr3_value = value if register == 3 else None

    def _on_exception(self, vector: int, *_: Any) -> None:
        """#GP: a MOV to CR3 that was refused has flushed nothing."""
        if vector == GP_VECTOR:
            self._cr3_value = None

    def _on_entry(self, vcpu_id: int, rip: int) -> None:
        vcpu = self.kvm.vcpus[vcpu_id]
        one, everything = self._one.pop(vcpu_id, {}), self._all.pop(vcpu_id, {})
        for sptep in one:
            self._fail_if_stale(sptep, "INVLPG has flushed it")
        flushed = vcpu.engine.cr3 == self._cr3_value or (vcpu.engine.cr4 ^ self._cr4.get(vcpu_id, 0)) & CR4_PGE
        if everything and flushed:
            roots = self._pages_of_root(vcpu)
            for sptep in everything:
                sp = self.kvm.sp_by_pfn.get(sptep >> 9)
                if sp is not None and _is_below(self.kvm.sp_by_pfn, sp, roots):
                    self._fail_if_stale(sptep, "a CR3 load or a flush of everything came after it")

    def _fail_if_stale(self, sptep: int, flush: str) -> None:
        sp = self.kvm.sp_by_pfn.get(sptep >> 9)
        if sp is not None and self._differs(sp, sptep & 511):
            self.sanitizer.fail("I27", f"spte {self.kvm.q[sptep]:#x} at {sptep * 8:#x} is stale", flush)

    def _pages_of_root(self, vcpu: Vcpu) -> set[int]:
        """Frames of the pages that the CPU walks from, with the CR3 that it has now."""
        box = vcpu.engine.box
        pairs = [(box[KEY_CR3], box[ROOT])]
        pairs += [(box[at], box[at + 1]) for at in range(PREV_ROOTS, PREV_ROOTS + 2 * NR_PREV_ROOTS, 2)]
        hpa = next((root for cr3, root in pairs if root and cr3 == vcpu.engine.cr3), None)
        found = [root for root in vcpu.roots if root.hpa == hpa]
        return {page.pfn for root in found for page in root.pages if page is not None}


def _is_below(pages: dict[int, KvmMmuPage], sp: KvmMmuPage, pfns: set[int]) -> bool:
    """Whether a link from one of these frames leads to `sp`, or it is one of them."""
    return sp.pfn in pfns or any(_is_below(pages, pages[sptep >> 9], pfns) for sptep in sp.parent_ptes)
