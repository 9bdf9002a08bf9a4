"""Real mode code that calls the BIOS comes back, and a timer interrupt that nobody has taken over does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.smp import START, run_smp
from tests.tiny import EXIT

IN_REAL_MODE = """
until: pause
cmp dword [0x7800], 0
je until
mov eax, [0x7804]
{check}
{exit}
trampoline:
bits 16
xor ax, ax
mov ds, ax
mov ss, ax
mov sp, 0x7c00
{code}
mov dword [0x7800], 1
cli
hlt
bits 64
trampoline_end:
"""


def answer(directory: Path, code: str, check: str = "") -> int:
    """What 16-bit code leaves at 0x7804."""
    text = IN_REAL_MODE.replace("{code}", code).replace("{exit}", EXIT).replace("{check}", check)
    return run_smp(directory, f"{START}{text}")[0].status


@pytest.mark.parametrize("number", [0x10, 0x13, 0x15, 0x16, 0x1A])
def test_a_service_says_that_it_does_not_exist(number: int, tmp_path: Path) -> None:
    code = f"mov ax, 0xe820\nclc\nint {number:#x}\nsbb bl, bl\nand bl, 1\nmov [0x7804], ah\nadd [0x7804], bl"
    assert answer(tmp_path, code) == 0x87


def test_the_size_of_memory_and_the_equipment_are_told(tmp_path: Path) -> None:
    code = "int 0x12\nmov [0x7804], ax\nint 0x11\nadd [0x7804], ax"
    assert answer(tmp_path, code, "sub eax, 639 + 0x206 - 5\n") == 5


@pytest.mark.parametrize("vector", [0, 0x1C, 0x60, 0xFF, 0x09, 0x74])
def test_every_vector_leads_back(vector: int, tmp_path: Path) -> None:
    code = f"mov cx, 0x1234\nmov ax, 0x5678\nint {vector:#x}\ncmp ax, 0x5678\njne $\ncmp cx, 0x1234\njne $\n"
    assert answer(tmp_path, code + "mov dword [0x7804], 4") == 4


def test_the_timers_interrupt_counts_ticks(tmp_path: Path) -> None:
    code = "mov eax, [0x46c]\nint 8\nint 8\nint 8\nmov ebx, [0x46c]\nsub ebx, eax\nmov [0x7804], ebx"
    assert answer(tmp_path, code) == 3
