"""Laws of the shadow tables: I19, I21-I25, I34, I35. Keeps the sanitizer's own map of present leaves.

`leaves` is built from stores to shadow tables alone; the rmap, the counters and the tables themselves are compared
with it. Guest tables are read through the host page tables without touching them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...addr import PAGE_SHIFT, Gfn, Pfn, Vpn
from ...cpu.mailbox import KEY_CR3, NR_PREV_ROOTS, PREV_ROOTS, ROOT, WINDOWS_OPEN
from ...events import kvm_entry, kvm_exit, kvm_mmu_get_page, lock_release, spte_change
from ...kvm.memslot import KVM_MEM_READONLY
from ...kvm.mmu.rmap import rmap_sptes
from ...kvm.mmu.role import A20_GFN_MASK, ROLE_CR0_WP, unpack_role
from ...kvm.mmu.shadow import KvmMmuPage
from ...kvm.mmu.spte import SPTE_HOST_WRITABLE, SPTE_MMU_PRESENT, SPTE_MMU_WRITABLE, is_last_spte, spte_pfn
from ...mm.gup import host_pte
from ...x86 import (
    PT_ACCESSED,
    PT_ADDR_MASK,
    PT_DIRTY,
    PT_NX,
    PT_PAGE_SIZE,
    PT_PKEY_MASK,
    PT_PKEY_SHIFT,
    PT_PRESENT,
    PT_USER,
    PT_WRITABLE,
)
from .rules import Handler, Rules
from .spaces import all_slots, booked, booked_of, find_slot, plain, space_of

if TYPE_CHECKING:
    from ...events import Tracepoint
    from ...kvm.vm import Kvm
    from .sanitizer import Sanitizer

SWEEP_EVERY = 256
"""Exits between two looks at every entry of every shadow table."""

_LEGAL_TRIPLES = frozenset(
    (
        0,
        SPTE_HOST_WRITABLE,
        SPTE_HOST_WRITABLE | SPTE_MMU_WRITABLE,
        SPTE_HOST_WRITABLE | SPTE_MMU_WRITABLE | PT_WRITABLE,
    )
)
_TRIPLE = SPTE_HOST_WRITABLE | SPTE_MMU_WRITABLE | PT_WRITABLE


class Leaf(NamedTuple):
    """One present leaf spte."""

    gfn: Gfn
    """With its address space (spaces.py)."""
    pfn: Pfn
    spte: int
    npages: int = 1
    """512 for a large one."""

    def gfns(self) -> list[Gfn]:
        """Every frame that it maps."""
        return [Gfn(self.gfn + i) for i in range(self.npages)]

    def pfns(self) -> list[Pfn]:
        """Every frame that it maps them to."""
        return [Pfn(self.pfn + i) for i in range(self.npages)]


class ShadowRules(Rules):
    """See the module. `leaves`: sptep -> Leaf; `by_gfn`, `by_pfn`: the spteps of a frame."""

    laws = frozenset("I19 I21 I22 I23 I24 I25 I34 I35".split())

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__(sanitizer)
        self.kvm = sanitizer.machine.kvm
        self.leaves: dict[int, Leaf] = {}
        self.by_gfn: dict[Gfn, set[int]] = {}
        self.by_pfn: dict[Pfn, set[int]] = {}
        self._changed_gfns: set[Gfn] = set()
        self._new_pages: list[Gfn] = []
        self._exits = 0
        self._adopted = False

    def handlers(self) -> dict[Tracepoint, Handler]:
        """Stores to shadow tables, new shadow pages, the end of a critical section, and exits for the sweep."""
        return {
            spte_change: self._on_spte_change,
            kvm_mmu_get_page: self._on_get_page,
            lock_release: self._on_lock_release,
            kvm_entry: self._on_entry,
            kvm_exit: self._on_exit,
        }

    def adopt(self) -> None:
        """Make the books from the tables as they are, instead of from events. Once is enough."""
        if self._adopted:
            return
        self._adopted = True
        for sp in self.kvm.sp_by_pfn.values():
            for sptep in self._present(sp):
                if is_last_spte(self.kvm.q[sptep], sp.level):
                    self._book_leaf(sp, sptep, self.kvm.q[sptep])

    def validate(self) -> None:
        """Every entry, rmap and counter, against the tables as they are."""
        self.adopt()
        for sptep, leaf in self.leaves.items():
            self._check_leaf(self.kvm.sp_by_pfn[Pfn(sptep >> 9)], sptep, leaf.spte, widened=False)
        for slot in all_slots(self.kvm):
            self._changed_gfns.update(booked(gfn, slot.as_id) for gfn in slot.rmap)
            self._changed_gfns.update(booked(gfn + i, slot.as_id) for gfn in slot.rmap_large for i in range(512))
        self._on_lock_release(self.kvm.mmu_lock)
        for vcpu in self.kvm.vcpus:
            self._on_entry(vcpu.id, 0)
        self.sweep()

    def finish(self) -> None:
        """One last sweep."""
        self.sweep()

    def fail(self, law: str, one_side: str, other_side: str) -> None:
        """Report."""
        self.sanitizer.fail(law, one_side, other_side)

    def _on_spte_change(self, hpa: int, old: int, new: int) -> None:
        sptep = hpa >> 3
        if self.kvm.q[sptep] != old:
            self.fail("I35", f"spte at {hpa:#x} is {self.kvm.q[sptep]:#x}", f"its change says it was {old:#x}")
        sp = self.kvm.sp_by_pfn.get(Pfn(sptep >> 9))
        if sp is None:
            self.fail("I22", f"store to {hpa:#x}", "no live shadow page is there")
            return
        was_leaf, is_leaf = is_last_spte(old, sp.level), is_last_spte(new, sp.level)
        if was_leaf and is_leaf and old & new & SPTE_MMU_PRESENT and spte_pfn(old) != spte_pfn(new):
            self.fail("I19", f"spte {old:#x}", f"becomes {new:#x} without having been non-present")
        if was_leaf or is_leaf:
            self._book_leaf(sp, sptep, new if is_leaf else 0)
        if new & SPTE_MMU_PRESENT:
            if sp.invalid and not old & SPTE_MMU_PRESENT:
                self.fail("I34", f"spte {new:#x} is installed", f"in a zapped shadow page of gfn {sp.gfn:#x}")
            if not is_leaf:
                self._check_link(sp, sptep, new)
            else:
                self._check_leaf(sp, sptep, new, widened=widens(old, new))

    def _book_leaf(self, sp: KvmMmuPage, sptep: int, spte: int) -> None:
        before = self.leaves.pop(sptep, None)
        if before is not None:
            self._changed_gfns.update(before.gfns())
            for gfn, pfn in zip(before.gfns(), before.pfns(), strict=True):
                self.by_gfn[gfn].discard(sptep)
                self.by_pfn[pfn].discard(sptep)
        if spte & SPTE_MMU_PRESENT:
            leaf = Leaf(booked_of(sp, sp.gfn_of(sptep & 511)), spte_pfn(spte), spte, 1 if sp.level == 1 else 512)
            self.leaves[sptep] = leaf
            self._changed_gfns.update(leaf.gfns())
            for gfn, pfn in zip(leaf.gfns(), leaf.pfns(), strict=True):
                self.by_gfn.setdefault(gfn, set()).add(sptep)
                self.by_pfn.setdefault(pfn, set()).add(sptep)

    def _check_leaf(self, sp: KvmMmuPage, sptep: int, spte: int, *, widened: bool) -> None:
        """Rights are compared when they grow: between a store to a guest table and its zap they may be too wide."""
        leaf = self.leaves[sptep]
        where = f"spte {spte:#x} at {sptep * 8:#x}, gfn {leaf.gfn:#x}"
        if spte & _TRIPLE not in _LEGAL_TRIPLES:
            self.fail("I24", where, f"host-writable, mmu-writable, W are {spte & _TRIPLE:#x}")
        self._check_host_side(leaf, where)
        if widened and not (sp.unsync and len(self.kvm.vcpus) > 1):
            self._check_rights(sp, sptep & 511, spte, where)

    def _check_host_side(self, leaf: Leaf, where: str) -> None:
        slot = find_slot(self.kvm, leaf.gfn)
        if slot is not None and slot.flags & KVM_MEM_READONLY and leaf.spte & _TRIPLE:
            self.fail("I23", f"{where} is writable", f"slot {slot.id} is read-only")
        for gfn, pfn in zip(leaf.gfns(), leaf.pfns(), strict=True):
            vpn = vpn_of(self.kvm, gfn)
            if vpn is None:
                self.fail("I34", where, f"no memslot has gfn {gfn:#x}")
                return
            pte = host_pte(self.kvm.mm, vpn)
            if not pte & PT_PRESENT or (pte & PT_ADDR_MASK) >> PAGE_SHIFT != pfn:
                self.fail("I23", where, f"the host pte of gfn {gfn:#x} is {pte:#x}, which does not map pfn {pfn:#x}")
            if leaf.spte & (PT_WRITABLE | SPTE_MMU_WRITABLE) and not pte & PT_WRITABLE:
                self.fail("I23", f"{where} is writable", f"the host pte {pte:#x} of gfn {gfn:#x} is read-only")

    def guest_entry(self, sp: KvmMmuPage, index: int) -> int | None:
        """The guest's entry that entry `index` of an indirect page shadows; None if its table is not resident.

        A 32-bit entry is given in the form that the 64-bit one of the same meaning has, and one in ROM as marked: there
        it is used as it is.
        """
        frame = self._resident_table(sp)
        if frame is None:
            return None
        table = find_slot(self.kvm, booked_of(sp, sp.gfn))
        is_rom = table is not None and table.flags & KVM_MEM_READONLY
        entry = self._entry_in(frame, sp, index)
        return entry | PT_ACCESSED | PT_DIRTY if is_rom and entry & PT_PRESENT else entry

    def _entry_in(self, frame: Pfn, sp: KvmMmuPage, index: int) -> int:
        role = unpack_role(sp.role)
        if not role.has_4_byte_gpte:
            return self.kvm.q[(frame << 9) + index]
        at = 512 * role.quadrant + index >> (sp.level - 1)
        entry = self.kvm.q[(frame << 9) + (at >> 1)] >> 32 * (at & 1) & 0xFFFFFFFF
        if sp.level == 1 or not (role.cr4_pse and entry & PT_PAGE_SIZE):
            return entry & ~PT_PAGE_SIZE
        gfn = (entry >> 13 & 0xFF) << 20 | entry >> 22 << 10 | (index & 1) << 9
        return gfn << PAGE_SHIFT | entry & 0xFFF

    def _resident_table(self, sp: KvmMmuPage) -> Pfn | None:
        vpn = vpn_of(self.kvm, booked_of(sp, sp.gfn))
        if vpn is None:
            return None
        pte = host_pte(self.kvm.mm, vpn)
        return Pfn((pte & PT_ADDR_MASK) >> PAGE_SHIFT) if pte & PT_PRESENT else None

    def _check_rights(self, sp: KvmMmuPage, index: int, spte: int, where: str) -> None:
        """Inductive: a page's access is checked where it is linked, so the last entry is enough here."""
        if sp.mmu_valid_gen != self.kvm.mmu_valid_gen:
            return  # nobody walks it any more
        if sp.direct:
            allowed = sp.access
            gfn = sp.gfn + (index << 9 * (sp.level - 1))
            expected = Gfn(gfn & (A20_GFN_MASK if a20_closed(sp.role) else -1))
            pkey = sp.pkey
        else:
            gpte = self.guest_entry(sp, index)
            if gpte is None:
                return
            if not gpte & PT_PRESENT or not gpte & PT_ACCESSED:
                self.fail("I23", where, f"the guest's entry {gpte:#x} is not present and accessed")
            if spte & PT_WRITABLE and not gpte & PT_DIRTY:
                self.fail(
                    "I23", f"{where} is writable", f"the guest's entry {gpte:#x} would miss the store: it is clean"
                )
            allowed = sp.access & entry_access(gpte)
            expected = Gfn((gpte & PT_ADDR_MASK) >> PAGE_SHIFT & -1 << 9 * (sp.level - 1))
            pkey = gpte & PT_PKEY_MASK
            if sp.level > 1 and not gpte & PT_PAGE_SIZE:
                self.fail("I23", f"{where} is large", f"the guest's entry {gpte:#x} is not")
        if sp.gfn_of(index) != expected:
            self.fail("I23", where, f"the guest's tables say gfn {expected:#x}")
        if spte & PT_PKEY_MASK != pkey:
            self.fail("I23", f"{where} has another protection key", f"the guest's is {pkey >> PT_PKEY_SHIFT}")
        if spte & PT_USER and not allowed & PT_USER:
            self.fail("I23", f"{where} is a user's", f"the guest allows {allowed:#x}")
        supervisor_write = not spte & PT_USER and not sp.role & ROLE_CR0_WP
        if spte & PT_WRITABLE and not allowed & PT_WRITABLE and not supervisor_write:
            self.fail("I23", f"{where} is writable", f"the guest allows {allowed:#x}")
        if not spte & PT_NX and not allowed & 1:
            self.fail("I23", f"{where} is executable", f"the guest allows {allowed:#x}")
        if allowed & PT_USER and not spte & (PT_USER | PT_NX) and unpack_role(sp.role).smep_andnot_wp:
            self.fail("I23", f"{where} is executable in kernel mode", "the page is a user's, and SMEP is on")

    def _check_link(self, sp: KvmMmuPage, sptep: int, spte: int) -> None:
        where = f"link {spte:#x} at {sptep * 8:#x}, level {sp.level}"
        child = self.kvm.sp_by_pfn.get(spte_pfn(spte))
        if child is None or child.invalid:
            self.fail("I22", where, "no live shadow page is there")
            return
        if child.pfn not in self.kvm.active_mmu_pages:
            self.fail("I35", f"{where} publishes the shadow page of gfn {child.gfn:#x}", "it is on no list")
        if child.level != sp.level - 1 or sptep not in child.parent_ptes:
            self.fail("I22", where, f"the page is of level {child.level} and has parents {list(child.parent_ptes)}")
        if sp.direct:
            mask = A20_GFN_MASK if a20_closed(sp.role) else -1
            if (child.gfn ^ sp.gfn_of(sptep & 511)) & mask:
                self.fail("I22", f"{where} shadows gfn {child.gfn:#x}", f"its parent's gfn is {sp.gfn:#x}")
            return
        gpte = self.guest_entry(sp, sptep & 511)
        if gpte is None:
            return
        gfn, large = Gfn((gpte & PT_ADDR_MASK) >> PAGE_SHIFT), bool(gpte & PT_PAGE_SIZE)
        if large:
            gfn = Gfn(gfn & -1 << 9 * (sp.level - 1))
        if not gpte & PT_PRESENT or child.gfn != gfn or child.direct != large:
            self.fail("I22", f"{where} shadows gfn {child.gfn:#x}", f"the guest's entry is {gpte:#x}")
        if large and child.pkey != gpte & PT_PKEY_MASK:
            self.fail("I22", f"{where} is of a large page of another protection key", f"the guest's entry is {gpte:#x}")
        if large and child.access & PT_WRITABLE and not gpte & PT_DIRTY:
            self.fail("I22", f"{where} grants {child.access:#x}", f"the guest's entry {gpte:#x} is clean")
        allowed = sp.access & entry_access(gpte)
        # A direct page has the rights of one fault, which may be fewer, and under CR0.WP = 0 others.
        wrong = child.access & ~allowed and sp.role & ROLE_CR0_WP if large else child.access != allowed
        if wrong:
            self.fail("I22", f"{where} grants {child.access:#x}", f"the guest allows {allowed:#x}")

    def _on_get_page(self, gen: int, gfn: Gfn, role: str, root_count: int, unsync: int, created: bool) -> None:
        if gen != self.kvm.mmu_valid_gen:
            self.fail("I34", f"a shadow page of gfn {gfn:#x} and generation {gen} is used", "that is being zapped")
        if created:
            self._new_pages += (booked(gfn, slots.as_id) for slots in self.kvm.address_spaces)

    def _on_lock_release(self, lock: Any) -> None:
        if lock is not self.kvm.mmu_lock:
            return
        for gfn in self._changed_gfns:
            self._check_rmap(gfn)
            self._check_not_writable(gfn)
        for gfn in self._new_pages:
            self._check_not_writable(gfn)
        self._changed_gfns.clear()
        self._new_pages.clear()
        self._check_counters()

    def _check_rmap(self, gfn: Gfn) -> None:
        slot = find_slot(self.kvm, gfn)
        entries = [] if slot is None else list(rmap_sptes(slot, plain(gfn)))
        if len(entries) != len(set(entries)) or set(entries) != self.by_gfn.get(gfn, set()):
            mine = sorted(hex(sptep * 8) for sptep in self.by_gfn.get(gfn, ()))
            self.fail("I21", f"rmap of gfn {gfn:#x}: {[hex(e * 8) for e in entries]}", f"present leaves: {mine}")

    def _is_shadowed(self, gfn: Gfn) -> bool:
        pages = self.kvm.sp_by_pfn.values()
        return any(booked_of(sp, sp.gfn) == gfn and self._shadows(sp) and not sp.unsync for sp in pages)

    def _shadows(self, sp: KvmMmuPage) -> bool:
        return not sp.direct and not sp.invalid and sp.mmu_valid_gen == self.kvm.mmu_valid_gen

    def _check_not_writable(self, gfn: Gfn) -> None:
        for sptep in self.by_gfn.get(gfn, ()):
            if self.leaves[sptep].spte & (PT_WRITABLE | SPTE_MMU_WRITABLE) and self._is_shadowed(gfn):
                self.fail("I25", f"spte {self.leaves[sptep].spte:#x} makes gfn {gfn:#x} writable", "it is shadowed")

    def _check_counters(self) -> None:
        kvm = self.kvm
        large = sum(leaf.npages > 1 for leaf in self.leaves.values())
        if (kvm.stat.pages_4k, kvm.stat.pages_2m) != (len(self.leaves) - large, large):
            self.fail(
                "I35",
                f"pages_4k is {kvm.stat.pages_4k}, pages_2m {kvm.stat.pages_2m}",
                f"{len(self.leaves) - large} and {large} leaves are present",
            )
        self._check_pages()

    def _check_pages(self) -> None:
        kvm = self.kvm
        live = sum(not sp.invalid for sp in kvm.sp_by_pfn.values())
        hashed = sum(len(bucket) for bucket in kvm.page_hash.values())
        if not len(kvm.active_mmu_pages) == live == hashed:
            self.fail("I35", f"{len(kvm.active_mmu_pages)} active shadow pages", f"{live} live, {hashed} hashed")

    def _on_entry(self, vcpu_id: int, rip: int) -> None:
        """What the CPU walks for a CR3 is the shadow of the table that this CR3 names."""
        box = self.kvm.vcpus[vcpu_id].engine.box
        pairs = [(box[KEY_CR3], box[ROOT])]
        pairs += [(box[at], box[at + 1]) for at in range(PREV_ROOTS, PREV_ROOTS + 2 * NR_PREV_ROOTS, 2)]
        for cr3, root in pairs:
            sp = self.kvm.sp_by_pfn.get(Pfn(root >> PAGE_SHIFT))
            if sp is not None and not sp.direct and sp.gfn != (cr3 & PT_ADDR_MASK) >> PAGE_SHIFT:
                self.fail("I22", f"the root for cr3 {cr3:#x} is at {root:#x}", f"that shadows gfn {sp.gfn:#x}")

    def _on_exit(self, *_: Any) -> None:
        self._exits += 1
        if self._exits >= SWEEP_EVERY and not self.kvm.mmu_lock.held and not self.store_under_way():
            self._exits = 0
            self.sweep()

    def store_under_way(self) -> bool:
        """Another vCPU has a page table open for a store, and may be between the store and its zap."""
        return any(vcpu.engine.box[WINDOWS_OPEN] for vcpu in self.kvm.vcpus)

    def sweep(self) -> None:
        """Look at every entry of every shadow table: nothing is there that the books do not have, or is stale."""
        found = 0
        for sp in self.kvm.sp_by_pfn.values():
            for sptep in self._present(sp):
                index, spte = sptep & 511, self.kvm.q[sptep]
                if not is_last_spte(spte, sp.level):
                    self._check_link(sp, sp.q + index, spte)
                    continue
                found += 1
                leaf = self.leaves.get(sp.q + index)
                if leaf is None or leaf.pfn != spte_pfn(spte):
                    self.fail("I35", f"spte {spte:#x} at {(sp.q + index) * 8:#x}", f"the books have {leaf}")
                if not sp.unsync:
                    self._check_rights(sp, index, spte, f"spte {spte:#x}, gfn {sp.gfn_of(index):#x}")
        if found != len(self.leaves):
            self.fail("I35", f"{found} leaves in the tables", f"{len(self.leaves)} in the books")
        self._check_tracking()

    def _present(self, sp: KvmMmuPage) -> list[int]:
        """The spteps of a shadow page's present entries."""
        table = np.frombuffer(self.kvm.mm.host.ram.b, np.uint64)[sp.q : sp.q + 512]
        found: list[int] = (np.flatnonzero(table & np.uint64(SPTE_MMU_PRESENT)) + sp.q).tolist()
        return found

    def _check_tracking(self) -> None:
        """As many counts of write tracking as shadow pages of guest tables: one too many blocks a page for good."""
        least = 2 if self.kvm.params.unsync else 1
        pages = [sp for sp in self.kvm.sp_by_pfn.values() if not sp.direct and not sp.invalid and sp.level >= least]
        shadowing = Counter(booked_of(sp, sp.gfn) for sp in pages)
        for slot in all_slots(self.kvm):
            for gfn, count in slot.gfn_write_track.items():
                number = shadowing[booked(gfn, slot.as_id)]
                if count != number:
                    self.fail("I25", f"gfn {gfn:#x} is tracked {count} times", f"{number} pages shadow it")


