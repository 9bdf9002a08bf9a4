"""Operations that belong together; that they show the bugs they are made for is tested with the bugs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from shadowvm.lab.oracle import scenarios
from shadowvm.lab.oracle.generate import Generator
from shadowvm.lab.oracle.layout import PT64
from shadowvm.lab.oracle.model import Model
from shadowvm.lab.oracle.setup import Setup
from shadowvm.lab.oracle.shapes import Operation, problem_with

Scenario = Callable[[Generator], list[Operation]]


def generator(seed: int) -> Generator:
    """Over random tables, with two CPUs of 4-level paging."""
    gen = Generator(Random(seed), Model(2, lambda at: None), Setup(2, dirty_log="manual"))
    for name, *arguments in gen.beginning():
        if name == "outside":
            gen.model.memory.words[int(arguments[0])] = int(arguments[1])
    for cpu in gen.model.cpus:
        cpu.control.mode, cpu.control.cr3 = PT64, 0x1000
    return gen


def made(scenario: Scenario, count: int = 30) -> list[list[str]]:
    """The names of the operations that it makes, over some seeds; all of them are operations."""
    found = []
    for seed in range(count):
        operations = scenario(generator(seed))
        assert [problem_with(each, 2) for each in operations] == [""] * len(operations)
        found.append([str(each[0]) for each in operations])
    return found


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        (scenarios.bit, ["bit", "access", "bit", "access"]),
        (scenarios.remap, ["access", "access", "invlpg", "access"]),
        (scenarios.relink, ["access", "cr3", "access", "access", "access", "access", "access"]),
        (scenarios.amid, ["readonly", "writable", "amid", "access", "cr3", "access"]),
        (scenarios.logged, ["log", "clear", "access", "harvest", "clear", "access", "harvest"]),
        (scenarios.rom, ["rom", "access", "invlpg", "access", "access", "access"]),
        (scenarios.smm, ["access", "smm", "access"]),
    ],
)
def test_what_belongs_together(scenario: Scenario, names: list[str]) -> None:
    assert names in made(scenario)


def test_the_access_is_one_that_the_bit_decides_about() -> None:
    telling = 0
    for seed in range(40):
        gen = generator(seed)
        operations = scenarios.bit(gen)
        if len(operations) == 1:
            continue
        _, number, name, _ = operations[0]
        access, cpu = operations[1], gen.model.cpus[int(number)]
        verdicts = []
        for value in (False, True):
            setattr(cpu.control, str(name), value)
            gen.model.forget()
            by = scenarios.access_of(str(access[2]), int(access[5]), bool(access[6]))
            verdicts.append(gen.model.verdict(cpu, gen.model.paths(cpu, int(access[3]))[0], by))
        telling += verdicts[0] != verdicts[1]
    assert telling >= 6
