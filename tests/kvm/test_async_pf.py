"""Workers that bring pages for a vCPU: how many at a time, which, and what becomes of them at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowvm.config import MIB
from shadowvm.events import (
    Tracepoint,
    attached,
    kvm_async_pf_completed,
    kvm_async_pf_not_present,
    kvm_async_pf_ready,
    kvm_async_pf_repeated_fault,
    kvm_try_async_get_page,
)
from shadowvm.machine import Machine, Reason
from tests.guest_run import Result, config_for, run_checked
from tests.kvm import apf
from tests.kvm.apf import BAD, NOT_PRESENT, PAGE_OUT, PAGES, READY, VECTOR, enable, gates, paging_out, run_apf, status
from tests.kvm.smp import touch_together
from tests.tiny import EXIT, write_tiny

EVENTS = (
    kvm_try_async_get_page,
    kvm_async_pf_not_present,
    kvm_async_pf_repeated_fault,
    kvm_async_pf_completed,
    kvm_async_pf_ready,
)
SETUP = f"{gates(not_present=14, ready=VECTOR)}xor r9, r9\nxor r10, r10\nxor r12, r12\nxor r13, r13\n"
SKIP = f"{NOT_PRESENT}add qword [rsp], 3\niretq\n"


@pytest.fixture(autouse=True, params=["shadow", "tdp"])
def mmu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in both modes."""
    monkeypatch.setattr(apf, "MMU", request.param)


def store_to(pages: int) -> str:
    return f"mov edi, {PAGES:#x}\nmov ecx, {pages}\nstore: mov [rdi], rdi\nadd rdi, 4096\ndec ecx\njnz store\n"


def traced(directory: Path, source: str, pages: int = 1, **options: object) -> tuple[Result, list[tuple[str, int]]]:
    """A run, and its events of asynchronous page faults, each with its first argument."""
    seen: list[tuple[str, int]] = []
    with attached(lambda tracepoint, args: seen.append((tracepoint.name, args[0])), EVENTS):
        result = run_apf(directory, source, pages, **options)
    return result, seen


def counted(directory: Path, source: str, pages: int = 1, **options: object) -> tuple[Result, dict[str, int]]:
    """A run, and how often each event happened in it."""
    result, seen = traced(directory, source, pages, **options)
    counts = Counter(name for name, _ in seen)
    return result, {tracepoint.name: counts[tracepoint.name] for tracepoint in EVENTS}


def test_no_more_than_64_pages_are_on_their_way(tmp_path: Path) -> None:
    """The handler steps over each load (3 bytes). The 65th finds no room, and the vCPU waits for it."""
    source = (
        f"{SETUP}{enable()}sti\nnop\n{store_to(80)}{PAGE_OUT}cli\nmov edi, {PAGES:#x}\nmov ecx, 80\n"
        "load: sti\nnop\nmov rax, [rdi]\nadd rdi, 4096\ndec ecx\njnz load\nagain: cmp r9, r12\njbe again\n"
        f"mov eax, 0xffffffff\nadd rax, r13\ncmp rax, r10\njne bad\nmov eax, r12d\n{EXIT}{SKIP}{READY}{BAD}"
    )
    result, seen = traced(tmp_path, source, pages=80, swap_latency=100_000)
    made = [token for name, token in seen if name == "kvm_async_pf_not_present"]
    on_their_way, most = set(), 0
    for name, token in seen:
        if name == "kvm_async_pf_not_present":
            on_their_way.add(token)
        elif name == "kvm_async_pf_ready":
            on_their_way.discard(token)
        most = max(most, len(on_their_way))
    assert most == 64
    assert status(result) == len(made) == len(set(made)) < 80
    assert result.machine.vcpu.stat.pf_fixed >= 80


