"""Which neighbours a fault maps, and which not."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm import events
from shadowvm.addr import PAGE_SIZE, Gfn, Hva
from shadowvm.config import MIB
from shadowvm.kvm.mmu.spte import SPTE_MMU_WRITABLE
from shadowvm.mm.mmu_notifier import (
    MmuNotifierEvent,
    MmuNotifierRange,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from shadowvm.params import KvmParams
from shadowvm.x86 import PT_ACCESSED
from tests.guest_run import Result, config_for, run_checked
from tests.kvm.mmu.nested_cpu import cpus_of, hva_of, make_vm
from tests.tiny import EXIT, write_tiny

TABLE = 0x300000
RWX, UNUSED, CLEAN = 0x63, 0x43, 0x23


def entries(first: int, *gptes: int) -> str:
    stores = (f"mov rax, {gpte:#x}\nmov [{TABLE + 8 * (first + n):#x}], rax\n" for n, gpte in enumerate(gptes))
    return "".join(stores)


def touch(*addresses: int) -> str:
    """Make frames of the guest resident, through its large pages."""
    return "".join(f"mov qword [{address:#x}], 1\n" for address in addresses)


LINK = f"mov qword [0xb018], {TABLE | 0x63:#x}\nmov rax, cr3\nmov cr3, rax\n"


def run(directory: Path, source: str, mark: str, **knobs: int) -> tuple[list[int], Result]:
    """The gfns that the instructions of `mark` get mapped, in order."""
    image = write_tiny(directory, f"{source}out 0xe9, al\n{mark}out 0xe9, al\nxor eax, eax\n{EXIT}")
    marks: list[object] = []
    seen: list[int] = []

    def sink(tracepoint: events.Tracepoint, args: tuple[int, ...]) -> None:
        if tracepoint is events.kvm_pio and args[1] == 0xE9:
            marks.append(args)
        elif tracepoint is events.kvm_mmu_set_spte and len(marks) == 1:
            seen.append(args[0])

    with events.attached(sink, [events.kvm_pio, events.kvm_mmu_set_spte]):
        result = run_checked(config_for(image, kvm_params=KvmParams(**knobs), timeout_instructions=1_000_000))
    assert result.law is None, result.report
    return seen, result


FRAMES = [0x400000, 0x402000, 0x404000, 0x406000]


def test_entries_in_use_of_resident_pages_are_mapped_by_one_fault(tmp_path: Path) -> None:
    source = touch(*FRAMES) + entries(1, *(frame | RWX for frame in FRAMES)) + LINK
    read_all = "".join(f"mov rax, [{0x601000 + 4096 * n:#x}]\n" for n in range(4))
    assert run(tmp_path, source, read_all)[0] == [0x400, 0x402, 0x404, 0x406]
    assert run(tmp_path, source, "mov rax, [0x602000]\n")[0] == [0x402, 0x400, 0x404, 0x406]
    assert run(tmp_path, source, "mov rax, [0x602000]\n", prefetch=0)[0] == [0x402]


@pytest.mark.parametrize(
    ("source", "mapped"),
    [
        (touch(*FRAMES) + entries(0, 0x400000 | RWX, 0x402000 | UNUSED, 0x404000 | RWX), [0x400, 0x404]),
        (touch(*FRAMES) + entries(0, 0x400000 | RWX, 0, 0x404000 | RWX | 1 << 45, 0x406000 | RWX), [0x400, 0x406]),
        (touch(0x400000, 0x404000) + entries(0, 0x400000 | RWX, 0x402000 | RWX, 0x404000 | RWX), [0x400]),
        (touch(*FRAMES) + entries(7, 0x400000 | RWX, 0x402000 | RWX), [0x400]),
        (touch(*FRAMES) + entries(0, 0x400000 | RWX, 0x10_0000_0000 | RWX, 0x404000 | RWX), [0x400]),
    ],
    ids=["unused", "absent or malformed", "not resident", "in another window", "no memory"],
)
def test_what_the_guest_has_not_used_or_the_host_not_resident_is_not(
    tmp_path: Path, source: str, mapped: list[int]
) -> None:
    first = 7 if f"{TABLE + 56:#x}" in source else 0
    assert run(tmp_path, source + LINK, f"mov rax, [{0x600000 + 4096 * first:#x}]\n")[0] == mapped


def test_pieces_of_a_large_page_are_mapped_up_to_the_first_that_is_not_resident(tmp_path: Path) -> None:
    """Of the read-only alias of the large page nothing is mapped yet."""
    source = (
        f"{touch(0x400000, 0x401000, 0x402000, 0x404000)}mov qword [0xb018], 0x4000e1\nmov rax, cr3\nmov cr3, rax\n"
    )
    assert run(tmp_path, source, "mov rax, [0x600000]\n", large_pages=0)[0] == [0x400, 0x401, 0x402]


def test_a_table_is_mapped_read_only_and_stays_in_sync(tmp_path: Path) -> None:
    source = touch(*FRAMES) + entries(0, 0x400000 | RWX, TABLE | RWX) + LINK
    seen, result = run(tmp_path, source, "mov rax, [0x600000]\n")
    assert seen == [0x400, 0x300]
    assert result.machine.kvm.stat.mmu_unsync == 0


def test_a_clean_entry_gives_no_right_to_write_and_none_is_accessed(tmp_path: Path) -> None:
    sptes: dict[int, int] = {}
    with events.attached(lambda tracepoint, args: sptes.__setitem__(args[0], args[1]), [events.kvm_mmu_set_spte]):
        run(tmp_path, touch(*FRAMES) + entries(0, 0x400000 | RWX, 0x402000 | CLEAN) + LINK, "mov rax, [0x600000]\n")
    assert sptes[Gfn(0x400)] & PT_ACCESSED
    assert not sptes[Gfn(0x402)] & (PT_ACCESSED | SPTE_MMU_WRITABLE)


@pytest.mark.parametrize(
    ("params", "mapped"),
    [
        ({"tdp_mmu": 0}, 8),
        ({"tdp_mmu": 0, "prefetch": 0}, 1),
        ({"tdp_mmu": 0, "eptad": 0}, 1),
        ({"tdp_mmu": 1}, 1),
    ],
    ids=["direct", "off", "no A bit tells a guess from a use", "the TDP MMU does not guess"],
)
def test_neighbours_in_two_dimensional_paging(params: dict[str, int], mapped: int) -> None:
    kvm = make_vm(**params)
    cpu = cpus_of(kvm)[0]
    for page in range(8, 16):
        cpu.store(page * PAGE_SIZE, page)
    start = hva_of(kvm, 0)
    range_ = MmuNotifierRange(kvm.mm, start, Hva(start + MIB), MmuNotifierEvent.CLEAR)
    mmu_notifier_invalidate_range_start(range_)
    mmu_notifier_invalidate_range_end(range_)
    assert kvm.stat.pages_4k == 0
    assert cpu.load(11 * PAGE_SIZE) == 11
    assert kvm.stat.pages_4k == mapped
    assert sum(cpu.spte(page * PAGE_SIZE) & PT_ACCESSED != 0 for page in range(8, 16)) == 1
