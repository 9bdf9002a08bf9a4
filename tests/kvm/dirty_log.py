"""A VMM that harvests a dirty log while the guest runs and keeps a copy of its memory, as live migration does.

A harvest takes the log and then copies the pages that are in it. So at any time a page that is not in the log is in the
copy as it is: a store that the log missed shows as a difference, at the next harvest or at the end.
"""

from __future__ import annotations

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Gfn, Hva
from shadowvm.config import MIB
from shadowvm.kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from shadowvm.kvm.dirty_ring import kvm_enable_dirty_log_ring
from shadowvm.kvm.dirty_ring_reset import dirty_ring_entries, reset_dirty_rings
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES, MemSlot
from shadowvm.kvm.mmu.tdp_dirty import kvm_arch_sync_dirty_log
from shadowvm.kvm.vcpu import Vcpu
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from shadowvm.mm.uaccess import copy_from_user
from shadowvm.phys import ZERO_PAGE
from tests.guest_run import config_for

MODES = ("get", "clear", "initially-set", "ring")
RING_BYTES = 4096


class Migration:
    """Harvests slot 0 in one of MODES. harvests: how many pages each had. full: how often a ring was full."""

    def __init__(self, machine: Machine, mode: str) -> None:
        self.machine, self.mode, self.kvm = machine, mode, machine.kvm
        self.copy: dict[Gfn, bytes] = {}
        self.harvests: list[int] = []
        self.full = 0
        if mode == "ring":
            kvm_enable_dirty_log_ring(self.kvm, RING_BYTES)
            machine.on_dirty_ring_full = self._ring_full
        elif mode != "get":
            self.kvm.manual_dirty_log_protect = ManualProtect.ENABLE
            if mode == "initially-set":
                self.kvm.manual_dirty_log_protect |= ManualProtect.INITIALLY_SET

    @property
    def slot(self) -> MemSlot:
        slot = self.kvm.id_to_memslot(0)
        assert slot is not None
        return slot

    def read(self, gfn: Gfn) -> bytes:
        data = copy_from_user(self.machine.mm, Hva(self.slot.vpn(gfn) << PAGE_SHIFT), PAGE_SIZE)
        assert isinstance(data, bytes)
        return data

    def start(self) -> None:
        """Turn the log on and make a first copy: what is stored meanwhile is in the log already."""
        slot = self.slot
        arguments = 0, slot.base_gfn << PAGE_SHIFT, slot.npages << PAGE_SHIFT, slot.userspace_addr
        self.kvm.set_user_memory_region(*arguments, KVM_MEM_LOG_DIRTY_PAGES)  # type: ignore[arg-type]
        for gfn in map(Gfn, range(slot.base_gfn, slot.end_gfn)):
            data = self.read(gfn)
            if data != ZERO_PAGE:
                self.copy[gfn] = data

    def harvest(self) -> None:
        """Take the log, and copy what is in it."""
        gfns = self._ring() if self.mode == "ring" else self._bitmap()
        self.harvests.append(len(gfns))
        for gfn in gfns:
            self.copy[gfn] = self.read(gfn)

    def _bitmap(self) -> list[Gfn]:
        slot = self.slot
        bitmap = kvm_get_dirty_log(self.kvm, 0)
        if self.mode != "get":
            for first in range(0, slot.npages, 64 * 5):
                count = min(64 * 5, slot.npages - first)
                part = bitmap[first >> 3 : first + count + 7 >> 3]
                if any(part):
                    kvm_clear_dirty_log(self.kvm, 0, first, count, part)
        return [Gfn(slot.base_gfn + n) for n in range(slot.npages) if bitmap[n >> 3] >> (n & 7) & 1]

    def _ring(self) -> list[Gfn]:
        entries = [entry for vcpu in self.kvm.vcpus for entry in dirty_ring_entries(vcpu)]
        reset_dirty_rings(self.kvm)
        return sorted({Gfn(self.slot.base_gfn + entry.offset) for entry in entries if entry.slot == 0})

    def _ring_full(self, vcpu: Vcpu) -> None:
        self.full += 1
        self.harvest()

    def verify(self) -> None:
        """The copy is the guest's memory, but for what is in the log."""
        slot = self.slot
        self.kvm.mmu_lock.acquire()
        kvm_arch_sync_dirty_log(self.kvm, slot)
        self.kvm.mmu_lock.release()
        logged = set(slot.dirty_bitmap or ())
        for gfn in map(Gfn, range(slot.base_gfn, slot.end_gfn)):
            if gfn not in logged:
                assert self.copy.get(gfn, ZERO_PAGE) == self.read(gfn), f"{self.mode}: gfn {gfn:#x} was written unseen"

    def task(self, pauses: int) -> None:
        """What the VMM does: harvest again and again, with `pauses` chances for others in between."""
        self.start()
        while self.machine.debug_exit.status is None and not self.kvm.paused:
            self.harvest()
            for _ in range(pauses):
                self.machine.sched.preempt()


def migrate(mode: str, guest: str, append: str, pauses: int = 80, **options: object) -> Migration:
    """Run a bundled guest under the sanitizer while its memory is copied; the copy is complete when it has ended."""
    options = {"memory": 4 * MIB, "timeout_instructions": 40_000_000, **options}
    machine = Machine(config_for(guest, append, **options), lambda byte: None)
    migration = Migration(machine, mode)
    sanitizer = Sanitizer(machine)
    with sanitizer.watching():
        machine.sched.spawn("migration", lambda: migration.task(pauses))
        outcome = machine.run()
        assert outcome.status == 0, outcome
        machine.sched.spawn("the rest", lambda: (migration.verify(), migration.harvest(), migration.verify()))
        machine.sched.run(drain=True)
        assert not migration.slot.dirty_bitmap
        machine.close()
    sanitizer.finish()
    return migration