def widens(old: int, new: int) -> bool:
    """Whether a present entry allows something that the one before did not."""
    gained = new & ~old & (PT_WRITABLE | SPTE_MMU_WRITABLE | PT_USER)
    return not old & SPTE_MMU_PRESENT or bool(gained or old & ~new & PT_NX)


@cache
def a20_closed(role: int) -> bool:
    """Whether a shadow page was made while A20 was closed."""
    return unpack_role(role).a20_closed


def entry_access(gpte: int) -> int:
    """ACC_* rights of one guest entry."""
    return gpte & (PT_WRITABLE | PT_USER) | (0 if gpte & PT_NX else 1)


def vpn_of(kvm: Kvm, gfn: int) -> Vpn | None:
    """Host virtual page of a gfn, from the memslots' definition and not by KVM's own look-up."""
    number = plain(gfn)
    for slot in kvm.address_spaces[space_of(gfn)].slots:
        if 0 <= number - slot.base_gfn < slot.npages:
            return Vpn((slot.userspace_addr >> PAGE_SHIFT) + number - slot.base_gfn)
    return None


def gfns_of(kvm: Kvm, vpn: int) -> list[Gfn]:
    """Every gfn that a host virtual page backs; as independent as vpn_of()."""
    found = []
    for slot in all_slots(kvm):
        index = vpn - (slot.userspace_addr >> PAGE_SHIFT)
        if 0 <= index < slot.npages:
            found.append(booked(slot.base_gfn + index, slot.as_id))
    return found
