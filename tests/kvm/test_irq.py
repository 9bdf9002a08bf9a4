"""Interrupts from the 8259, and HLT."""

from __future__ import annotations

from pathlib import Path

from shadowvm.machine import Machine, Outcome, Reason
from tests.guest_run import config_for
from tests.tiny import EXIT, gate, write_tiny

TICKS = f"""{gate(0x20)}mov al, 0x11
out 0x20, al
mov al, 0x20
out 0x21, al
mov al, 4
out 0x21, al
mov al, 1
out 0x21, al
mov al, 0xfe
out 0x21, al
mov al, 0x34
out 0x43, al
mov al, 0xa9
out 0x40, al
mov al, 4
out 0x40, al
"""
"""Vector 0x20 is IRQ 0, which the timer raises every 1193 ticks: a millisecond."""
HANDLER = """
handler:
inc r14
push rax
mov al, 0x20
out 0x20, al
pop rax
iretq
"""


def run(directory: Path, source: str, **options: object) -> tuple[Outcome, Machine]:
    machine = Machine(config_for(write_tiny(directory, source), **options), lambda byte: None)
    outcome = machine.run()
    machine.close()
    return outcome, machine


def test_hlt_waits_in_virtual_time_for_the_timer(tmp_path: Path) -> None:
    source = f"{TICKS}sti\nagain: hlt\ncmp r14d, 5\njb again\nmov eax, r14d\n{EXIT}{HANDLER}"
    outcome, machine = run(tmp_path, source)
    assert outcome.status == 5
    assert machine.vcpu.stat.irq_injections == 5
    assert 4_000_000 < machine.pc.clock.now() < 7_000_000


def test_a_running_guest_is_interrupted_at_the_instruction_that_is_due(tmp_path: Path) -> None:
    source = f"{TICKS}sti\nagain: cmp r14d, 3\njb again\nmov eax, r14d\n{EXIT}{HANDLER}"
    outcome, machine = run(tmp_path, source)
    assert outcome.status == 3
    assert 2_900_000 < machine.instructions < 3_100_000
    assert run(tmp_path, source)[1].instructions == machine.instructions


def test_an_interrupt_waits_for_if(tmp_path: Path) -> None:
    late = "mov ecx, 3000000\nspin: dec ecx\njnz spin\nmov ebx, r14d\nsti\nnop\nmov eax, r14d\nsub eax, ebx\n"
    source = f"{TICKS}{late}{EXIT}{HANDLER}"
    assert run(tmp_path, source)[0].status == 1


def test_hlt_that_nothing_can_end_ends_the_run(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, f"{TICKS}mov al, 0x30\nout 0x43, al\ncli\nhlt\n{HANDLER}")
    assert outcome.reason is Reason.HALTED
    assert outcome.status == 127


def test_interrupts_and_reclaim_go_together(tmp_path: Path) -> None:
    work = "mov edi, 0x400000\nfill: mov [rdi], rdi\nadd rdi, 64\ncmp edi, 0x1400000\njb fill\n"
    check = "mov edi, 0x400000\ncheck: cmp [rdi], rdi\njne bad\nadd rdi, 4096\ncmp edi, 0x1400000\njb check\n"
    ticked = "test r14d, r14d\nsete al\nmovzx eax, al\n"
    source = f"{TICKS}sti\n{work}{check}{ticked}{EXIT}bad: mov eax, 9\n{EXIT}{HANDLER}"
    outcome, machine = run(tmp_path, source, host_memory=4 << 20)
    assert outcome.status == 0
    assert machine.host.vmstat.pswpin > 0


def test_a_timer_that_is_armed_by_an_msr_fires_on_time(tmp_path: Path) -> None:
    """The budget of the stretch that runs was granted before."""
    arm = f"{gate(0x40)}mov ebx, 0xfee00000\nmov dword [rbx + 0xf0], 0x1ff\nmov dword [rbx + 0x320], 0x40040\nsti\n"
    arm += "rdtsc\nadd eax, 5000\nadc edx, 0\nmov ecx, 0x6e0\nwrmsr\n"
    spin = "xor ecx, ecx\nspin: inc ecx\ntest r14d, r14d\njz spin\nshr ecx, 9\nmov eax, ecx\n"
    handler = "handler: inc r14d\niretq\n"
    assert run(tmp_path, f"{arm}{spin}{EXIT}{handler}")[0].status == 3


def test_an_interrupt_that_a_port_raises_comes_before_the_next_but_one_instruction(tmp_path: Path) -> None:
    init = TICKS.replace("mov al, 0xfe\n", "mov al, 0xf7\n")
    raise_irq3 = "mov dx, 0x2003\nmov al, 1\nsti\nnop\nout dx, al\nnop\nmov eax, r14d\n"
    source = f"{gate(0x23)}{init}{raise_irq3}{EXIT}handler: inc r14d\niretq\n"
    assert run(tmp_path, source)[0].status == 1


SELF = f"{gate(0x41)}mov rbx, 0xfee00000\nmov dword [rbx + 0xf0], 0x1ff\n"
SEND = "mov dword [rbx + 0x300], 0x44041\n"
"""An interrupt of class 4 to the CPU itself."""
COUNT = "handler:\ninc r14\nmov dword [rbx + 0xb0], 0\niretq\n"


def test_cr8_holds_interrupts_back(tmp_path: Path) -> None:
    held = f"mov eax, 4\nmov cr8, rax\nsti\n{SEND}nop\nmov r13, r14\n"
    source = f"{SELF}{held}mov eax, 3\nmov cr8, rax\nnop\nlea eax, [r14d + r13d * 2]\n{EXIT}{COUNT}"
    assert run(tmp_path, source)[0].status == 1


def test_cr8_and_the_task_priority_register_are_one(tmp_path: Path) -> None:
    to_tpr = "mov eax, 0xc\nmov cr8, rax\nmov eax, [rbx + 0x80]\nxor eax, 0xc0\n"
    to_cr8 = "mov dword [rbx + 0x80], 0x75\nmov rcx, cr8\nxor ecx, 7\nor eax, ecx\n"
    assert run(tmp_path, f"{SELF}{to_tpr}{to_cr8}{EXIT}{COUNT}")[0].status == 0


def test_a_store_to_tpr_lets_a_waiting_interrupt_in(tmp_path: Path) -> None:
    held = f"mov eax, 9\nmov cr8, rax\nsti\n{SEND}nop\n"
    source = f"{SELF}{held}mov dword [rbx + 0x80], 0\nnop\nmov eax, r14d\n{EXIT}{COUNT}"
    assert run(tmp_path, source)[0].status == 1


def test_a_single_step_ends_hlt(tmp_path: Path) -> None:
    handler = "handler:\ninc r14\nmov r13, [rsp]\nand qword [rsp + 16], ~0x100\niretq\n"
    step = "pushfq\nor qword [rsp], 0x100\npopfq\nhlt\nafter: lea rax, [r14d + r13d]\nsub eax, after\n"
    assert run(tmp_path, f"{gate(1)}{step}{EXIT}{handler}")[0].status == 1
