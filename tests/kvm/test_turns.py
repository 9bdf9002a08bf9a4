"""vCPUs take turns of exact length; time is common; what one writes the others see."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.kvm import turns
from shadowvm.kvm.turns import Turns
from shadowvm.kvm.vcpu import Vcpu
from tests.kvm.smp import LONG_MODE, START, run_smp
from tests.tiny import EXIT

COUNT_TO = 1000
COUNTERS = f"""
mov ecx, {COUNT_TO}
again: {{step}}
dec ecx
jnz again
lock inc dword [0x7804]
"""
ALL_COUNT = f"""{START}xor ebp, ebp
jmp go
other:
go: {COUNTERS}
test ebp, ebp
jnz stop
spin: pause
cmp dword [0x7804], {{smp}}
jne spin
xor eax, eax
cmp dword [0x7808], {{total}}
setne al
{EXIT}
stop: cli
hlt
{LONG_MODE}"""


def counting(step: str, smp: int) -> str:
    return ALL_COUNT.replace("{step}", step).replace("{smp}", str(smp)).replace("{total}", str(smp * COUNT_TO))


@pytest.mark.parametrize("quantum", [(1, 1), (7, 7), (1000, 1000), (1, 50)])
@pytest.mark.parametrize("step", ["lock inc dword [0x7808]", "mov eax, 1\nlock xadd [0x7808], eax"])
def test_locked_instructions_lose_nothing(step: str, quantum: tuple[int, int], tmp_path: Path) -> None:
    outcome, _ = run_smp(tmp_path, counting(step, 3), 3, quantum=quantum, seed=quantum[1])
    assert outcome.status == 0


def test_a_read_and_a_write_without_lock_lose_some(tmp_path: Path) -> None:
    """Or the turns would not be shorter than three instructions."""
    outcome, _ = run_smp(tmp_path, counting("mov eax, [0x7808]\ninc eax\nmov [0x7808], eax", 2), quantum=(2, 2))
    assert outcome.status == 1


def test_turns_have_the_length_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[int] = []
    end = turns.end_turn

    def noting(vcpu: Vcpu) -> None:
        ends.append(vcpu.engine.instructions)
        end(vcpu)

    monkeypatch.setattr("shadowvm.kvm.vcpu.end_turn", noting)
    _, machine = run_smp(tmp_path, counting("nop", 2), quantum=(500, 500))
    assert machine.instructions > 5000
    assert len(ends) > 10
    assert {count % 500 for count in ends} == {0}


def test_the_limit_is_for_all_cpus_together(tmp_path: Path) -> None:
    source = f"{START}jmp $\nother: jmp $\n{LONG_MODE}"
    outcome, machine = run_smp(tmp_path, source, 4, quantum=(100, 100), timeout_instructions=5000)
    assert outcome.status == 124
    assert machine.instructions == 5000


def test_lengths_are_drawn_with_the_seed() -> None:
    def drawn(seed: int) -> list[int]:
        lengths = Turns(10, 99, seed)
        return [lengths.next() for _ in range(20)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(map(type, drawn(3))) == {int}
    assert 10 <= min(drawn(3)) <= max(drawn(3)) <= 99


def test_the_time_stamp_counter_never_goes_back_between_cpus(tmp_path: Path) -> None:
    step = """rdtsc
shl rdx, 32
or rax, rdx
mov r8, rax
taken: mov r9d, 1
xchg [0x7810], r9d
test r9d, r9d
jnz taken
rdtsc
shl rdx, 32
or rax, rdx
cmp rax, [0x7818]
jb back
mov [0x7818], rax
mov dword [0x7810], 0
inc dword [0x7808]"""
    source = counting(step, 3).replace("stop: cli", f"back: mov eax, 9\n{EXIT}stop: cli")
    outcome, _ = run_smp(tmp_path, source, 3, quantum=(33, 33), timeout_instructions=100_000_000)
    assert outcome.status == 0


def test_code_that_another_cpu_rewrites_is_executed_as_written(tmp_path: Path) -> None:
    source = f"""{START}
until: pause
cmp dword [0x7804], 1
jne until
mov ebx, 100
rewrite: mov [0x300001], ebx
mov dword [0x7808], ebx
answer: pause
cmp [0x780c], ebx
jne answer
dec ebx
jnz rewrite
xor eax, eax
{EXIT}
other: mov dword [0x300000], 0x000000b8
mov word [0x300004], 0xc300
mov dword [0x7804], 1
xor r8d, r8d
next: pause
mov ecx, [0x7808]
cmp ecx, r8d
je next
mov r8d, ecx
cpuid
mov r9d, 0x300000
call r9
mov [0x780c], eax
jmp next
{LONG_MODE}"""
    outcome, machine = run_smp(tmp_path, source, quantum=(50, 50))
    assert outcome.status == 0, machine.vcpus[1].engine.rip
