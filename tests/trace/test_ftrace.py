from __future__ import annotations

from shadowvm.events import kvm_entry, kvm_page_fault
from shadowvm.sync import Task
from shadowvm.trace.ftrace import ftrace_line


def test_a_line_is_laid_out_as_ftrace_does() -> None:
    line = ftrace_line(Task("CPU 0/KVM", 101, daemon=False), 3_000_001_234, kvm_entry, (0, 0x100000))
    assert line == "       CPU 0/KVM-101     [000] .....     3.000001234: kvm_entry: vcpu 0, rip 0x100000"


def test_one_instruction_is_one_nanosecond() -> None:
    task = Task("kswapd0", 100, daemon=True)
    assert " 0.000000007: " in ftrace_line(task, 7, kvm_page_fault, (0, 0, 0, 0))
