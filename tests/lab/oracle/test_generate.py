"""Random operations: a pure function of the seed, all of them operations, and all kinds of them."""

from __future__ import annotations

from random import Random

from shadowvm.lab.oracle.generate import Generator
from shadowvm.lab.oracle.model import Model
from shadowvm.lab.oracle.setup import Setup
from shadowvm.lab.oracle.shapes import Operation, problem_with
from shadowvm.params import KvmParams

SETUP = Setup(2, "tdp", params=KvmParams(nx_huge_pages=1), thp=True, dirty_log="manual")


def sequence(seed: int, count: int = 250) -> list[Operation]:
    generator = Generator(Random(seed), Model(2, lambda at: None), SETUP)
    return [*generator.beginning(), *(generator.next() for _ in range(count))]


def test_a_seed_is_a_sequence() -> None:
    assert sequence(5) == sequence(5)
    assert sequence(5) != sequence(6)


def test_everything_is_an_operation_and_every_operation_comes() -> None:
    names = set()
    for seed in range(40):
        for operation in sequence(seed):
            assert problem_with(operation, 2) == "", operation
            names.add(operation[0])
    assert names == {
        *("access", "invlpg", "cr3", "bit", "pkru", "mode", "outside", "dontneed", "pageout", "readonly", "writable"),
        *("unmap", "map", "age", "hog", "slot", "log", "harvest", "during", "cross", "amid", "rom", "smm", "clear"),
        *("collapse", "recover", "reprotect"),
    }