def test_a_second_fault_for_the_same_page_halts(tmp_path: Path) -> None:
    """The handler returns to the load at once; the load then waits, and no second token is made."""
    source = (
        f"{SETUP}{enable()}sti\nnop\n{store_to(1)}{PAGE_OUT}mov rax, [{PAGES:#x}]\ncmp rax, {PAGES:#x}\njne bad\n"
        f"again: cmp r9, 2\njb again\nmov eax, r12d\n{EXIT}{NOT_PRESENT}iretq\n{READY}{BAD}"
    )
    result, seen = counted(tmp_path, source)
    assert status(result) == 1
    assert list(seen.values()) == [2, 1, 1, 1, 2]


def test_the_reverse_order_of_pages_needs_no_order_of_tokens(tmp_path: Path) -> None:
    """Each worker reads its own page; both are back before the guest looks, and both tokens reach it."""
    source = (
        f"{SETUP}{enable()}sti\nnop\n{store_to(40)}{PAGE_OUT}mov edi, {PAGES + 39 * 4096:#x}\nmov rax, [rdi]\n"
        f"mov edi, {PAGES:#x}\nmov rax, [rdi]\nagain: cmp r9, 3\njb again\nmov eax, r12d\n{EXIT}{SKIP}{READY}{BAD}"
    )
    assert status(run_apf(tmp_path, source, pages=40)) == 2


def test_a_run_may_end_with_pages_on_their_way(tmp_path: Path) -> None:
    source = f"{SETUP}{enable()}sti\nnop\n{store_to(9)}{PAGE_OUT}mov rax, [rdi - 4096]\nbad: mov eax, 7\n{EXIT}"
    skip = f"not_present: mov eax, 3\n{EXIT}ready: iretq\n"
    result, seen = counted(tmp_path, source + skip, pages=9)
    assert status(result) == 3
    assert seen["kvm_async_pf_not_present"] == 1
    assert seen["kvm_async_pf_ready"] == 1, "the token for all, and no other"
    assert result.machine.host.swap.cache == {}


def test_pause_ends_a_halt(tmp_path: Path) -> None:
    """The VM is paused while the vCPU waits for its page; it goes on where it was when it is run again."""
    source = f"{gates()}sti\nnop\n{store_to(1)}{PAGE_OUT}mov rax, [{PAGES:#x}]\nsub eax, {PAGES:#x}\n{EXIT}"
    machine = Machine(config_for(write_tiny(tmp_path, source), swap_latency=5000), lambda byte: None)

    def pause(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        machine.pc.clock.at(machine.pc.clock.now() + 1000, machine.kvm.pause)

    with paging_out(1)(machine), attached(pause, [kvm_async_pf_not_present]):
        first = machine.run()
    second = machine.run()
    machine.close()
    assert (first.reason, first.text) == (Reason.TIMEOUT, "paused")
    assert second.status == 0


def sti(source: str) -> str:
    """Every CPU takes interrupts, of which none come, so that it may halt for a page."""
    return source.replace("work: ", "work: sti\n").replace("test ebp, ebp\n", "cli\ntest ebp, ebp\n")


@pytest.mark.parametrize("seed", [0, 3])
def test_cpus_under_pressure_halt_for_pages_and_find_what_they_wrote(tmp_path: Path, seed: int) -> None:
    path = write_tiny(tmp_path, sti(touch_together(2, 900)))
    seen: Counter[str] = Counter()

    @contextmanager
    def listener(machine: Machine) -> Iterator[None]:
        with attached(lambda tracepoint, args: seen.update([tracepoint.name]), EVENTS):
            yield

    config = config_for(path, host_memory=2 * MIB + (128 << 10), smp=2, swap_latency=20_000, seed=seed, mmu=apf.MMU)
    result = run_checked(config, listener)
    assert status(result) == 0
    assert seen["kvm_async_pf_not_present"] > 100
    assert seen["kvm_async_pf_ready"] == seen["kvm_async_pf_completed"] == seen["kvm_async_pf_not_present"]
