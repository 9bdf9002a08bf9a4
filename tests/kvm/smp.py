"""Pieces of guests with several CPUs, for tiny images: NASM code that starts the others and that these run."""

from __future__ import annotations

from pathlib import Path

from shadowvm.machine import Machine, Outcome
from tests.guest_run import config_for
from tests.tiny import EXIT, write_tiny

APIC = 0xFEE0_0000
INIT_OTHERS, SIPI_8_OTHERS = 0xC4500, 0xC4608
START = f"""
mov esi, trampoline
mov edi, 0x8000
mov ecx, trampoline_end - trampoline
rep movsb
mov ebx, {APIC:#x}
mov dword [rbx + 0xf0], 0x1ff
mov dword [rbx + 0x300], {INIT_OTHERS:#x}
mov dword [rbx + 0x300], {SIPI_8_OTHERS:#x}
"""
"""Copy the code between `trampoline` and `trampoline_end` to 0x8000 and start every other CPU there in real mode."""

LONG_MODE = """
trampoline:
bits 16
cli
xor ax, ax
mov ds, ax
mov eax, cr0
mov [0x7820], eax
o32 lgdt [0x8000 + gdt_pointer - trampoline]
mov eax, 0xa0
mov cr4, eax
mov eax, 0x9000
mov cr3, eax
mov ecx, 0xc0000080
mov eax, 0x900
xor edx, edx
wrmsr
mov eax, 0x80010033
mov cr0, eax
jmp dword 8:0x8000 + in_long_mode - trampoline
align 8
gdt: dq 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer: dw 23
dd 0x8000 + gdt - trampoline
bits 64
in_long_mode:
mov ax, 0x10
mov ss, ax
mov ds, ax
mov es, ax
mov eax, 1
lock xadd [0x7800], eax
inc eax
mov ebp, eax
shl eax, 12
lea esp, [eax + 0x310000]
mov rdi, other
jmp rdi
trampoline_end:
"""
"""A trampoline: every other CPU arrives in long mode at `other`, on a stack, with a number from 1 on in EBP. What CR0
was at the start is at 0x7820."""


_PASSES = 2
_TOUCH_TOGETHER = f"""{START}xor ebp, ebp
jmp work
other:
work: mov r13d, {_PASSES}
pass: mov edi, 0x400000
mov ecx, {{pages}}
page: lock add dword [rdi], 1
lea r8, [rdi + rbp * 8 + 64]
add dword [r8], 1
mov eax, r13d
add eax, [r8]
cmp eax, {_PASSES + 1}
jne bad
add edi, 4096
dec ecx
jnz page
dec r13d
jnz pass
lock inc dword [0x7804]
test ebp, ebp
jnz stop
spin: pause
cmp dword [0x7804], {{cpus}}
jne spin
mov edi, 0x400000
mov ecx, {{pages}}
check: cmp dword [rdi], {{total}}
jne bad
add edi, 4096
dec ecx
jnz check
xor eax, eax
{EXIT}
bad: mov eax, 9
{EXIT}
stop: cli
hlt
{LONG_MODE}"""


def touch_together(cpus: int, pages: int) -> str:
    """Every CPU adds 1 to each page, under lock, and to a word of its own in it, which it verifies. Exits with 0."""
    source = _TOUCH_TOGETHER.replace("{pages}", str(pages)).replace("{cpus}", str(cpus))
    return source.replace("{total}", str(cpus * _PASSES))


def run_smp(directory: Path, source: str, smp: int = 2, **options: object) -> tuple[Outcome, Machine]:
    """Run a tiny guest on `smp` CPUs."""
    output = bytearray()
    options = {"timeout_instructions": 20_000_000, **options}
    machine = Machine(config_for(write_tiny(directory, source), smp=smp, **options), output.append)
    try:
        outcome = machine.run()
    finally:
        machine.close()
    return outcome, machine
