"""MOV to control registers, RDMSR, WRMSR and CPUID as a guest sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.machine import Machine
from tests.guest_run import config_for
from tests.tiny import EXIT, gate, write_tiny

COUNT_GP = f"""{gate(13)}jmp start
handler:
inc r14
add [rsp + 8], r15
add rsp, 8
iretq
start:
"""
"""Set up #GP so that it counts in r14 and skips r15 bytes."""


def status(directory: Path, source: str, **options: object) -> int:
    machine = Machine(config_for(write_tiny(directory, source), **options), lambda byte: None)
    try:
        return machine.run().status
    finally:
        machine.close()


REFUSED = {
    "msr that does not exist, read": ("mov r15, 2\nmov ecx, 0xdead\nrdmsr", {}),
    "msr that does not exist, written": ("mov r15, 2\nmov ecx, 0xdead\nwrmsr", {}),
    "msr that only reads": ("mov r15, 2\nmov ecx, 0x17\nxor eax, eax\nxor edx, edx\nwrmsr", {}),
    "pat of an unknown memory type": ("mov r15, 2\nmov ecx, 0x277\nmov eax, 2\nxor edx, edx\nwrmsr", {}),
    "efer bit that is reserved": ("mov r15, 2\nmov ecx, 0xc0000080\nrdmsr\nbts eax, 12\nwrmsr", {}),
    "efer.lme changed under paging": ("mov r15, 2\nmov ecx, 0xc0000080\nrdmsr\nbtr eax, 8\nwrmsr", {}),
    "cr0 without pe": ("mov r15, 3\nmov rax, cr0\nbtr rax, 0\nmov cr0, rax", {}),
    "cr0 of more than 32 bits": ("mov r15, 3\nmov rax, cr0\nbts rax, 40\nmov cr0, rax", {}),
    "cr4 without pae in long mode": ("mov r15, 3\nmov rax, cr4\nbtr rax, 5\nmov cr4, rax", {}),
    "cr4.pcide": ("mov r15, 3\nmov rax, cr4\nbts rax, 17\nmov cr4, rax", {}),
    "cr4.smep on a cpu without it": ("mov r15, 3\nmov rax, cr4\nbts rax, 20\nmov cr4, rax", {"cpu": "qemu64"}),
    "cr3 with an address bit that the cpu lacks": ("mov r15, 3\nmov rax, cr3\nbts rax, 45\nmov cr3, rax", {}),
    "fs base that is not canonical": ("mov r15, 2\nmov ecx, 0xc0000100\nmov edx, 0x01000000\nwrmsr", {}),
    "gs base of 57 bits on a cpu with 48": (
        "mov r15, 2\nmov ecx, 0xc0000101\nmov edx, 0x8000\nwrmsr",
        {"cpu": "max,-la57"},
    ),
    "lstar that is not canonical": ("mov r15, 2\nmov ecx, 0xc0000082\nmov edx, 0x80000000\nwrmsr", {}),
    "cr8 of more than 4 bits": ("mov r15, 4\nmov eax, 0x10\nmov cr8, rax", {}),
}


@pytest.mark.parametrize(("source", "options"), REFUSED.values(), ids=REFUSED)
def test_what_the_cpu_refuses_is_gp_at_the_instruction(tmp_path: Path, source: str, options: dict[str, str]) -> None:
    assert status(tmp_path, f"{COUNT_GP}{source}\nmov eax, r14d\n{EXIT}", **options) == 1


ALLOWED = {
    "tsc grows": "mov ecx, 0x10\nrdmsr\nmov ebx, eax\nrdmsr\ncmp eax, ebx\nseta al\nmovzx eax, al\ndec eax\nneg eax",
    "pat holds what is written": (
        "mov ecx, 0x277\nmov eax, 0x01040506\nmov edx, 0x00010406\nwrmsr\nrdmsr\n"
        "sub eax, 0x01040506\nsub edx, 0x10406\nor eax, edx"
    ),
    "what intel cpus have is 0": (
        "mov r15d, 2\nmov ecx, 0x17\nrdmsr\nor eax, edx\nmov ebx, eax\nmov ecx, 0x606\nrdmsr\nor eax, edx\nor eax, ebx"
    ),
    "the clock's ratio": "mov r15d, 2\nmov ecx, 0x198\nrdmsr\nsub eax, 1000\nsub edx, 0x400\nor eax, edx",
    "cpuid names the hypervisor": "mov eax, 0x40000000\ncpuid\nsub ebx, 'KVMK'\nsub eax, 0x40000001\nor eax, ebx",
    "cr4.smep": "mov rax, cr4\nbts rax, 20\nmov cr4, rax\nmov rbx, cr4\nsub rax, rbx",
    "gs base of 57 bits": "mov ecx, 0xc0000101\nmov edx, 0x8000\nwrmsr\nrdmsr\nlea eax, [edx - 0x8000]",
    "mov to cr8": "mov eax, 5\nmov cr8, rax\nmov rax, cr8\nsub eax, 5",
}


@pytest.mark.parametrize("source", ALLOWED.values(), ids=ALLOWED)
def test_what_the_cpu_allows_happens(tmp_path: Path, source: str) -> None:
    assert status(tmp_path, f"{COUNT_GP}{source}\nadd eax, r14d\n{EXIT}") == 0


def test_cpuid_follows_the_model(tmp_path: Path) -> None:
    source = f"mov eax, 7\nxor ecx, ecx\ncpuid\nshr ebx, 20\nand ebx, 1\nmov eax, ebx\n{EXIT}"
    assert status(tmp_path, source) == 1
    assert status(tmp_path, source, cpu="max,-smap") == 0
