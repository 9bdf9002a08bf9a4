"""Pieces of tiny guests that take asynchronous page faults, and hosts that make them happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from shadowvm.addr import PAGE_SHIFT, PAGE_SIZE, Hva
from shadowvm.events import Tracepoint, attached, kvm_pio
from shadowvm.machine import Machine
from shadowvm.mm.mm_struct import madvise_pageout
from tests.guest_run import Result, config_for, run_checked
from tests.tiny import EXIT, write_tiny

AREA, IDT = 0x300000, 0x200000
VECTOR = 0x50
LATENCY = 5_000
MMU = "shadow"
"""What run_apf() uses; tests in both modes set it."""
PAGES = 0x400000
PAGE_OUT = "out 0xe9, al\n"
"""Here the host takes the pages from PAGES on, as many as it was told, from the guest."""


def gates(**handlers: int) -> str:
    """An IDT with these interrupt gates, by the labels of the handlers, and a local APIC that is on."""
    lines = []
    for label, vector in handlers.items():
        gate = IDT + 16 * vector
        lines += [f"mov edi, {gate:#x}", f"mov eax, {label}", "mov [rdi], ax", "mov word [rdi + 2], 8"]
        lines += ["mov word [rdi + 4], 0x8e00", "shr eax, 16", "mov [rdi + 6], ax", "mov qword [rdi + 8], 0"]
    lines += ["mov word [0x2ffff0], 0xfff", f"mov qword [0x2ffff2], {IDT:#x}", "lidt [0x2ffff0]"]
    lines += ["mov ebx, 0xfee00000", "mov dword [rbx + 0xf0], 0x1ff"]
    return "\n".join(lines) + "\n"


def enable(flags: int = 0xB) -> str:
    """Ask for events: by default enabled, at CPL 0 too, page ready by an interrupt."""
    return (
        f"mov ecx, 0x4b564d06\nmov eax, {VECTOR:#x}\nxor edx, edx\nwrmsr\n"
        f"mov ecx, 0x4b564d02\nmov eax, {AREA | flags:#x}\nwrmsr\n"
    )


READY = f"""
ready: push rax
push rcx
push rdx
mov eax, [{AREA + 4:#x}]
mov dword [{AREA + 4:#x}], 0
inc r9
add r10, rax
mov ecx, 0x4b564d07
mov eax, 1
xor edx, edx
wrmsr
mov edx, 0xfee00000
mov dword [rdx + 0xb0], 0
pop rdx
pop rcx
pop rax
iretq
"""
"""Handler of page ready: counts in r9, adds the token to r10."""

NOT_PRESENT = f"""
not_present: add rsp, 8
cmp dword [{AREA:#x}], 1
jne bad
mov dword [{AREA:#x}], 0
inc r12
push rax
mov rax, cr2
add r13, rax
pop rax
"""
"""Beginning of a #PF handler: counts in r12, adds the token to r13."""
BAD = f"bad: mov eax, 99\n{EXIT}"


def page_out(machine: Machine, gpa: int, pages: int) -> None:
    """MADV_PAGEOUT by the VMM."""
    slot = machine.kvm.memslots.find(gpa >> PAGE_SHIFT)  # type: ignore[arg-type]
    assert slot is not None
    hva = Hva(slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT))
    madvise_pageout(machine.mm, hva, pages * PAGE_SIZE)


def paging_out(pages: int) -> Callable[[Machine], AbstractContextManager[None]]:
    """A listener that serves PAGE_OUT."""

    @contextmanager
    def listen(machine: Machine) -> Iterator[None]:
        def sink(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
            if args[1] == 0xE9:
                machine.vcpu.do_outside(lambda: page_out(machine, PAGES, pages))

        with attached(sink, [kvm_pio]):
            yield

    return listen


def run_apf(directory: Path, source: str, pages: int = 1, **options: object) -> Result:
    """Run under the sanitizer; PAGE_OUT takes `pages` pages."""
    options = {"mmu": MMU, "swap_latency": LATENCY, "timeout_instructions": 20_000_000, **options}
    return run_checked(config_for(write_tiny(directory, source), **options), paging_out(pages))


def status(result: Result) -> int:
    """Of a run without violations."""
    assert result.report == ""
    assert result.outcome is not None
    return result.outcome.status
