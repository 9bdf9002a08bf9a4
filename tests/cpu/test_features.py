"""CPU features taken away, and the time-stamp counter of a machine."""

from __future__ import annotations

import pytest

from shadowvm.cpu.engine import CpuExit
from shadowvm.cpu.setup import cpuid
from tests.cpu.machine import CODE, HANDLERS, RAX, RDX, TO_USER, USER_CODE, Machine

ALL = 0xFFFF_FFFF
EVERYTHING = {"leaf1": (ALL, ALL), "leaf7": (ALL, ALL), "extended1": (ALL, ALL)}


@pytest.mark.parametrize(
    ("source", "without"),
    [
        ("popcnt eax,ebx", {"leaf1": (ALL & ~(1 << 23), ALL)}),
        ("rdfsbase rax", {"leaf7": (ALL & ~1, ALL)}),
        ("stac", {"leaf7": (ALL & ~(1 << 20), ALL)}),
        ("rdpkru", {"leaf7": (ALL, ALL & ~(1 << 3))}),
        ("rdtscp", {"extended1": (ALL, ALL & ~(1 << 27))}),
        ("lzcnt eax,ebx", None),
    ],
)
def test_an_instruction_of_an_absent_feature_is_undefined(
    source: str, without: dict[str, tuple[int, int]] | None
) -> None:
    machine = Machine()
    e = machine.engine
    machine.code(HANDLERS, "mov edi,6\n hlt")
    machine.gate(6, HANDLERS)
    machine.code(CODE, f"xor ecx,ecx\n xor edi,edi\n {source}\n hlt")
    for features in (None, without):
        if features is not None:
            e.set_features(**{**EVERYTHING, **features})
        machine.reset()
        e.cr4 |= 1 << 16 | 1 << 20 | 1 << 21 | 1 << 22
        for page in range(0, 1 << 20, 4096):
            machine.map(page, page, 3)
        machine.load()
        assert e.enter() == CpuExit.HLT
        assert machine.reg(7) == (6 if features else 0)


def test_features_are_only_taken_away() -> None:
    e = Machine().engine
    before = [cpuid(e._lib, e._env_address, leaf, 0) for leaf in (1, 7, 0x80000001)]
    e.set_features(**EVERYTHING)
    assert [cpuid(e._lib, e._env_address, leaf, 0) for leaf in (1, 7, 0x80000001)] == before


def test_the_tsc_counts_the_machine_s_instructions() -> None:
    machine = Machine()
    e = machine.engine
    e.tsc_offset = 1000
    e.set_time_base(1 << 33)
    assert machine.run("nop\n nop\n rdtsc\n hlt") == CpuExit.HLT
    assert machine.reg(RDX) << 32 | machine.reg(RAX) == (1 << 33) + 1000 + 2
    assert e.tsc == (1 << 33) + 1000 + 4
    e.tsc_offset -= e.tsc
    assert e.tsc == 0


@pytest.mark.parametrize("source", ["rdtsc", "rdtscp"])
def test_tsd_keeps_the_tsc_from_users(source: str) -> None:
    machine = Machine()
    machine.code(HANDLERS, "hlt")
    machine.gate(13, HANDLERS)
    machine.code(CODE, f"{source}\n {TO_USER}")
    machine.code(USER_CODE, source)
    machine.reset()
    machine.engine.cr4 |= 4
    machine.load()
    assert machine.engine.enter() == CpuExit.HLT
    assert machine.engine.box[-1] == 0
    assert machine.engine.rip == HANDLERS + 1
