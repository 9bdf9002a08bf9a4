"""Slots come and go while the guest runs: what the ioctl refuses, and that nothing of an old slot is left."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from shadowvm.addr import PAGE_SIZE, Gpa, Hva
from shadowvm.errors import KvmError
from shadowvm.events import Tracepoint, attached, kvm_mmu_get_page
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES
from shadowvm.lab.invariants import Sanitizer
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import mmap
from shadowvm.mm.mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from shadowvm.mm.uaccess import copy_to_user
from shadowvm.params import KvmParams
from tests.guest_run import config_for
from tests.tiny import EXIT, write_tiny

MIB = 1 << 20
EXTRA = Gpa(0x1000_0000)
ELSEWHERE = Gpa(0x2000_0000)
SLOT = 5

ONE_IN_EACH_2M = (
    f"mov ecx, 90\nmov edi, 0x200000\nnext: mov [rdi], eax\nadd edi, 0x200000\nloop next\nxor eax, eax\n{EXIT}"
)


def machine_for(directory: Path, source: str, **more: object) -> Machine:
    more = {"timeout_instructions": 10_000_000, **more}
    return Machine(config_for(write_tiny(directory, source), **more), lambda byte: None)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return machine_for(tmp_path, f"mov eax, 1\n{EXIT}")


def add(machine: Machine, size: int = MIB) -> Hva:
    """Give the guest a slot at EXTRA."""
    hva = mmap(machine.mm, size)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, size, hva)
    return hva


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1, EXTRA, MIB, Hva(0), 0), "numbered"),
        ((32764, EXTRA, MIB, Hva(0), 0), "numbered"),
        ((SLOT, EXTRA, MIB, Hva(0), 1 << 16), "unknown flags"),
        ((SLOT, EXTRA, MIB, Hva(0), 4), "unknown flags"),
        ((2 << 16 | SLOT, EXTRA, MIB, Hva(0), 0), "2 address spaces"),
        ((1 << 16 | 32764, EXTRA, MIB, Hva(0), 0), "numbered"),
        ((SLOT, Gpa(0), 1 << 43, Hva(0), 0), "more than 0x7fffffff pages"),
        ((SLOT, Gpa(EXTRA + 1), MIB, Hva(0), 0), "page-aligned"),
        ((SLOT, EXTRA, MIB + 8, Hva(0), 0), "page-aligned"),
        ((SLOT, EXTRA, MIB, Hva(8), 0), "page-aligned"),
        ((SLOT, Gpa((1 << 40) - PAGE_SIZE), MIB, Hva(0), 0), "40 bits"),
        ((SLOT, EXTRA, MIB, Hva(1 << 47), 0), "user space"),
        ((SLOT, EXTRA, 0, Hva(0), 0), "none to delete"),
    ],
)
def test_what_cannot_be_a_slot_is_einval(
    machine: Machine, arguments: tuple[int, Gpa, int, Hva, int], text: str
) -> None:
    with pytest.raises(KvmError, match=text) as refused:
        machine.kvm.set_user_memory_region(*arguments)
    assert refused.value.errno == errno.EINVAL


def test_slots_may_not_overlap_nor_move_onto_each_other(machine: Machine) -> None:
    hva = add(machine)
    for slot, gpa in ((6, EXTRA), (6, Gpa(EXTRA + MIB - PAGE_SIZE)), (SLOT, Gpa(MIB))):
        with pytest.raises(KvmError, match="overlaps") as refused:
            machine.kvm.set_user_memory_region(slot, gpa, MIB, hva)
        assert refused.value.errno == errno.EEXIST


@pytest.mark.parametrize(("size", "moved"), [(2 * MIB, 0), (MIB, PAGE_SIZE)])
def test_size_and_memory_of_a_slot_are_for_ever(machine: Machine, size: int, moved: int) -> None:
    hva = add(machine)
    with pytest.raises(KvmError, match="cannot change"):
        machine.kvm.set_user_memory_region(SLOT, EXTRA, size, Hva(hva + moved))


def test_a_vcpu_does_not_remember_a_slot_that_has_changed(machine: Machine) -> None:
    hva = add(machine)
    machine.vcpu.slot = machine.kvm.memslots.slots[0]
    machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
    assert machine.vcpu.slot not in machine.kvm.memslots.slots


def test_an_update_waits_for_the_invalidations_that_have_begun(machine: Machine) -> None:
    """Two of them; their ends must find the slots that their starts have found."""
    sched, mm = machine.sched, machine.mm
    hva = add(machine)
    order: list[str] = []

    def invalidate(name: str, turns: int) -> None:
        range_ = MmuNotifierRange(mm, hva, Hva(hva + PAGE_SIZE), MmuNotifierEvent.CLEAR)
        mmu_notifier_invalidate_range_start(range_)
        for _ in range(turns):
            sched.preempt()
        mmu_notifier_invalidate_range_end(range_)
        order.append(name)

    def update() -> None:
        machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
        order.append("deleted")

    sched.spawn("long", lambda: invalidate("long", 9))
    sched.spawn("short", lambda: invalidate("short", 2))
    sched.spawn("update", update)
    sched.run()
    assert order == ["short", "long", "deleted"]
    assert machine.kvm.mmu_invalidate_in_progress == 0
    machine.close()


def test_a_call_that_changes_nothing_is_no_generation(machine: Machine) -> None:
    hva = add(machine)
    generation = machine.kvm.memslots.generation
    machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva)
    assert machine.kvm.memslots.generation == generation
    machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva, KVM_MEM_LOG_DIRTY_PAGES)
    assert machine.kvm.memslots.generation == generation + 2


def run_with(machine: Machine, act: object) -> int | None:
    """Run under the sanitizer; `act` is a task of the VMM."""
    sanitizer = Sanitizer(machine)
    with sanitizer.watching():
        machine.sched.spawn("vmm", act)  # type: ignore[arg-type]
        outcome = machine.run()
        machine.close()
    sanitizer.finish()
    return outcome.status


TOUCH = f"""
mov edi, {EXTRA:#x}
mov ecx, 256
fill: mov [rdi], edi
add edi, 4096
loop fill
"""
WAIT = "wait1: pause\ncmp dword [0x7900], {0}\njne wait1\n"
"""Until the VMM has stored a number there."""


def tell(machine: Machine, value: int) -> None:
    machine.write_guest(Gpa(0x7900), value.to_bytes(4, "little"))


def test_a_moved_slot_is_at_its_new_place_with_what_was_in_it(tmp_path: Path) -> None:
    check = f"mov edi, {ELSEWHERE:#x}\nmov esi, {EXTRA:#x}\nmov ecx, 256\n"
    check += "check: cmp [rdi], esi\njne bad\nadd edi, 4096\nadd esi, 4096\nloop check\nxor eax, eax\n"
    ready = "mov dword [0x7904], 1\n"
    machine = machine_for(tmp_path, f"{TOUCH}{ready}{WAIT.format(7)}{check}{EXIT}bad: mov eax, 9\n{EXIT}")
    hva = add(machine)

    def move() -> None:
        until(machine, 0x7904)
        machine.kvm.set_user_memory_region(SLOT, ELSEWHERE, MIB, hva)
        tell(machine, 7)

    assert run_with(machine, move) == 0


def until(machine: Machine, gpa: int) -> None:
    """Wait for the guest to store something there."""
    while not machine.read_guest(Gpa(gpa), 4).strip(b"\0"):
        machine.sched.preempt()


def test_a_deleted_slot_reads_as_nothing_and_its_memory_is_the_vmms_again(tmp_path: Path) -> None:
    gone = f"mov eax, [{EXTRA:#x}]\ninc eax\n"
    machine = machine_for(tmp_path, f"{TOUCH}mov dword [0x7904], 1\n{WAIT.format(7)}{gone}{EXIT}")
    hva = add(machine)

    def delete() -> None:
        until(machine, 0x7904)
        machine.kvm.set_user_memory_region(SLOT, EXTRA, 0, hva)
        assert machine.kvm.memslots.by_id(SLOT) is None
        assert copy_to_user(machine.mm, hva, b"mine again") is None
        tell(machine, 7)

    assert run_with(machine, delete) == 0


@pytest.mark.parametrize("seed", range(1, 9))
def test_slots_that_move_to_and_fro_under_two_running_cpus(seed: int, tmp_path: Path) -> None:
    """memslot_modification_stress_test: each store of the guest lands in the slot, or nowhere."""
    from tests.kvm.smp import LONG_MODE, START

    hammer = f"""{START}xor ebp, ebp
other: mov r8d, 60
pass: mov edi, {EXTRA:#x}
mov ecx, 64
next: mov dword [rdi + rbp * 8], 5
mov dword [rdi + rbp * 8 + {ELSEWHERE - EXTRA}], 5
add edi, 4096
loop next
dec r8d
jnz pass
test ebp, ebp
jz done
cli
hlt
done: xor eax, eax
{EXIT}{LONG_MODE}"""
    machine = machine_for(tmp_path, hammer, smp=2, quantum=(10, 300), seed=seed, host_memory=3 * MIB)
    hva = add(machine, 256 << 10)

    def move() -> None:
        for number in range(20):
            gpa = (ELSEWHERE, EXTRA)[number % 2]
            machine.kvm.set_user_memory_region(SLOT, gpa, 256 << 10, hva)
            for _ in range(10):
                machine.sched.preempt()

    assert run_with(machine, move) == 0


def test_the_limit_of_shadow_pages_is_what_was_asked_for(tmp_path: Path) -> None:
    knobs = KvmParams(nr_mmu_pages=64)
    guest = write_tiny(tmp_path, ONE_IN_EACH_2M)
    config = config_for(guest, memory=192 * MIB, host_memory=8 * MIB, kvm_params=knobs)
    machine = Machine(config, lambda byte: None)
    most = 0

    def watch(_tracepoint: Tracepoint, _args: tuple[object, ...]) -> None:
        nonlocal most
        most = max(most, len(machine.kvm.active_mmu_pages))

    with attached(watch, [kvm_mmu_get_page]):
        assert machine.run().status == 0
    assert machine.kvm.n_max_mmu_pages == 64
    assert 60 <= most <= 64
    recycled = machine.kvm.stat.mmu_recycled
    machine.vm.set_nr_mmu_pages(1000)
    assert (machine.kvm.n_max_mmu_pages, machine.kvm.stat.mmu_recycled) == (1000, recycled)
    with pytest.raises(KvmError, match="fewer than 64"):
        machine.vm.set_nr_mmu_pages(63)
    machine.close()
