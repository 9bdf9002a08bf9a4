"""The MSRs of asynchronous page faults: who has them, what they take, what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowvm.kvm.apf_msr import MSR_KVM_ASYNC_PF_ACK, MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT
from shadowvm.kvm.cpuid import CpuidResult, cpuid, parse_cpu_model
from shadowvm.params import KvmParams
from tests.kvm.test_intercept import COUNT_GP, status
from tests.tiny import EXIT

EN, INT, ACK = MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK
AREA = 0x300000


def write(index: int, value: int) -> str:
    low, high = value & 0xFFFFFFFF, value >> 32
    return f"mov r15d, 2\nmov ecx, {index:#x}\nmov eax, {low:#x}\nmov edx, {high:#x}\nwrmsr\n"


REFUSED = {
    "reserved bit 4": write(EN, AREA | 0x10),
    "reserved bit 5": write(EN, AREA | 0x29),
    "delivery as an exit of a nested guest": write(EN, AREA | 0xD),
    "an area outside of memory": write(EN, 1 << 38 | 9),
    "a vector of nine bits": write(INT, 0x150),
    "a vector in the high half": write(INT, 0x50 << 32),
}
TAKEN = {
    "the vector reads back": f"{write(INT, 0x50)}rdmsr\nsub eax, 0x50\nor eax, edx",
    "the area reads back": f"{write(EN, AREA | 3)}rdmsr\nsub eax, {AREA | 3:#x}\nor eax, edx",
    "disabled, an area need not exist": f"{write(EN, 1 << 38)}rdmsr\nsub edx, 1 << 6\nor eax, edx",
    "ready by #PF is history: nobody looks at the area": f"{write(EN, 1 << 38 | 1)}xor eax, eax",
    "an acknowledgement reads as 0": f"{write(ACK, 1)}rdmsr\nor eax, edx",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_is_reserved_is_gp(tmp_path: Path, source: str) -> None:
    assert status(tmp_path, f"{COUNT_GP}{source}mov eax, r14d\n{EXIT}") == 1


@pytest.mark.parametrize("source", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(tmp_path: Path, source: str) -> None:
    assert status(tmp_path, f"{COUNT_GP}{source}\nadd eax, r14d\n{EXIT}") == 0


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, 0),
        ({"cpu": "max,kvm=off"}, 6),
        ({"cpu": "max,-kvm-asyncpf"}, 2),
        ({"cpu": "qemu64,-kvm-asyncpf-int"}, 4),
        ({"kvm_params": KvmParams(async_pf=0)}, 6),
    ],
    ids=str,
)
def test_they_exist_only_where_cpuid_says_so(tmp_path: Path, options: dict[str, object], refused: int) -> None:
    source = "".join(f"{write(index, 0)}rdmsr\n" for index in (EN, INT, ACK))
    assert status(tmp_path, f"{COUNT_GP}{source}mov eax, r14d\n{EXIT}", **options) == refused


def test_without_its_feature_ready_cannot_be_by_interrupt(tmp_path: Path) -> None:
    source = f"{COUNT_GP}{write(EN, AREA | 1)}{write(EN, AREA | 9)}mov eax, r14d\n{EXIT}"
    assert status(tmp_path, source, cpu="max,-kvm-asyncpf-int") == 1


def leaf(model: str, number: int) -> CpuidResult:
    return cpuid(parse_cpu_model(model), 0, 0, True, number, 0)


def test_kvm_says_so_by_its_signature() -> None:
    highest, *words = leaf("max", 0x4000_0000)
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"KVMKVMKVM\0\0\0"
    assert highest == 0x4000_0001
    assert leaf("max", 0x4000_0001) == (1 << 4 | 1 << 14, 0, 0, 0)
    assert leaf("max,-kvm-asyncpf-int", 0x4000_0001) == (1 << 4, 0, 0, 0)
    assert leaf("max,kvm=off", 0x4000_0000)[0] == 0x4000_0000
    assert leaf("max,kvm=off", 0x4000_0001) == (0, 0, 0, 0)
