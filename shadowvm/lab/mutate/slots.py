"""Bugs of what stands where no memory is, or only ROM, of the dirty ring, and of a slot that goes alone."""

from __future__ import annotations

from functools import partial

from ...addr import PAGE_SIZE
from ...events import kvm_page_fault
from ...kvm import dirty, dirty_ring, dirty_ring_reset
from ...kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from ...kvm.dirty_ring import kvm_enable_dirty_log_ring
from ...kvm.dirty_ring_reset import dirty_ring_entries, reset_dirty_rings
from ...kvm.memslot import KVM_MEM_READONLY, MemSlot
from ...kvm.mmu import mmio_fault, zap_memslot
from ...kvm.mmu.mmio_spte import MMIO_SPTE_GEN_MASK
from ...machine import Machine
from ...mm.mm_struct import mmap
from ...mm.uaccess import copy_to_user
from ...params import KvmParams
from ...x86 import PFERR_RSVD
from . import host
from .guest import DATA, KERNEL, PAGE, PAGE_PDE, TABLE, A, Code, P, W
from .mutation import Mutation
from .patch import Edit
from .scenario import Action, Meanwhile, Scenario

NOWHERE = 0x6000_0000
LOG = partial(host.log_dirty, gpa=PAGE)


def add_rom(machine: Machine) -> None:
    """Read-only memory at EXTRA, with something in it."""
    hva = mmap(machine.mm, PAGE_SIZE)
    copy_to_user(machine.mm, hva, b"\1")
    machine.kvm.set_user_memory_region(host.EXTRA_SLOT, host.EXTRA, PAGE_SIZE, hva, KVM_MEM_READONLY)


def next_round(machine: Machine) -> None:
    """So many changes of slots that the 19 bits of their generation begin anew, and then add EXTRA in what was now."""
    slots = machine.kvm.memslots
    before = slots.generation
    slots.generation = before & ~MMIO_SPTE_GEN_MASK | MMIO_SPTE_GEN_MASK & ~1
    hva = mmap(machine.mm, 2 * PAGE_SIZE)
    machine.kvm.set_user_memory_region(host.EXTRA_SLOT, host.ELSEWHERE, PAGE_SIZE, hva)
    slots.generation += before - 2
    machine.kvm.set_user_memory_region(host.EXTRA_SLOT + 1, host.EXTRA, PAGE_SIZE, hva)


def by_hand(machine: Machine) -> None:
    """Logs of the guest's memory are cleared by hand."""
    machine.kvm.manual_dirty_log_protect = ManualProtect.ENABLE


def harvest_by_hand(machine: Machine) -> None:
    """KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG of all that it has."""
    slot = host.slot_of(machine, PAGE)
    kvm_clear_dirty_log(machine.kvm, slot.id, 0, slot.npages, kvm_get_dirty_log(machine.kvm, slot.id))


def rings(machine: Machine) -> None:
    """Logs are rings."""
    kvm_enable_dirty_log_ring(machine.kvm, 4096)


def harvest_rings(machine: Machine) -> None:
    """What user space does with the rings."""
    for vcpu in machine.kvm.vcpus:
        dirty_ring_entries(vcpu)
    reset_dirty_rings(machine.kvm)


def _is_mmio_fault(machine: Machine, vcpu_id: int, rip: int, gva: int, error_code: int) -> bool:
    return error_code & PFERR_RSVD != 0


def _appears(action: Action) -> Scenario:
    code = Code().load(host.EXTRA).load(host.EXTRA).host(0).store(host.EXTRA, 7).expect(host.EXTRA, 7).exit()
    return Scenario(code, actions=(action,))


RINGS = Scenario(
    Code().store(PAGE, 1).host(0).store(PAGE, 2).host(1).store(PAGE, 3).host(1).expect(PAGE, 3).exit(),
    prepare=rings,
    actions=(LOG, harvest_rings),
)
BY_HAND = Scenario(RINGS.guest, prepare=by_hand, actions=(LOG, harvest_by_hand))
ROM = Scenario(Code().load(host.EXTRA).store(host.EXTRA, 7).expect(host.EXTRA, 1).exit(), prepare=add_rom)

REDIRECTED = Scenario(
    Code()
    .store(TABLE, 0x600000 | P | W | A)
    .store(PAGE_PDE, TABLE | KERNEL)
    .reload_cr3()
    .load(PAGE)
    .host(0)
    .store(PAGE, 7)
    .exit(),
    actions=(partial(host.write, gpa=TABLE, value=NOWHERE | DATA),),
)
"""A page that is mapped read-only, for its entry is clean, until somebody redirects it from outside to no memory."""

