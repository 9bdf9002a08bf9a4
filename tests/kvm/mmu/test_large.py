"""Large sptes: where they are set, and how they go, are split and come back. Every run is under the sanitizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shadowvm.addr import HUGE_PAGE_SIZE, PAGE_SHIFT, Gfn, Gpa, Hva
from shadowvm.errors import ModelBug
from shadowvm.kvm.dirty import ManualProtect, kvm_clear_dirty_log, kvm_get_dirty_log
from shadowvm.kvm.memslot import KVM_MEM_LOG_DIRTY_PAGES as LOG
from shadowvm.kvm.mmu import nx_huge_page, split
from shadowvm.kvm.mmu.nx_huge_page import kvm_recover_nx_huge_pages, nx_huge_page_recovery_period_ms
from shadowvm.kvm.mmu.rmap import rmap_sptes
from shadowvm.kvm.mmu.tdp_mmu import tdp_leaves
from shadowvm.kvm.vm import KVM_REQ_TLB_FLUSH
from shadowvm.machine import Machine
from shadowvm.mm.huge import Thp
from shadowvm.mm.khugepaged import ScanResult, collapse_huge_page
from shadowvm.mm.mm_struct import madvise_dontneed, mmap, mprotect
from shadowvm.params import DEFAULT_PARAMS, KvmParams
from shadowvm.x86 import PT_NX, PT_PAGE_SIZE, PT_WRITABLE
from tests.kvm.test_memory_region import EXTRA, SLOT, machine_for, run_with, tell
from tests.lab.broken import break_functions
from tests.tiny import EXIT

MIB = 1 << 20
BASE = Gfn(EXTRA >> PAGE_SHIFT)
STORE = f"mov dword [{EXTRA + 0x5008:#x}], 7\n"
LOAD = f"mov eax, [{EXTRA + 0x5008:#x}]\n"
FAR_STORE = f"mov dword [{EXTRA + 0x9008:#x}], 9\n"
READ_ALL = f"mov edi, {EXTRA:#x}\nmov ecx, 512\nl%: mov eax, [rdi]\nadd edi, 4096\nloop l%\n"
RUN = f"mov ebx, b%\nmov word [{EXTRA + 0x7000:#x}], 0xe3ff\nmov eax, {EXTRA + 0x7000:#x}\njmp rax\nb%:\n"
"""Store `jmp rbx` and run it."""
TABLE = f"mov qword [{EXTRA + 0x3000:#x}], 0x400003\nmov qword [0xb018], {EXTRA + 0x3000 | 3:#x}\nmov eax, [0x600000]\n"
"""Make a page table in the slot, which maps 6 MiB to 4 MiB, and use it."""
NO_TABLE = "mov qword [0xb018], 0x6000e3\nmov rax, cr3\nmov cr3, rax\n"


def program(*steps: str) -> str:
    """A guest that does step n when 0x7900 has come to n, and says so at 0x7904."""
    parts = []
    for number, step in enumerate(steps, 1):
        wait = f"w{number}: pause\ncmp dword [0x7900], {number}\njb w{number}\n"
        parts.append(wait + step.replace("%", str(number)) + f"mov dword [0x7904], {number}\n")
    return "".join(parts) + f"xor eax, eax\n{EXIT}"


TURNS: dict[str, object] = {"thp": "always", "smp": 2, "quantum": (1000, 1000)}
"""Short ones, which one CPU alone has not: the TDP MMU may give way to the guest at each entry that it walks over."""


def machine_of(directory: Path, *steps: str, mmu: str = "shadow", kvm_params: KvmParams = DEFAULT_PARAMS) -> Machine:
    """A guest that does `steps`; `mmu` is one of those of EACH. A fault maps what it is for only."""
    kvm_params = replace(kvm_params, prefetch=0)
    if mmu == "direct":
        kvm_params, mmu = replace(kvm_params, tdp_mmu=0), "tdp"
    return machine_for(directory, program(*steps), mmu=mmu, kvm_params=kvm_params, **TURNS)


def machine_with(directory: Path, *steps: str, size: int = 2 * HUGE_PAGE_SIZE, **more: Any) -> tuple[Machine, Hva]:
    """A guest with a slot at EXTRA, whose memory is huge from the first store on."""
    machine = machine_of(directory, *steps, **more)
    hva = mmap(machine.mm, size)
    machine.kvm.set_user_memory_region(SLOT, EXTRA, size, hva)
    return machine, hva


def run_steps(machine: Machine, *acts: Callable[[], object]) -> list[object]:
    """Call act n when step n of the guest is done; what they return."""
    results = []

    def vmm() -> None:
        for number, act in enumerate(acts, 1):
            tell(machine, number)
            while machine.read_guest(Gpa(0x7904), 1)[0] != number:
                assert not all(task.glet.dead for task in machine.sched.tasks if task.vcpu is not None)
                machine.sched.preempt()
            results.append(act())

    assert run_with(machine, vmm) == 0
    return results


def sptes(machine: Machine, gfn: Gfn) -> list[int]:
    """The sptes that map a gfn."""
    slot = machine.kvm.memslots.find(gfn)
    assert slot is not None
    found = tdp_leaves(machine.kvm, 0, gfn) if machine.kvm.tdp_mmu_enabled else rmap_sptes(slot, gfn)
    return [machine.kvm.q[sptep] for sptep in found]


def large(machine: Machine, gfn: Gfn = BASE) -> int:
    """The large spte of a gfn, 0 if it has none."""
    return next((spte for spte in sptes(machine, gfn) if spte & PT_PAGE_SIZE), 0)


def small(machine: Machine, gfn: Gfn = BASE) -> int:
    """How many gfns of the 2 MiB have small sptes."""
    return sum(any(not spte & PT_PAGE_SIZE for spte in sptes(machine, Gfn(gfn + i))) for i in range(512))


EACH = pytest.mark.parametrize("mmu", ["shadow", "direct", "tdp"])
"""Shadow paging; two-dimensional paging by direct shadow pages (tdp_mmu=0), and by the TDP MMU."""


@EACH
def test_one_fault_maps_two_mib(tmp_path: Path, mmu: str) -> None:
    machine, _ = machine_with(tmp_path, STORE, READ_ALL + FAR_STORE, mmu=mmu)
    faults: list[int] = []
    seen = run_steps(machine, *[lambda: (faults.append(machine.vcpu.stat.pf_taken), large(machine))[1]] * 2)
    assert seen[0] == seen[1] != 0
    assert faults[0] == faults[1]


@EACH
def test_the_knob_and_a_host_of_small_pages_keep_sptes_small(tmp_path: Path, mmu: str) -> None:
    machine, _ = machine_with(tmp_path, STORE, kvm_params=KvmParams(large_pages=0), mmu=mmu)
    assert run_steps(machine, lambda: large(machine)) == [0]
    machine, _ = machine_with(tmp_path, STORE, mmu=mmu)
    machine.host.thp = Thp.NEVER
    assert run_steps(machine, lambda: large(machine)) == [0]


@EACH
@pytest.mark.parametrize(("base", "skew"), [(0, 4096), (4096, 0), (4096, 4096)], ids=["hva", "gpa", "both"])
def test_memory_out_of_step_or_too_short_keeps_sptes_small(tmp_path: Path, mmu: str, base: int, skew: int) -> None:
    machine = machine_of(tmp_path, STORE, mmu=mmu)
    hva = mmap(machine.mm, 4 * HUGE_PAGE_SIZE)
    machine.kvm.set_user_memory_region(SLOT, Gpa(EXTRA + base), HUGE_PAGE_SIZE, Hva(hva + skew))
    assert run_steps(machine, lambda: (large(machine, Gfn(BASE + 1)), machine.host.vmstat.thp_fault_alloc > 0)) == [
        (0, True)
    ]


def test_a_clean_page_of_the_guest_is_read_only_until_a_store(tmp_path: Path) -> None:
    clean = f"{STORE}mov qword [0xb008], {EXTRA | 0xA3:#x}\nmov rax, cr3\nmov cr3, rax\nmov eax, [0x200000]\n"
    machine, _ = machine_with(tmp_path, clean, "mov dword [0x200000], 5\n")
    assert [bool(each & PT_WRITABLE) for each in map(int, run_steps(machine, *[lambda: _both(machine)] * 2))] == [
        False,
        True,
    ]


def _both(machine: Machine) -> int:
    """Two large sptes map the memory: that of the page just made."""
    slot = machine.kvm.memslots.find(BASE)
    assert slot is not None
    head = slot.rmap_large[BASE]
    assert isinstance(head, list)
    return machine.kvm.q[head[-1]]


@EACH
@pytest.mark.parametrize("what", ["dontneed", "mprotect", "pages"])
def test_what_the_host_takes_away_goes_as_a_whole(tmp_path: Path, mmu: str, what: str) -> None:
    machine, hva = machine_with(tmp_path, STORE, FAR_STORE, mmu=mmu)

    def take() -> int:
        if what == "mprotect":
            mprotect(machine.mm, hva, HUGE_PAGE_SIZE, False)
            mprotect(machine.mm, hva, HUGE_PAGE_SIZE, True)
        else:
            madvise_dontneed(machine.mm, hva, HUGE_PAGE_SIZE if what == "dontneed" else 4096)
        return large(machine)

    gone, back = run_steps(machine, take, lambda: large(machine))
    assert gone == 0
    assert bool(back) == (what != "pages")


def test_a_page_table_in_a_large_page_write_protects_it_and_then_makes_it_small(tmp_path: Path) -> None:
    machine, _ = machine_with(tmp_path, STORE, TABLE, LOAD, FAR_STORE)
    first, second, third, fourth = run_steps(machine, *[lambda: (large(machine), small(machine))] * 4)
    assert isinstance(first, tuple)
    assert first[0] & PT_WRITABLE
    assert isinstance(second, tuple)
    assert not second[0] & PT_WRITABLE
    assert third == second
    assert fourth == (0, 1)


def test_when_the_page_table_goes_large_pages_come_back(tmp_path: Path) -> None:
    zap = f"mov word [{EXTRA + 0x3002:#x}], 0x102\n"  # no store of an entry: the shadow page is given up
    steps = (STORE, TABLE + FAR_STORE, NO_TABLE + zap, LOAD + FAR_STORE)
    machine, _ = machine_with(tmp_path, *steps, kvm_params=KvmParams(unsync=0))
    seen = run_steps(machine, *[lambda: bool(large(machine))] * 4)
    assert seen == [True, False, False, True]


@EACH
def test_collapse_lets_a_fault_replace_a_table_by_a_large_spte(tmp_path: Path, mmu: str) -> None:
    machine, hva = machine_with(tmp_path, STORE, LOAD, STORE, mmu=mmu)
    machine.host.thp = Thp.NEVER
    collapse = lambda: (collapse_huge_page(machine.mm, hva >> PAGE_SHIFT), large(machine))  # noqa: E731
    before, after, _ = run_steps(machine, collapse, lambda: large(machine), lambda: None)
    assert before == (ScanResult.SUCCEED, 0)
    assert after


def log(machine: Machine, hva: Hva, flags: int = LOG, size: int = 2 * HUGE_PAGE_SIZE) -> None:
    machine.kvm.set_user_memory_region(SLOT, EXTRA, size, hva, flags)


def dirty(machine: Machine) -> list[int]:
    bitmap = kvm_get_dirty_log(machine.kvm, SLOT)
    return [8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1]


@EACH
@pytest.mark.parametrize("eager", [0, 1])
def test_a_dirty_log_splits_at_once_or_at_the_store_and_gives_back(tmp_path: Path, mmu: str, eager: int) -> None:
    params = KvmParams(eager_page_split=eager)
    machine, hva = machine_with(tmp_path, STORE, STORE + FAR_STORE, LOAD, kvm_params=params, mmu=mmu)

    def on() -> tuple[int, int]:
        log(machine, hva)
        return large(machine) & (1 | PT_WRITABLE), small(machine)

    def off() -> tuple[list[int], int]:
        pages = dirty(machine)
        log(machine, hva, 0)
        return pages, small(machine)

    begun, ended, later = run_steps(machine, on, off, lambda: bool(large(machine)))
    assert begun == ((0, 512) if eager else (1, 0))
    assert ended == ([5, 9], 0)
    assert later


@EACH
def test_a_log_that_is_full_at_first_protects_a_large_page_when_it_is_cleared(tmp_path: Path, mmu: str) -> None:
    machine, hva = machine_with(tmp_path, STORE, STORE, STORE, kvm_params=KvmParams(eager_page_split=0), mmu=mmu)
    machine.kvm.manual_dirty_log_protect = ManualProtect.ENABLE | ManualProtect.INITIALLY_SET

    def clear() -> int:
        kvm_clear_dirty_log(machine.kvm, SLOT, 0, 64, b"\xff" * 8)
        return large(machine) & PT_WRITABLE

    kept, cleared, pages = run_steps(
        machine,
        lambda: (log(machine, hva), large(machine) & PT_WRITABLE)[1],
        clear,
        lambda: [page for page in dirty(machine) if page < 64],
    )
    assert (kept, cleared, pages) == (PT_WRITABLE, 0, [5])


@EACH
def test_a_log_that_is_full_at_first_splits_a_large_page_when_it_is_cleared(tmp_path: Path, mmu: str) -> None:
    """eager_page_split: before any store waits for it, and the large page beside it stays."""
    far = f"mov dword [{EXTRA + HUGE_PAGE_SIZE:#x}], 7\n"
    machine, hva = machine_with(tmp_path, STORE + far, LOAD, mmu=mmu)
    machine.kvm.manual_dirty_log_protect = ManualProtect.ENABLE | ManualProtect.INITIALLY_SET
    stat = machine.kvm.stat

    def clear() -> tuple[int, int]:
        log(machine, hva)
        before = stat.pages_2m, stat.pages_4k
        kvm_clear_dirty_log(machine.kvm, SLOT, 0, 64, b"\xff" * 8)
        return stat.pages_2m - before[0], stat.pages_4k - before[1]

    assert run_steps(machine, clear, lambda: large(machine))[0] == (-1, 512)


@EACH
def test_what_a_log_has_split_is_executed_though_the_large_page_was_not(tmp_path: Path, mmu: str) -> None:
    machine, hva = machine_with(tmp_path, STORE, RUN, LOAD, kvm_params=KvmParams(nx_huge_pages=1), mmu=mmu)
    run_steps(machine, lambda: log(machine, hva), lambda: None, lambda: None)


def test_splitting_stops_where_shadow_pages_run_out(tmp_path: Path) -> None:
    machine, hva = machine_with(tmp_path, STORE, STORE)

    def on() -> int:
        machine.kvm.n_max_mmu_pages = len(machine.kvm.active_mmu_pages)
        log(machine, hva)
        return large(machine) & (1 | PT_WRITABLE)

    assert run_steps(machine, on, lambda: dirty(machine)) == [1, [5]]


@EACH
def test_ending_a_log_does_not_look_outside_of_the_slot(tmp_path: Path, mmu: str) -> None:
    """Its first block begins below it, as does the direct page that shadows the guest's large page."""
    machine = machine_of(tmp_path, FAR_STORE, LOAD, mmu=mmu)
    size = 2 * HUGE_PAGE_SIZE
    hva = mmap(machine.mm, size)
    gpa, skip = Gpa(EXTRA + 0x4000), 0x4000

    def on() -> None:
        machine.kvm.set_user_memory_region(SLOT, gpa, size - skip, Hva(hva + skip), LOG)
        machine.kvm.set_user_memory_region(SLOT, gpa, size - skip, Hva(hva + skip))

    machine.kvm.set_user_memory_region(SLOT, gpa, size - skip, Hva(hva + skip))
    run_steps(machine, on, lambda: None)
    assert machine.host.vmstat.thp_fault_alloc


