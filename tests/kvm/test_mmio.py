"""Accesses where no memory is: the local APIC, devices in memory, and nothing at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.kvm.exit import ExitReason, InternalError, KvmRun
from shadowvm.machine import Machine, Outcome, Reason
from tests.guest_run import config_for
from tests.tiny import EXIT, gate, write_tiny

APIC_TIMER = f"""{gate(0x30)}mov ebx, 0xfee00000
mov dword [rbx + 0xf0], 0x1ff
mov dword [rbx + 0x3e0], 0xb
mov dword [rbx + 0x320], 0x20030
mov dword [rbx + 0x380], 100000
sti
"""
"""The APIC's timer interrupts by vector 0x30 every 100000 ns."""
HANDLER = """
handler:
inc r14
mov dword [rbx + 0xb0], 0
iretq
"""


def run(directory: Path, source: str, **options: object) -> tuple[Outcome, Machine]:
    machine = Machine(config_for(write_tiny(directory, source), **options), lambda byte: None)
    outcome = machine.run()
    machine.close()
    return outcome, machine


def test_apic_timer_interrupts_a_running_and_a_halted_guest(tmp_path: Path) -> None:
    spin = "spin: cmp r14d, 3\njb spin\n"
    halt = "again: hlt\ncmp r14d, 6\njb again\nmov eax, r14d\n"
    outcome, machine = run(tmp_path, f"{APIC_TIMER}{spin}{halt}{EXIT}{HANDLER}")
    assert outcome.status == 6
    assert machine.vcpu.stat.mmio_exits >= 4 + 6
    assert 600_000 <= machine.pc.clock.now() < 700_000


STATUS = {
    "what is nowhere reads as all ones": "mov ebx, 0xd0000000\nmov rax, [rbx]\ninc rax",
    "a store to nowhere vanishes": "mov ebx, 0xd0000000\nmov dword [rbx], 7\nxor eax, eax",
    "io ram holds what is stored": (
        "mov ebx, 0xff000000\nmov dword [rbx], 5\nadd dword [rbx], 2\nmov eax, [rbx]\nsub eax, 7"
    ),
    "a string is copied out of a device": (
        "mov ebx, 0xff000000\nmov dword [rbx], 0x11223344\nmov rsi, rbx\nmov edi, 0x300000\nmovsd\n"
        "mov eax, [0x300000]\nsub eax, 0x11223344"
    ),
    "an exchange with a device happens once": (
        "mov ebx, 0xff000000\nmov dword [rbx], 5\nmov eax, 9\nxchg [rbx], eax\n"
        "sub eax, 5\nmov ecx, [rbx]\nsub ecx, 9\nor eax, ecx"
    ),
    "the version of the local apic": "mov ebx, 0xfee00030\nmov eax, [rbx]\nand eax, 0xff\nsub eax, 0x14",
    "x2apic registers are msrs": "mov ecx, 0x1b\nrdmsr\nor eax, 0x400\nwrmsr\nmov ecx, 0x802\nrdmsr",
}


@pytest.mark.parametrize("source", STATUS.values(), ids=STATUS)
def test_access(tmp_path: Path, source: str) -> None:
    outcome, _ = run(tmp_path, f"{source}\n{EXIT}")
    assert outcome.status == 0


def test_code_is_not_fetched_from_where_no_memory_is(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, "mov eax, 0xd0000000\njmp rax")
    assert outcome.reason is Reason.UNBACKED_MEMORY
    assert outcome.status == 127


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
@pytest.mark.parametrize("before", ["", "mov eax, [rsp]\n"], ids=["first touch", "mmio spte"])
def test_an_event_is_not_delivered_to_where_no_memory_is(tmp_path: Path, mmu: str, before: str) -> None:
    name = write_tiny(tmp_path, f"{gate(6)}mov esp, 0xd0000800\n{before}ud2\nhandler: xor eax, eax\n{EXIT}")
    machine = Machine(config_for(name, mmu=mmu), lambda byte: None)
    runs: list[KvmRun] = []
    machine.sched.spawn("vcpu", lambda: runs.append(machine.vcpu.run()), vcpu=0)
    machine.sched.run()
    machine.close()
    assert (runs[0].exit_reason, runs[0].suberror) == (ExitReason.INTERNAL_ERROR, InternalError.DELIVERY_EV)
    assert "vector 0x6 is delivered, and gva 0xd00007f8, gpa 0xd00007f8, is no memory" in runs[0].text


def test_devices_work_under_pressure(tmp_path: Path) -> None:
    fill = "mov edi, 0x400000\nmov esi, 0xff000000\n"
    fill += "fill: mov [rdi], rdi\nmov [rsi], edi\nmov eax, [rsi]\ncmp eax, edi\n"
    source = f"{fill}jne bad\nadd edi, 4096\ncmp edi, 0x1000000\njb fill\nxor eax, eax\n{EXIT}bad: mov eax, 9\n{EXIT}"
    outcome, machine = run(tmp_path, source, host_memory=4 << 20)
    assert outcome.status == 0
    assert machine.host.vmstat.pswpout > 0


def test_a_store_at_which_a_device_asks_to_stop_has_not_failed(tmp_path: Path) -> None:
    source = f"mov ebx, 0xfee00000\nmov dword [rbx + 0xf0], 0x1ff\nmov dword [rbx + 0x80], 0\nxor eax, eax\n{EXIT}"
    machine = Machine(config_for(write_tiny(tmp_path, source)), lambda byte: None)
    assert machine.run().status == 0
    machine.close()
    assert machine.vcpu.stat.insn_emulation == 2
    assert machine.vcpu.stat.insn_emulation_fail == 0
