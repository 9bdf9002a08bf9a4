"""Starting, stopping and waking CPUs: INIT, SIPI, HLT."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.cpu.engine import Event, EventKind
from shadowvm.kvm.mp_state import kvm_vcpu_reset
from shadowvm.machine import Machine, Reason
from tests.guest_run import config_for
from tests.kvm.smp import APIC, INIT_OTHERS, LONG_MODE, SIPI_8_OTHERS, START, run_smp
from tests.tiny import EXIT, gate, write_tiny

COUNT_IN_REAL_MODE = """
trampoline:
bits 16
mov ax, cs
mov ds, ax
xor bx, bx
mov es, bx
lock inc word [es:0x7800]
hlt
bits 64
trampoline_end:
"""
WAIT_FOR = "until: pause\ncmp word [0x7800], {count}\njne until\n"


@pytest.mark.parametrize("smp", [2, 3, 16])
def test_sipi_starts_every_other_cpu_in_real_mode(smp: int, tmp_path: Path) -> None:
    source = f"{START}{WAIT_FOR.format(count=smp - 1)}movzx eax, word [0x7800]\n{EXIT}{COUNT_IN_REAL_MODE}"
    outcome, machine = run_smp(tmp_path, source, smp)
    assert outcome.status == smp - 1
    assert [vcpu.stat.exits > 0 for vcpu in machine.vcpus] == [True] * smp


def test_a_cpu_that_was_not_started_does_nothing(tmp_path: Path) -> None:
    outcome, machine = run_smp(tmp_path, f"mov ecx, 100000\nspin: loop spin\nmov eax, 7\n{EXIT}")
    assert outcome.status == 7
    assert machine.vcpus[1].stat.exits == 0
    assert machine.vcpus[1].engine.instructions == 0


def test_sipi_without_init_is_lost_on_a_running_cpu(tmp_path: Path) -> None:
    again = f"mov dword [rbx + 0x300], {SIPI_8_OTHERS:#x}\nmov ecx, 100000\nspin: loop spin\n"
    source = f"{START}{WAIT_FOR.format(count=1)}{again}movzx eax, word [0x7800]\n{EXIT}{COUNT_IN_REAL_MODE}"
    assert run_smp(tmp_path, source)[0].status == 1


@pytest.mark.parametrize("end", ["hlt", "jmp $"])
def test_init_stops_a_cpu_and_sipi_starts_it_again(end: str, tmp_path: Path) -> None:
    again = f"mov dword [rbx + 0x300], {INIT_OTHERS:#x}\nmov dword [rbx + 0x300], {SIPI_8_OTHERS:#x}\n"
    second = WAIT_FOR.format(count=2).replace("until", "second")
    count = COUNT_IN_REAL_MODE.replace("hlt", end)
    source = f"{START}{WAIT_FOR.format(count=1)}{again}{second}movzx eax, word [0x7800]\n{EXIT}{count}"
    outcome, machine = run_smp(tmp_path, source)
    assert outcome.status == 2
    assert machine.instructions < 500_000, "the other CPU stops with the first"


def test_init_takes_a_cpu_out_of_long_mode_and_its_roots_away(tmp_path: Path) -> None:
    loop = "other: cmp ebp, 2\nje done\njmp $\ndone: mov eax, [0x7820]\n"
    again = f"mov dword [rbx + 0x300], {INIT_OTHERS:#x}\nmov dword [rbx + 0x300], {SIPI_8_OTHERS:#x}\n"
    source = f"{START}{WAIT_FOR.format(count=1)}{again}jmp $\n{loop}{EXIT}{LONG_MODE}"
    outcome, _ = run_smp(tmp_path, source)
    assert outcome.status == 0x10


def test_init_of_the_boot_cpu_starts_it_at_the_reset_vector(tmp_path: Path) -> None:
    init_self = f"mov ebx, {APIC:#x}\nmov dword [rbx + 0xf0], 0x1ff\nmov dword [rbx + 0x300], 0x44500\njmp $\n"
    outcome, machine = run_smp(tmp_path, init_self, 1)
    assert outcome.reason is Reason.UNBACKED_MEMORY
    assert "gva 0xfffffff0" in outcome.text
    assert machine.vcpu.engine.cr0 & 0x80000001 == 0


def test_an_ipi_wakes_a_halted_cpu(tmp_path: Path) -> None:
    idt = gate(0x40)
    main = f"until: pause\ncmp dword [0x7804], 1\njne until\nmov dword [rbx + 0x310], {1 << 24:#x}\n"
    main += "mov dword [rbx + 0x300], 0x4040\ngot: pause\ncmp dword [0x7808], 1\njne got\nmov eax, 3\n"
    other = f"other: lidt [0x200ff0]\nmov ebx, {APIC:#x}\nmov dword [rbx + 0xf0], 0x1ff\nmov dword [0x7804], 1\n"
    other += "sti\nhlt\nmov dword [0x7808], 1\njmp $\n"
    handler = "handler: mov dword [rbx + 0xb0], 0\niretq\n"
    outcome, machine = run_smp(tmp_path, f"{idt}{START}{main}{EXIT}{other}{handler}{LONG_MODE}")
    assert outcome.status == 3
    assert machine.vcpus[1].stat.irq_injections == 1
    assert machine.vcpus[1].stat.halt_exits == 1


def test_without_if_an_nmi_alone_wakes_a_halted_cpu(tmp_path: Path) -> None:
    ipi = "mov dword [rbx + 0x310], 0x1000000\nmov dword [rbx + 0x300], {:#x}\n"
    main = f"{WAIT_FOR.format(count=1)}until2: pause\ncmp dword [0x7804], 1\njne until2\n{ipi.format(0x4040)}"
    main += "mov ecx, 50000\nspin: loop spin\nmov r12d, [0x7808]\n" + ipi.format(0x4400)
    main += "got: pause\ncmp dword [0x7808], 0\nje got\nmov eax, [0x7808]\nshl r12d, 4\nor eax, r12d\n"
    other = f"other: lidt [0x200ff0]\nmov ebx, {APIC:#x}\nmov dword [rbx + 0xf0], 0x1ff\nmov dword [0x7804], 1\n"
    other += "cli\nhlt\nmov eax, [0x780c]\nadd eax, 4\nmov [0x7808], eax\njmp $\n"
    handlers = "handler: mov dword [0x780c], 8\niretq\nnmi: mov dword [0x780c], 3\niretq\n"
    idt = f"{gate(0x40)}{gate(2).replace('handler', 'nmi')}"
    outcome, machine = run_smp(tmp_path, f"{idt}{START}{main}{EXIT}{other}{handlers}{LONG_MODE}")
    assert outcome.status == 7
    assert machine.vcpus[1].stat.nmi_injections == 1


def test_init_forgets_what_was_to_be_delivered(tmp_path: Path) -> None:
    """A vector that waited for IF is neither delivered after INIT nor taken for one in service."""
    ipi = "mov dword [rbx + 0x310], 0x1000000\nmov dword [rbx + 0x300], {:#x}\n"
    again = ipi.format(0x4080) + "mov ecx, 50000\nspin: loop spin\n" + ipi.format(0x4500) + ipi.format(0x4608)
    main = f"{WAIT_FOR.format(count=1)}{again}until2: pause\ncmp dword [0x7804], 1\njne until2\n{ipi.format(0x4040)}"
    main += "got: pause\ncmp dword [0x7808], 0\nje got\nmov eax, [0x7808]\n"
    other = f"other: lidt [0x200ff0]\nmov ebx, {APIC:#x}\nmov dword [rbx + 0xf0], 0x1ff\ncmp ebp, 2\nje second\n"
    other += "jmp $\nsecond: mov dword [0x7804], 1\nsti\njmp $\n"
    handlers = "handler: mov dword [0x7808], 9\niretq\nlower: mov dword [0x7808], 3\niretq\n"
    idt = f"{gate(0x80)}{gate(0x40).replace('handler', 'lower')}"
    outcome, _ = run_smp(tmp_path, f"{idt}{START}{main}{EXIT}{other}{handlers}{LONG_MODE}")
    assert outcome.status == 3


def test_init_drops_an_exception_that_waits_for_the_entry(tmp_path: Path) -> None:
    machine = Machine(config_for(write_tiny(tmp_path, f"mov eax, 1\n{EXIT}")), lambda byte: None)
    vcpu, irq = machine.vcpu, machine.vcpu.irq
    assert irq is not None
    vcpu.event, irq.nmi, irq.queued = Event(EventKind.EXCEPTION, 6), True, 0x80
    kvm_vcpu_reset(vcpu, irq)
    assert (vcpu.event, irq.nmi, irq.queued) == (None, False, None)
    machine.close()


def test_when_every_cpu_halts_for_good_the_run_ends(tmp_path: Path) -> None:
    source = f"{START}{WAIT_FOR.format(count=2)}cli\nhlt\n{COUNT_IN_REAL_MODE}"
    outcome, _ = run_smp(tmp_path, source, 3)
    assert outcome.reason is Reason.HALTED
    assert "nothing can wake" in outcome.text
