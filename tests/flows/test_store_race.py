"""An emulated store to a page table, interrupted in the middle by another CPU's store to the same entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shadowvm.addr import Gpa, Vpn
from shadowvm.events import Tracepoint, attached, kvm_mmu_seq_sample
from shadowvm.machine import Machine
from shadowvm.mm.gup import host_pte
from tests.guest_run import config_for
from tests.kvm.smp import LONG_MODE, START
from tests.tiny import EXIT, gate, write_tiny

BEHIND_THE_TABLE = 0x301
GO, DONE = 0x7804, 0x7808
STORE_ACROSS_THE_END_OF_A_TABLE = f"""{gate(14)}
mov byte [0x5ff000], 0xc3
mov dword [0x300ff8], 0x5ff063
mov dword [0x300ffc], 0x80000000
mov qword [0xb010], 0x300023
mov rax, cr3
mov cr3, rax
mov al, [0x5ff000]
{START}
until: pause
cmp dword [0x780c], 1
jne until
mov rax, 0x1234567880000000
mov [0x300ffc], rax
mov rax, 0x5ff000
invlpg [rax]
call rax
mov eax, 3
{EXIT}
handler: mov eax, 7
{EXIT}
other: mov dword [0x780c], 1
wait1: pause
cmp dword [{GO:#x}], 1
jne wait1
mov dword [0x300ffc], 0
mov rax, 0x5ff000
invlpg [rax]
call rax
mov dword [{DONE:#x}], 1
cli
hlt
{LONG_MODE}"""
"""The last entry of a table forbids execution. One CPU stores that again, with four bytes behind the table; there its
store faults, and meanwhile another allows execution and executes. Exits with 7 if the page can be executed no more."""


def test_what_another_cpu_built_on_its_own_store_meanwhile_is_zapped(tmp_path: Path) -> None:
    machine = Machine(config_for(write_tiny(tmp_path, STORE_ACROSS_THE_END_OF_A_TABLE), smp=2), lambda byte: None)
    switched = 0

    def let_the_other_run(_tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        nonlocal switched
        vcpu, gfn, _ = args
        if vcpu == 0 and gfn == BEHIND_THE_TABLE and not switched:
            machine.write_guest(Gpa(GO), b"\1")
            while not machine.ram.b[_hpa(machine, DONE)]:
                switched += 1
                machine.sched.preempt()

    with attached(let_the_other_run, [kvm_mmu_seq_sample]):
        outcome = machine.run()
    machine.close()
    assert switched
    assert outcome.status == 7


def _hpa(machine: Machine, gpa: int) -> int:
    slot = machine.kvm.memslots.slots[0]
    pte = host_pte(machine.mm, Vpn((slot.userspace_addr + gpa) >> 12))
    return (pte >> 12 << 12) + gpa % 4096