def test_a_look_outside_of_the_slot_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = "slot.base_gfn <= sp.gfn < slot.end_gfn and "
    break_functions(monkeypatch, [(split.kvm_mmu_recover_huge_pages, check, "")])
    with pytest.raises(ModelBug, match="outside of it"):
        test_ending_a_log_does_not_look_outside_of_the_slot(tmp_path, "shadow")


@EACH
def test_nothing_is_executed_from_a_large_page(tmp_path: Path, mmu: str) -> None:
    params = KvmParams(nx_huge_pages=1)
    machine, _ = machine_with(tmp_path, STORE, RUN, STORE, kvm_params=params, mmu=mmu)
    before, after, later = run_steps(machine, *[lambda: (large(machine), machine.kvm.stat.nx_lpage_splits)] * 3)
    assert isinstance(before, tuple)
    assert before[0] & PT_NX
    assert after == (0, before[1] + 1)
    assert later == after


@EACH
def test_recovery_brings_large_pages_back_oldest_first(tmp_path: Path, mmu: str) -> None:
    second = RUN.replace(f"{EXTRA + 0x7000:#x}", f"{EXTRA + HUGE_PAGE_SIZE:#x}")
    params = KvmParams(nx_huge_pages=1, nx_huge_pages_recovery_ratio=2)
    machine, _ = machine_with(tmp_path, RUN, second, LOAD, RUN, kvm_params=params, mmu=mmu)
    other = Gfn(BASE + 512)

    def recover() -> tuple[int, int, int]:
        pages = len(machine.kvm.possible_nx_huge_pages)
        return pages, kvm_recover_nx_huge_pages(machine.kvm), small(machine, other)

    def sizes() -> tuple[bool, bool]:
        return bool(large(machine)), bool(large(machine, other))

    _, (pages, zapped, left), loaded, executed = run_steps(machine, sizes, recover, sizes, sizes)
    # Two-dimensional tables shadow nothing, so that the first 2 MiB, where the guest's code is, are split too.
    assert (pages, zapped) == ((2, 1) if mmu == "shadow" else (3, 2))
    assert left
    assert loaded == (True, False)
    assert executed == (False, False)


