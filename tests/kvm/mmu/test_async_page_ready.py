"""The page that a worker brought is mapped by a fault that believes nothing of the first one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowvm.events import (
    Tracepoint,
    attached,
    kvm_async_pf_completed,
    kvm_async_pf_ready,
    kvm_faultin_pfn,
    kvm_mmu_set_spte,
    kvm_page_fault,
)
from shadowvm.machine import Machine
from tests.guest_run import Result, config_for, run_checked
from tests.kvm.apf import LATENCY, PAGE_OUT, PAGES, gates, page_out, paging_out, status
from tests.tiny import EXIT, write_tiny

GFN = PAGES >> 12
SOURCE = f"{gates()}sti\nnop\nmov qword [{PAGES:#x}], 5\n{PAGE_OUT}mov rax, [{PAGES:#x}]\nsub eax, 5\n{EXIT}"
EVENTS = (kvm_page_fault, kvm_async_pf_completed, kvm_faultin_pfn, kvm_mmu_set_spte, kvm_async_pf_ready)


class Outside:
    """Notes what happens to the page after PAGE_OUT, and has the host take it again, once, at `when`."""

    def __init__(self, when: Tracepoint | None) -> None:
        self.when = when
        self.events: list[str] = []

    @contextmanager
    def listen(self, machine: Machine) -> Iterator[None]:
        def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
            if not machine.host.vmstat.pswpout or (tracepoint is kvm_page_fault and args[2] != PAGES):
                return
            self.events.append(tracepoint.name.removeprefix("kvm_"))
            if tracepoint is self.when:
                self.when = None
                machine.sched.spawn("madvise", lambda: page_out(machine, PAGES, 1))
                machine.sched.preempt()

        with paging_out(1)(machine), attached(sink, EVENTS):
            yield


def run(directory: Path, when: Tracepoint | None) -> tuple[Result, list[str]]:
    outside = Outside(when)
    config = config_for(write_tiny(directory, SOURCE), swap_latency=LATENCY, timeout_instructions=1_000_000)
    return run_checked(config, outside.listen), outside.events


MAPPED = ["faultin_pfn", "mmu_set_spte", "async_pf_ready"]


def test_the_page_is_mapped_before_anybody_hears_of_it(tmp_path: Path) -> None:
    result, events = run(tmp_path, None)
    assert status(result) == 0
    assert events == ["page_fault", "async_pf_completed", *MAPPED]
    stat = result.machine.vcpu.stat
    outcomes = stat.pf_fixed + stat.pf_spurious + stat.pf_emulate
    assert stat.pf_taken - stat.mmio_exits <= outcomes <= stat.pf_taken, "both halves count as one"


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_the_second_half_is_not_taken_and_leaves_nothing_behind(tmp_path: Path, mmu: str) -> None:
    """A fault that the guest makes next is none that nobody waits for."""
    config = config_for(write_tiny(tmp_path, SOURCE), mmu=mmu, swap_latency=LATENCY, timeout_instructions=1_000_000)
    seen: list[tuple[int, int, bool]] = []

    @contextmanager
    def listen(machine: Machine) -> Iterator[None]:
        def sink(_tracepoint: Tracepoint, _args: tuple[Any, ...]) -> None:
            stat, fault = machine.vcpu.stat, machine.vcpu.fault
            seen.append((stat.pf_taken, stat.pf_fixed, fault.prefetch))

        with paging_out(1)(machine), attached(sink, (kvm_async_pf_completed, kvm_async_pf_ready)):
            yield

    assert status(run_checked(config, listen)) == 0
    (taken, fixed, _), after = seen
    assert after == (taken, fixed + 1, False)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (kvm_async_pf_completed, ["page_fault", "async_pf_completed", *MAPPED]),
        (
            kvm_faultin_pfn,
            ["page_fault", "async_pf_completed", "faultin_pfn", "async_pf_ready", "page_fault", "faultin_pfn"]
            + ["mmu_set_spte"],
        ),
        (kvm_async_pf_ready, ["page_fault", "async_pf_completed", *MAPPED, "page_fault"]),
    ],
    ids=["brought", "looked up", "mapped"],
)
def test_a_page_that_is_taken_again_is_not_installed(tmp_path: Path, when: Tracepoint, expected: list[str]) -> None:
    """Taken before it is looked up, it is waited for. Between look-up and mapping the sequence tells; the guest runs
    into the page again. Afterwards the notifier zaps it."""
    result, events = run(tmp_path, when)
    assert status(result) == 0
    assert events[: len(expected)] == expected


def test_a_guest_that_has_moved_on_gets_no_mapping_in_another_space(tmp_path: Path) -> None:
    """An interrupt ends the halt and loads another CR3: the page is there, and mapped when it is touched again."""
    tick = "tick: mov edx, 0xfee00000\nmov dword [rdx + 0xb0], 0\nmov eax, 0x6000\nmov cr3, rax\niretq\n"
    source = (
        f"{gates(tick=0x60)}mov esi, 0x9000\nmov edi, 0x6000\nmov ecx, 512\nrep movsq\n"
        f"sti\nmov qword [{PAGES:#x}], 5\n{PAGE_OUT}mov dword [rbx + 0x320], 0x60\nmov dword [rbx + 0x3e0], 0xb\n"
        f"mov dword [rbx + 0x380], 2000\nmov rax, [{PAGES:#x}]\nsub eax, 5\n{EXIT}{tick}"
    )
    outside = Outside(None)
    config = config_for(write_tiny(tmp_path, source), swap_latency=LATENCY, timeout_instructions=1_000_000)
    result = run_checked(config, outside.listen)
    assert status(result) == 0
    assert outside.events.count("async_pf_ready") == 1
