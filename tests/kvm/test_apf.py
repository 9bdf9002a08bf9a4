"""Asynchronous page faults as the guest sees them: a #PF with a token, an interrupt with it, or a halt."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.params import KvmParams
from tests.kvm import apf
from tests.kvm.apf import (
    AREA,
    BAD,
    LATENCY,
    NOT_PRESENT,
    PAGE_OUT,
    PAGES,
    READY,
    VECTOR,
    enable,
    gates,
    paging_out,
    run_apf,
    status,
)
from tests.kvm.smp import run_smp
from tests.tiny import EXIT

RESET = "xor r9, r9\nxor r10, r10\nxor r12, r12\nxor r13, r13\n"
SETUP = f"{gates(not_present=14, ready=VECTOR)}{RESET}"
WAIT = f"{NOT_PRESENT}sti\nagain: hlt\ncmp r9, 2\njb again\niretq\n"
"""The guest has nothing else to do than to wait, here inside of the handler."""
TOUCH = f"sti\nnop\nmov qword [{PAGES:#x}], 5\n{PAGE_OUT}mov rax, [{PAGES:#x}]\nsub eax, 5\njnz bad\n"
COUNTS = f"mov eax, r12d\nshl eax, 4\nor eax, r9d\n{EXIT}"
"""End with the number of pages not present, and of tokens."""


@pytest.fixture(autouse=True, params=["shadow", "tdp"])
def mmu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in both modes."""
    monkeypatch.setattr(apf, "MMU", request.param)


def test_a_guest_hears_of_the_page_twice_with_one_token(tmp_path: Path) -> None:
    """Enabling alone makes a token for all who wait, 0xffffffff."""
    source = f"{SETUP}{enable()}{TOUCH}mov eax, 0xffffffff\nadd rax, r13\ncmp rax, r10\njne bad\n{COUNTS}{WAIT}{READY}"
    assert status(run_apf(tmp_path, source + BAD)) == 0x12


def test_time_goes_on_while_the_guest_does_something_else(tmp_path: Path) -> None:
    """It counts in a loop, where without the event it would have stood still."""
    count = f"{NOT_PRESENT}sti\nagain: inc r8\ncmp r9, 2\njb again\niretq\n"
    work = f"cmp r8, {LATENCY // 8}\njb bad\n"
    source = f"{SETUP}xor r8, r8\n{enable()}{TOUCH}{work}{COUNTS}{count}{READY}{BAD}"
    result = run_apf(tmp_path, source)
    assert status(result) == 0x12
    clock = result.machine.pc.clock
    assert clock.now() - result.machine.instructions < LATENCY // 10


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(0x9, 0x01), (0x3, 0x00), (0x2, 0x00), (0x0, 0x00)],
    ids=["only at CPL 3", "ready by #PF", "not enabled", "nothing"],
)
def test_a_guest_that_cannot_be_told_halts(tmp_path: Path, flags: int, expected: int) -> None:
    """Nothing reaches it but, where events are on, the token for all."""
    result = run_apf(tmp_path, f"{SETUP}{enable(flags)}{TOUCH}{COUNTS}{WAIT}{READY}{BAD}")
    assert status(result) == expected
    assert result.machine.pc.clock.now() - result.machine.instructions >= LATENCY - 1000


@pytest.mark.parametrize("case", ["IF = 0", "knob", "no latency"])
def test_a_fault_that_cannot_be_left_waits_as_ever(tmp_path: Path, case: str) -> None:
    """KVM cannot end a halt without interrupts; and a swap device that takes no time leaves nothing to wait for."""
    options: dict[str, object] = {}
    if case == "knob":
        options["kvm_params"] = KvmParams(async_pf=0)
    elif case == "no latency":
        options["swap_latency"] = 0
    touch = TOUCH.replace("sti", "cli") if case == "IF = 0" else TOUCH
    wanted = enable() if case != "knob" else ""
    result = run_apf(tmp_path, f"{SETUP}{wanted}{touch}{COUNTS}{WAIT}{READY}{BAD}", **options)
    assert status(result) == (0x01 if case == "no latency" else 0)
    assert result.machine.vcpu.apf.id == 1


TIMER = """
mov dword [rbx + 0x320], 0x60
mov dword [rbx + 0x3e0], 0xb
mov dword [rbx + 0x380], 2000
"""
TICK = "tick: push rdx\nrdtsc\nmov r14d, eax\nmov edx, 0xfee00000\nmov dword [rdx + 0xb0], 0\npop rdx\niretq\n"