def test_recovery_lets_others_have_the_lock_after_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has zapped is flushed and freed by then."""
    monkeypatch.setattr(nx_huge_page, "NX_RECOVERY_BATCH", 1)
    second = RUN.replace(f"{EXTRA + 0x7000:#x}", f"{EXTRA + HUGE_PAGE_SIZE:#x}")
    params = KvmParams(nx_huge_pages=1, nx_huge_pages_recovery_ratio=1)
    machine, _ = machine_with(tmp_path, RUN, second, kvm_params=params)
    kvm, seen = machine.kvm, []

    def look() -> None:
        unfreed = sum(sp.invalid for sp in kvm.sp_by_pfn.values())
        flushed = all(vcpu.requests & KVM_REQ_TLB_FLUSH for vcpu in kvm.vcpus)
        seen.append((kvm.mmu_lock.held, unfreed, flushed, len(kvm.possible_nx_huge_pages)))

    def recover() -> int:
        machine.sched.spawn("other", look)
        machine.sched.need_resched = True
        zapped = kvm_recover_nx_huge_pages(kvm)
        look()
        return zapped

    assert run_steps(machine, lambda: None, recover) == [None, 2]
    assert seen == [(False, 0, True, 1), (False, 0, True, 0)]


@EACH
def test_recovery_leaves_a_logged_slot_and_a_ratio_of_none_alone(tmp_path: Path, mmu: str) -> None:
    machine, hva = machine_with(tmp_path, RUN, LOAD, kvm_params=KvmParams(nx_huge_pages=1), mmu=mmu)

    def recover() -> tuple[int, int]:
        log(machine, hva)
        zapped = sum(kvm_recover_nx_huge_pages(machine.kvm) for _ in range(3))
        return zapped, machine.kvm.stat.nx_lpage_splits

    own = 0 if mmu == "shadow" else 1  # the page of the guest's code is in a slot without a log
    assert run_steps(machine, recover, lambda: small(machine) > 0) == [(own, 0), True]


@EACH
def test_the_worker_recovers_in_virtual_time(tmp_path: Path, mmu: str) -> None:
    params = KvmParams(nx_huge_pages=1, nx_huge_pages_recovery_ratio=1, nx_huge_pages_recovery_period_ms=2)
    spin = "mov ecx, 3000000\nl%: dec ecx\njnz l%\n"
    machine, _ = machine_with(tmp_path, RUN, spin, STORE, mmu=mmu, kvm_params=params)
    made_small, recovered, back = run_steps(machine, *[lambda: (large(machine), small(machine))] * 3)
    assert made_small == (0, 512 if mmu == "tdp" else 1)  # the TDP MMU's fault splits
    assert recovered == (0, 0)
    assert isinstance(back, tuple)
    assert back[0] & PT_NX


def test_a_period_is_an_hour_over_the_ratio(tmp_path: Path) -> None:
    periods = []
    for ratio, period in ((60, 0), (60, 7), (0, 7)):
        params = KvmParams(nx_huge_pages=1, nx_huge_pages_recovery_ratio=ratio, nx_huge_pages_recovery_period_ms=period)
        periods.append(nx_huge_page_recovery_period_ms(machine_of(tmp_path, STORE, kvm_params=params).kvm))
    assert periods == [60_000, 7, 0]
