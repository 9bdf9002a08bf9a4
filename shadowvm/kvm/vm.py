"""A virtual machine: memory slots, vCPUs, the shadow MMU's lists and the state of invalidation (struct kvm).

Bound by mmu_lock: everything whose name begins with mmu_invalidate_, active_mmu_pages, page_hash, sp_by_pfn, the
rmaps of the slots, and every store to a shadow table. Shadow pages need it for write; faults of the TDP MMU hold it for
read (mmu/tdp_spte.py).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from ..addr import Gfn, Gpa, Hva, Pfn
from ..events import kvm_flush_remote_tlbs
from ..mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from ..params import DEFAULT_PARAMS, KvmParams
from ..rcu import Rcu
from ..sync import Lock, LockRank, RwLock
from ..workqueue import Workqueue
from ..x86 import PT_DIRTY
from .dirty import ManualProtect
from .memory_region import kvm_set_memory_region
from .memslot import KVM_ADDRESS_SPACE_NUM, MemSlot, MemSlots
from .mmu.access_track import SPTE_TDP_AD_DISABLED
from .mmu.shadow import KVM_MIN_ALLOC_MMU_PAGES, KvmMmuPage
from .mmu.tdp_mmu import kvm_mmu_uninit_tdp_mmu
from .mmu.zap_all import kvm_mmu_zap_all
from .notifier import KvmMmuNotifier
from .stats import VmStat
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..mm.mm_struct import MmStruct
    from ..sync import Task
    from .cpuid import CpuModel
    from .vcpu import Vcpu

KVM_REQ_TLB_FLUSH = 1 << 0
KVM_REQ_MMU_FREE_OBSOLETE_ROOTS = 1 << 1
KVM_REQ_PAUSE = 1 << 2
KVM_REQ_MMU_RELOAD = 1 << 3
KVM_REQ_DEVICE_WORK = 1 << 4
KVM_REQ_SRCU = 1 << 5
KVM_REQ_APF_HALT = 1 << 6
KVM_REQ_APF_READY = 1 << 7
KVM_REQ_MMU_SYNC = 1 << 8
# 1 << 9 is KVM_REQ_DIRTY_RING_SOFT_FULL, of dirty_ring.py.


class Debugger(Protocol):
    """Who stops vCPUs between two instructions, unseen by all else."""

    def enter(self, vcpu: Vcpu) -> int:
        """Enter the guest in as many pieces as it likes: engine.enter()."""


class Kvm:
    """One VM on the memory of `mm`.

    mmu_invalidate_seq: bumped when an invalidation ends. mmu_invalidate_in_progress: how many are open.
    mmu_invalidate_range_start/_end: gfns, the union of the open ones. link_generation: bumped when a link between
    shadow pages is cut. mmu_valid_gen: 0 or 1, of the shadow pages in use. loaded: the vCPU that executes, or did so
    last. elsewhere: what the others have retired. a20_closed: address bit 20 is 0, whatever the CPUs say.
    srcu_waiters: tasks in synchronize_srcu(); mn_memslots_update_waiters: those that wait for the end of invalidations.
    memslots: what vCPUs see outside of SMM, which is address_spaces[0]; address_spaces[1]: inside of it.
    dirty_ring_size: bytes of each vCPU's dirty ring, 0 where logs are bitmaps.
    debugger: None in an ordinary run. params: KVM's knobs.
    tdp_enabled: two-dimensional paging, else shadow paging; tdp_mmu_enabled: by the TDP MMU, else
    by direct shadow pages. ad_disabled: its leaves have no A and D bits, and tdp_ad_bits say so. pml: its D bits are
    the dirty log. tdp_mmu_roots: every root that anybody holds; tdp_mmu_pages: tables below them. rcu: who looks at
    tables without mmu_lock. possible_nx_huge_pages: see mmu/nx_huge_page.py, oldest first;
    on_nx_huge_page is called when there is one more.
    async_pf_wq: whose workers bring pages that vCPUs do not wait for. turns: how long each of them may execute. paused:
    all are to return from run(). all_asleep: nothing will ever wake one.
    """

    __slots__ = (
        "a20_closed",
        "active_mmu_pages",
        "ad_disabled",
        "address_spaces",
        "all_asleep",
        "async_pf_wq",
        "cpu_model",
        "debugger",
        "dirty_ring_size",
        "elsewhere",
        "link_generation",
        "loaded",
        "manual_dirty_log_protect",
        "memslots",
        "mm",
        "mmu_invalidate_in_progress",
        "mmu_invalidate_range_end",
        "mmu_invalidate_range_start",
        "mmu_invalidate_seq",
        "mmu_lock",
        "mmu_valid_gen",
        "mn_active_invalidate_count",
        "mn_memslots_update_waiters",
        "n_max_mmu_pages",
        "n_requested_mmu_pages",
        "notifier",
        "on_nx_huge_page",
        "page_hash",
        "params",
        "paused",
        "pml",
        "possible_nx_huge_pages",
        "q",
        "rcu",
        "slots_lock",
        "sp_by_pfn",
        "srcu_waiters",
        "stat",
        "tdp_ad_bits",
        "tdp_enabled",
        "tdp_mmu_enabled",
        "tdp_mmu_pages",
        "tdp_mmu_roots",
        "turns",
        "vcpus",
    )

    def __init__(
        self,
        mm: MmStruct,
        cpu_model: CpuModel,
        turns: Turns | None = None,
        params: KvmParams = DEFAULT_PARAMS,
        *,
        tdp_enabled: bool = False,
    ) -> None:
        self.mm = mm
        self.params = params
        self.on_nx_huge_page: Callable[[], None] = lambda: None
        self.possible_nx_huge_pages: dict[Pfn, KvmMmuPage] = {}
        self.tdp_enabled = tdp_enabled
        self.tdp_mmu_enabled = tdp_enabled and bool(params.tdp_mmu)
        self.ad_disabled = tdp_enabled and not params.eptad
        self.tdp_ad_bits = SPTE_TDP_AD_DISABLED | PT_DIRTY if self.ad_disabled else 0
        self.pml = self.tdp_mmu_enabled and bool(params.pml) and not self.ad_disabled
        self.rcu = Rcu(mm.host.sched)
        self.tdp_mmu_roots: list[KvmMmuPage] = []
        self.tdp_mmu_pages = 0
        self.cpu_model = cpu_model
        self.turns = turns or Turns()
        self.manual_dirty_log_protect = ManualProtect.OFF
        self.debugger: Debugger | None = None
        self.dirty_ring_size = 0
        self.loaded: Vcpu | None = None
        self.elsewhere = 0
        self.paused = self.all_asleep = False
        self.q = mm.host.ram.q
        self.address_spaces = tuple(MemSlots(as_id) for as_id in range(KVM_ADDRESS_SPACE_NUM))
        self.memslots = self.address_spaces[0]
        self.a20_closed = False
        self.vcpus: list[Vcpu] = []
        self.stat = VmStat()
        self.mmu_lock = RwLock(mm.host.sched, "mmu_lock", LockRank.MMU_LOCK)
        self.mmu_valid_gen = 0
        self.mmu_invalidate_seq = 0
        self.mmu_invalidate_in_progress = 0
        self.mmu_invalidate_range_start = Gfn(0)
        self.mmu_invalidate_range_end = Gfn(0)
        self.mn_active_invalidate_count = 0
        self.mn_memslots_update_waiters: list[Task] = []
        self.slots_lock = Lock(mm.host.sched, "slots_lock", LockRank.SLOTS_LOCK, sleeps=True)
        self.srcu_waiters: list[Task] = []
        self.active_mmu_pages: OrderedDict[Pfn, KvmMmuPage] = OrderedDict()
        self.link_generation = 0
        self.page_hash: dict[Gfn, list[KvmMmuPage]] = {}
        self.sp_by_pfn: dict[int, KvmMmuPage] = {}
        self.n_max_mmu_pages = KVM_MIN_ALLOC_MMU_PAGES
        self.async_pf_wq = Workqueue(mm.host.sched, "kvm_async_pf")
        self.n_requested_mmu_pages = params.nr_mmu_pages
        self.notifier = KvmMmuNotifier(self)
        mmu_notifier_register(self.notifier, mm)

    def set_user_memory_region(
        self, slot_id: int, guest_phys_addr: Gpa, memory_size: int, userspace_addr: Hva, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION; a size of 0 deletes the slot. Raises KvmError. May sleep.

        `slot_id` has the address space in the bits from 16 on.
        """
        kvm_set_memory_region(self, slot_id, flags, guest_phys_addr, memory_size, userspace_addr)

    def id_to_memslot(self, slot_id: int) -> MemSlot | None:
        """The slot of a number with an address space, None if there is none."""
        as_id = slot_id >> 16
        return self.address_spaces[as_id].by_id(slot_id & 0xFFFF) if 0 <= as_id < KVM_ADDRESS_SPACE_NUM else None

    def gfn_ranges(self, start: Hva, end: Hva) -> list[tuple[MemSlot, Gfn, Gfn]]:
        """Guest frames [first, last) of each slot of any address space that a host-virtual range covers."""
        ranges = self.memslots.gfn_ranges(start, end)
        smm = self.address_spaces[1]
        return ranges + smm.gfn_ranges(start, end) if smm.slots else ranges

    def synchronize_srcu(self) -> None:
        """Wait until no vCPU uses what it has read: each that handles an exit gets to an entry, or to sleep, once."""
        current = self.mm.host.sched.current
        waited_for = [vcpu for vcpu in self.vcpus if vcpu.is_reading and vcpu.task is not current]
        for vcpu in waited_for:
            vcpu.requests |= KVM_REQ_SRCU
        while any(vcpu.requests & KVM_REQ_SRCU for vcpu in waited_for):
            self.srcu_waiters.append(current)
            self.mm.host.sched.wait(self.srcu_waiters)

    @property
    def instructions(self) -> int:
        """Guest instructions that all vCPUs have retired."""
        loaded = self.loaded
        return self.elsewhere if loaded is None else self.elsewhere + loaded.engine.instructions

    def pause(self) -> None:
        """Every vCPU returns from run() before its next entry, with INTR (QEMU's pause_all_vcpus)."""
        self.paused = True
        for vcpu in self.vcpus:
            vcpu.requests |= KVM_REQ_PAUSE
            vcpu.wake_up()

    def resume(self) -> None:
        """vCPUs may run again, those that slept for good too."""
        self.paused = self.all_asleep = False
        for vcpu in self.vcpus:
            vcpu.requests &= ~KVM_REQ_PAUSE

    def flush_remote_tlbs(self) -> None:
        """kvm_flush_remote_tlbs(): every vCPU flushes before it runs another guest instruction.

        No vCPU is in guest mode while host code runs, so none needs a kick; the request is served at the entry.
        """
        self.stat.remote_tlb_flush_requests += 1
        told = 0
        for vcpu in self.vcpus:
            vcpu.requests |= KVM_REQ_TLB_FLUSH
            told += 1
        if told:
            self.stat.remote_tlb_flush += 1
        if kvm_flush_remote_tlbs.on:
            kvm_flush_remote_tlbs(told)

    def request_free_obsolete_roots(self) -> None:
        """A root in use was zapped: every vCPU drops its invalid roots before it runs again."""
        for vcpu in self.vcpus:
            vcpu.requests |= KVM_REQ_MMU_FREE_OBSOLETE_ROOTS

    def set_a20(self, enabled: bool) -> None:
        """The A20 gate of the board: every vCPU loads other roots before it runs another guest instruction.

        From a port handler: the vCPU that is in the guest must leave it, which is the caller's to ask for.
        """
        self.a20_closed = not enabled
        for vcpu in self.vcpus:
            vcpu.requests |= KVM_REQ_MMU_RELOAD

    def flush_shadow_all(self) -> None:
        """kvm_flush_shadow_all(): the mm is going away."""
        self.mmu_lock.acquire()
        kvm_mmu_zap_all(self)
        self.mmu_lock.release()

    def destroy(self) -> None:
        """kvm_destroy_vm(): no page is on its way any more, leave the notifier list, then free every shadow page."""
        for vcpu in self.vcpus:
            vcpu.apf.clear_completion_queue()
        self.async_pf_wq.flush()
        mmu_notifier_unregister(self.notifier, self.mm)
        for vcpu in self.vcpus:
            vcpu.free_roots()
            vcpu.free_caches()
        self.flush_shadow_all()
        kvm_mmu_uninit_tdp_mmu(self)