def test_an_interrupt_ends_a_halt_before_the_page_has_come(tmp_path: Path) -> None:
    """The handler of the timer runs in time; then the guest runs into the same page and halts again."""
    source = (
        f"{gates(tick=0x60)}{RESET}xor r14, r14\nsti\nmov qword [{PAGES:#x}], 5\n{PAGE_OUT}"
        f"rdtsc\nmov r15d, eax\n{TIMER}mov rax, [{PAGES:#x}]\nsub eax, 5\njnz bad\nsub r14d, r15d\n"
        f"cmp r14d, {LATENCY}\nja bad\nrdtsc\nsub eax, r15d\ncmp eax, {LATENCY}\njb bad\n"
        f"xor eax, eax\n{EXIT}{TICK}{BAD}"
    )
    assert status(run_apf(tmp_path, source)) == 0


def test_tokens_come_one_at_a_time(tmp_path: Path) -> None:
    """Three pages are on their way; the handler steps over the loads (8 bytes) and the guest collects the tokens."""
    loads = "".join(f"mov rax, [dword {PAGES + i * 4096:#x}]\n" for i in range(3))
    stores = "".join(f"mov qword [{PAGES + i * 4096:#x}], 5\n" for i in range(3))
    skip = f"{NOT_PRESENT}add qword [rsp], 8\niretq\n"
    source = (
        f"{SETUP}{enable()}sti\nnop\n{stores}{PAGE_OUT}{loads}cmp r12, 3\njne bad\nagain: hlt\ncmp r9, 4\njb again\n"
        f"mov eax, 0xffffffff\nadd rax, r13\ncmp rax, r10\njne bad\n{loads}{COUNTS}{skip}{READY}{BAD}"
    )
    assert status(run_apf(tmp_path, source, pages=3)) == 0x34


def test_without_an_acknowledgement_no_other_token_comes(tmp_path: Path) -> None:
    """The guest leaves the word as it is for a while: the page is there all the same, and nothing overwrites it."""
    keep = READY.replace(f"mov dword [{AREA + 4:#x}], 0\n", "").replace("mov ecx, 0x4b564d07", "mov ecx, 0x4b564d06")
    keep = keep.replace("mov eax, 1\n", f"mov eax, {VECTOR:#x}\n")
    busy = f"{NOT_PRESENT}sti\nmov ecx, {4 * LATENCY}\nagain: dec ecx\njnz again\niretq\n"
    last = f"mov eax, [{AREA + 4:#x}]\ninc eax\njnz bad\n"
    source = f"{SETUP}{enable()}{TOUCH}{last}{COUNTS}{busy}{keep}{BAD}"
    result = run_apf(tmp_path, source)
    assert status(result) == 0x11
    assert len(result.machine.vcpu.apf.gfns) == 0, "close() has forgotten them"


def test_init_forgets_everything(tmp_path: Path) -> None:
    """The second CPU enables the events, is given INIT, and starts again without them."""
    source = f"""
mov esi, trampoline
mov edi, 0x8000
mov ecx, trampoline_end - trampoline
rep movsb
mov ebx, 0xfee00000
mov dword [rbx + 0xf0], 0x1ff
mov dword [rbx + 0x300], 0xc4500
mov dword [rbx + 0x300], 0xc4608
first: pause
cmp dword [0x7804], 1
jne first
mov dword [rbx + 0x300], 0xc4500
mov dword [rbx + 0x300], 0xc4608
second: pause
cmp dword [0x7804], 2
jne second
mov eax, [0x7808]
{EXIT}
trampoline:
bits 16
xor ax, ax
mov ds, ax
mov ecx, 0x4b564d02
rdmsr
mov [0x7808], eax
mov eax, 0x30000b
xor edx, edx
wrmsr
inc dword [0x7804]
stop: hlt
jmp stop
trampoline_end:
"""
    outcome, machine = run_smp(tmp_path, source)
    assert outcome.status == 0
    assert machine.vcpus[1].apf.msr_en == 0x30000B


def test_paging_out_is_what_these_tests_rest_on(tmp_path: Path) -> None:
    result = run_apf(tmp_path, f"mov qword [{PAGES:#x}], 5\n{PAGE_OUT}xor eax, eax\n{EXIT}")
    assert status(result) == 0
    assert result.machine.host.vmstat.pswpout == 1
    assert paging_out(1) is not None
