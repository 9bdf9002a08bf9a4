"""A CPU of loads and stores to guest-physical addresses: what two-dimensional paging needs of one, and no more.

Its walk is that of cpu/walker.py over the nested tables, its TLB a dict; a walk that fails goes to the fault handler.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Hva, Pfn
from shadowvm.config import MIB
from shadowvm.cpu.engine import READ, WRITE, WalkFault
from shadowvm.cpu.walker import USER, Refused, walk
from shadowvm.kvm.apf import AsyncPf
from shadowvm.kvm.cpuid import parse_cpu_model
from shadowvm.kvm.memslot import MemSlot
from shadowvm.kvm.mmu.direct_page_fault import kvm_tdp_page_fault
from shadowvm.kvm.mmu.page_fault import KvmPageFault
from shadowvm.kvm.mmu.root import free_obsolete_roots, kvm_mmu_free_roots, kvm_mmu_load
from shadowvm.kvm.mmu.spte import RetPf
from shadowvm.kvm.mmu.tdp_iter import tdp_leaf
from shadowvm.kvm.stats import VcpuStat
from shadowvm.kvm.vm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, KVM_REQ_TLB_FLUSH, Kvm
from shadowvm.mm.mm_struct import MmStruct, mmap
from shadowvm.mm.page_alloc import put_page
from shadowvm.params import KvmParams
from shadowvm.x86 import PFERR_PRESENT, PFERR_WRITE
from tests.mm.helpers import make_host

GO_ON = (RetPf.FIXED, RetPf.SPURIOUS, RetPf.RETRY)


class NestedEngine:
    """tlb: gfn -> (pfn, writable)."""

    def __init__(self) -> None:
        self.root = 0
        self.nested = SimpleNamespace(has_ad=True, gpa_mask=-1)
        self.tlb: dict[int, tuple[Pfn, bool]] = {}
        self.flushes = 0

    def load_nested_root(self, root: int, level: int = 4) -> None:
        self.root = root

    def drop_all_roots(self) -> None:
        self.root = 0

    def flush_tlb(self) -> None:
        self.tlb.clear()
        self.flushes += 1

    def may_cache(self, pfn: Pfn) -> bool:
        return any(each == pfn for each, _ in self.tlb.values())

    def may_cache_writable(self, pfn: Pfn) -> bool:
        return any(each == pfn and writable for each, writable in self.tlb.values())


class NestedCpu:
    """One vCPU of `kvm`, as far as its MMU looks at it."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.id = len(kvm.vcpus)
        self.sched = kvm.mm.host.sched
        self.engine = NestedEngine()
        self.stat = VcpuStat()
        self.requests = 0
        self.root: Any = None
        self.roots: list[Any] = []
        self.fault = KvmPageFault()
        self.walker = SimpleNamespace(gfn=Gfn(0), pkey=0, leaf_page=None)
        self.smm = False
        self.memslots = kvm.memslots
        self.no_slot = self.slot = MemSlot(-1, Gfn(0), 0, Hva(0))
        self.mmu_shadow_page_cache: list[Any] = []
        self.is_reading = False
        self.irq = None
        self.apf = AsyncPf()
        kvm.vcpus.append(self)

    def forget_slot(self) -> None:
        self.slot = self.no_slot

    def service_requests(self) -> None:
        self.enter()

    def free_roots(self) -> None:
        kvm_mmu_free_roots(self)

    def free_caches(self) -> None:
        while self.mmu_shadow_page_cache:
            put_page(self.kvm.mm.host, self.mmu_shadow_page_cache.pop())

    def enter(self) -> None:
        """What comes before each entry of the guest."""
        if self.requests & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS:
            self.requests &= ~KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
            free_obsolete_roots(self)
        if self.requests & KVM_REQ_TLB_FLUSH:
            self.requests &= ~KVM_REQ_TLB_FLUSH
            self.engine.flush_tlb()
        if self.root is None:
            assert kvm_mmu_load(self) == RetPf.CONTINUE

    def access(self, gpa: int, write: bool) -> int:
        """Index in ram.q of the word at `gpa`, after as many faults as it takes. IndexError: no memory is there."""
        while True:
            self.enter()
            cached = self.engine.tlb.get(gpa >> PAGE_SHIFT)
            if cached is not None and (cached[1] or not write):
                return cached[0] << 9 | (gpa & PAGE_SIZE - 1) >> 3
            self._fill(gpa, write)

    def _fill(self, gpa: int, write: bool) -> None:
        ram = self.kvm.mm.host.ram
        got = walk(ram, self.engine.root, gpa, WRITE if write else READ, USER)
        if not isinstance(got, Refused):
            self.engine.tlb[gpa >> PAGE_SHIFT] = got.pfn, got.writable
            return
        error_code = PFERR_WRITE if write else 0
        if got.why is not WalkFault.NOT_PRESENT:
            error_code |= PFERR_PRESENT
        ret = kvm_tdp_page_fault(self, Gpa(gpa), error_code)
        if ret is RetPf.EMULATE:
            raise IndexError(hex(gpa))
        assert ret in GO_ON, ret

    def load(self, gpa: int) -> int:
        index = self.access(gpa, write=False)
        return self.kvm.q[index]

    def store(self, gpa: int, value: int) -> None:
        index = self.access(gpa, write=True)
        self.kvm.q[index] = value

    def spte(self, gpa: int) -> int:
        """The leaf of the current root that maps `gpa`, 0 if there is none."""
        sptep = tdp_leaf(self.kvm, self.root.pages[0], gpa >> PAGE_SHIFT)
        return self.kvm.q[sptep] if sptep >= 0 else 0


def make_vm(memory: int = 4 * MIB, host_memory: int = 2 * MIB, cpus: int = 1, **params: int) -> Kvm:
    """A VM with two-dimensional paging, one slot from gpa 0, and NestedCpus."""
    host = make_host(host_memory)
    kvm = Kvm(MmStruct(host, "qemu"), parse_cpu_model("max", cpus), params=KvmParams(**params), tdp_enabled=True)
    kvm.set_user_memory_region(0, Gpa(0), memory, mmap(kvm.mm, memory))
    for _ in range(cpus):
        NestedCpu(kvm)
    return kvm


def cpus_of(kvm: Kvm) -> list[Any]:
    return list(kvm.vcpus)


def hva_of(kvm: Kvm, gpa: int) -> Hva:
    return Hva(kvm.memslots.slots[0].userspace_addr + gpa)