TABLE_GOES = Scenario(
    Code()
    .store(host.EXTRA, 0x600000 | DATA)
    .store(PAGE_PDE, host.EXTRA | KERNEL)
    .reload_cr3()
    .load(PAGE)
    .host(0)
    .exit(),
    config={"kvm_params": KvmParams(slot_zap_all=0)},
    prepare=host.add_slot,
    actions=(host.delete_slot,),
)

MUTATIONS = (
    Mutation(
        "mmio-generation-unchecked",
        "",
        "an mmio spte is believed whatever has become of the slots",
        ("I32",),
        (Edit(mmio_fault.check_mmio_spte, "return kvm_gen == spte_gen", "return True"),),
        Scenario(
            Code().load(host.EXTRA).host(0).store(host.EXTRA, 7).expect(host.EXTRA, 7).exit(), actions=(host.add_slot,)
        ),
    ),
    Mutation(
        "mmio-used-during-update",
        "",
        "an mmio spte is believed while an update of the slots is under way, of which the generation does not tell yet",
        ("I32",),
        (
            Edit(
                mmio_fault.check_mmio_spte,
                "if generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:",
                "if False:",
            ),
        ),
        Scenario(
            Code().load(host.EXTRA).load(host.EXTRA).store(host.EXTRA, 7).expect(host.EXTRA, 7).exit(),
            actors=(Meanwhile(kvm_page_fault, host.add_slot, when=_is_mmio_fault),),
        ),
    ),
    Mutation(
        "mmio-cache-outlives-slots",
        "56f17dd3fbc4",
        "what a vCPU remembers of its last mmio access is not dropped with the generation",
        ("I32",),
        (Edit(mmio_fault.handle_mmio_page_fault, " and info.generation == vcpu.memslots.generation", ""),),
        _appears(host.add_slot),
    ),
    Mutation(
        "mmio-wrap-ignored",
        "e1359e2beb8b",
        "the bits of the generation begin anew, and mmio sptes of the round before are good again",
        ("I32",),
        (Edit(mmio_fault.kvm_mmu_invalidate_mmio_sptes, "kvm_mmu_zap_all_fast(kvm)", "pass"),),
        _appears(next_round),
    ),
    Mutation(
        "mmio-over-present",
        "",
        "an mmio spte is put over a present one, whose rmap entry and TLB entries stay",
        ("I33",),
        (Edit(mmio_fault.mark_mmio_spte, "if kvm.q[sptep] & SPTE_MMU_PRESENT:", "if False:"),),
        REDIRECTED,
    ),
    Mutation(
        "readonly-ignored",
        "",
        "a read-only slot gives writable sptes",
        ("I23",),
        (Edit(MemSlot.__init__, "0 if flags & KVM_MEM_READONLY else PT_WRITABLE", "PT_WRITABLE"),),
        ROM,
    ),
    Mutation(
        "ring-push-forgotten",
        "",
        "a page becomes writable and is not pushed to the dirty ring",
        ("I30",),
        (Edit(dirty_ring.DirtyRingLog.add, "self._push(gfn)", "pass"),),
        RINGS,
    ),
    Mutation(
        "ring-reset-no-flush",
        "",
        "a reset takes W from the sptes and leaves the TLBs writable",
        ("I17",),
        (Edit(dirty_ring_reset.reset_dirty_rings, "        kvm.flush_remote_tlbs()\n", "        pass\n"),),
        RINGS,
    ),
    Mutation(
        "ring-reset-no-protect",
        "",
        "a reset frees the entries of pages that stay writable",
        ("I17",),
        (
            Edit(
                dirty_ring_reset._kvm_reset_dirty_gfn,
                "    kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, gfns)\n",
                "",
            ),
        ),
        RINGS,
    ),
    Mutation(
        "clear-log-no-protect",
        "",
        "KVM_CLEAR_DIRTY_LOG forgets pages that stay writable",
        ("I17",),
        (
            Edit(
                dirty.kvm_clear_dirty_log,
                "        kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, cleared)\n",
                "",
            ),
        ),
        BY_HAND,
    ),
    Mutation(
        "slot-zap-leaves-tables",
        "d012a06ab1d2",
        "a slot goes, of which only leaf sptes were zapped: shadow pages of tables in it stay, counted nowhere",
        ("I34",),
        (Edit(zap_memslot._kvm_mmu_zap_memslot, "kvm_mmu_prepare_zap_page(kvm, sp, invalid_list)", "pass"),),
        TABLE_GOES,
    ),
)
