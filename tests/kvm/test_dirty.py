"""Dirty logging: every write is in the next harvest, whoever made it, while pages come and go."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowvm.addr import Gpa, Hva
from shadowvm.errors import KvmError
from shadowvm.kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES as LOG
from shadowvm.machine import Machine
from tests.kvm.smp import LONG_MODE, START
from tests.kvm.test_memory_region import EXTRA, MIB, SLOT, add, machine_for, run_with, tell, until
from tests.tiny import EXIT

PAGES = 256
ROUNDS = 5


def log_on(machine: Machine, hva: Hva, size: int = MIB) -> None:
    machine.kvm.set_user_memory_region(SLOT, EXTRA, size, hva, LOG)


def pages_of(bitmap: bytes) -> set[int]:
    return {8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


def harvest(machine: Machine) -> set[int]:
    return pages_of(kvm_get_dirty_log(machine.kvm, SLOT))


ITERATE = f"""
xor r8d, r8d
round: inc r8d
turn: pause
cmp [0x7900], r8d
jb turn
mov edi, {EXTRA:#x}
mov ecx, {PAGES}
page: mov eax, edi
shr eax, 12
add eax, r8d
test eax, 3
jnz skip
mov [rdi], r8d
skip: add edi, 4096
loop page
mov [0x7904], r8d
cmp r8d, {ROUNDS}
jb round
xor eax, eax
{EXIT}
"""
"""dirty_log_test: in each round that the VMM allows, store the round's number to every fourth page."""


def follow_rounds(machine: Machine, take: Callable[[], set[int]]) -> list[set[int]]:
    """Allow one round after the other and harvest after each."""
    harvests = []
    for number in range(1, ROUNDS + 1):
        tell(machine, number)
        while machine.read_guest(Gpa(0x7904), 1)[0] != number:
            machine.sched.preempt()
        harvests.append(take())
    return harvests


def expected(number: int) -> set[int]:
    return {page for page in range(PAGES) if (page + number) % 4 == 0}


@pytest.mark.parametrize("host_memory", [64 * MIB, 2 * MIB], ids=["plenty", "little"])
def test_each_harvest_has_the_pages_of_its_round(host_memory: int, tmp_path: Path) -> None:
    machine = machine_for(tmp_path, ITERATE, host_memory=host_memory)
    hva = add(machine)
    found: list[set[int]] = []

    def vmm() -> None:
        log_on(machine, hva)
        found.extend(follow_rounds(machine, lambda: harvest(machine)))

    assert run_with(machine, vmm) == 0
    assert found == [expected(number) for number in range(1, ROUNDS + 1)]


def test_manual_protection_keeps_bits_until_they_are_cleared(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, ITERATE)
    hva = add(machine)
    machine.kvm.manual_dirty_log_protect = ManualProtect.ENABLE
    found: list[set[int]] = []

    def take() -> set[int]:
        bitmap = kvm_get_dirty_log(machine.kvm, SLOT)
        assert kvm_get_dirty_log(machine.kvm, SLOT) == bitmap
        kvm_clear_dirty_log(machine.kvm, SLOT, 0, 128, bitmap[:16])
        return pages_of(bitmap)

    def vmm() -> None:
        log_on(machine, hva)
        found.extend(follow_rounds(machine, take))

    assert run_with(machine, vmm) == 0
    low, high = set(range(128)), set(range(128, PAGES))
    assert [pages & low for pages in found] == [expected(number) & low for number in range(1, ROUNDS + 1)]
    assert found[3] & high == high


def test_initially_set_is_all_dirty_and_protects_nothing_at_first(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, ITERATE)
    hva = add(machine)
    machine.kvm.manual_dirty_log_protect = ManualProtect.ENABLE | ManualProtect.INITIALLY_SET
    log_on(machine, hva)
    assert harvest(machine) == set(range(PAGES))
    kvm_clear_dirty_log(machine.kvm, SLOT, 0, PAGES, b"\xff" * (PAGES // 8))
    assert harvest(machine) == set()
    machine.close()


def test_what_cannot_be_harvested_or_cleared_is_refused(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, ITERATE)
    hva = add(machine)
    for slot in (SLOT, 77):
        with pytest.raises(KvmError, match="no dirty log") as refused:
            kvm_get_dirty_log(machine.kvm, slot)
        assert refused.value.errno == errno.ENOENT
    log_on(machine, hva)
    for first, count, size in ((1, 64, 8), (0, 63, 8), (0, 320, 40), (192, 128, 16), (0, 64, 7), (-64, 64, 8)):
        with pytest.raises(KvmError) as refused:
            kvm_clear_dirty_log(machine.kvm, SLOT, first, count, bytes(size))
        assert refused.value.errno == errno.EINVAL
    machine.kvm.set_user_memory_region(SLOT, EXTRA, MIB, hva)
    with pytest.raises(KvmError, match="no dirty log"):
        harvest(machine)
    machine.close()


@pytest.mark.parametrize("seed", range(6))
def test_no_write_is_lost_while_two_cpus_store_and_memory_is_short(seed: int, tmp_path: Path) -> None:
    """The sanitizer compares contents at each harvest (I30) and looks for stale write access (I17)."""
    source = f"""{START}xor ebp, ebp
other: mov r8d, 12
pass: mov edi, {EXTRA:#x}
mov ecx, {PAGES}
next: inc dword [rdi + rbp * 8]
add edi, 4096
loop next
dec r8d
jnz pass
mov dword [0x7904], 1
test ebp, ebp
jz done
cli
hlt
done: xor eax, eax
{EXIT}{LONG_MODE}"""
    machine = machine_for(tmp_path, source, smp=2, quantum=(10, 300), seed=seed, host_memory=2304 << 10)
    hva = add(machine)
    harvests: list[set[int]] = []

    def vmm() -> None:
        log_on(machine, hva)
        while not machine.read_guest(Gpa(0x7904), 1)[0]:
            harvests.append(harvest(machine))
            for _ in range(40):
                machine.sched.preempt()

    assert run_with(machine, vmm) == 0
    assert sum(map(len, harvests)) > PAGES


def test_page_tables_that_the_mmu_itself_writes_are_dirty(tmp_path: Path) -> None:
    """A and D bits in a guest table of the slot, and an emulated store to it."""
    table = f"mov qword [{EXTRA:#x}], 0x400003\nmov qword [0xb018], {EXTRA | 3:#x}\nmov rax, cr3\nmov cr3, rax\n"
    first = f"{table}mov dword [0x7904], 1\nwait1: pause\ncmp dword [0x7900], 1\njne wait1\n"
    second = "mov dword [0x600000], 1\nmov dword [0x7908], 1\nwait2: pause\ncmp dword [0x7900], 2\njne wait2\n"
    third = f"mov qword [{EXTRA + 8:#x}], 0x401003\nmov dword [0x790c], 1\nwait3: pause\ncmp dword [0x7900], 3\n"
    machine = machine_for(tmp_path, f"{first}{second}{third}jne wait3\nxor eax, eax\n{EXIT}")
    hva = add(machine)
    found = []

    def vmm() -> None:
        until(machine, 0x7904)
        log_on(machine, hva)
        for number, done in ((1, 0x7908), (2, 0x790C)):
            harvest(machine)
            tell(machine, number)
            until(machine, done)
            found.append(harvest(machine))
        tell(machine, 3)

    assert run_with(machine, vmm) == 0
    assert found == [{0}, {0}]
