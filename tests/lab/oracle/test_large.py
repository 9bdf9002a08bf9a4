"""Operations about huge pages; that they show the bugs they are made for is tested with the bugs."""

from __future__ import annotations

from random import Random

import pytest

from shadowvm.lab.oracle import layout as at
from shadowvm.lab.oracle.generate import Generator
from shadowvm.lab.oracle.large import large
from shadowvm.lab.oracle.model import Model
from shadowvm.lab.oracle.setup import Setup
from shadowvm.lab.oracle.shapes import Operation, problem_with
from shadowvm.params import KvmParams


def made(mmu: str, mode: int, *, check: bool = False) -> list[list[Operation]]:
    """What it makes over random tables, with some seeds; all of them are operations."""
    setup = Setup(1, mmu, params=KvmParams(nx_huge_pages=1), check=check, thp=True)
    found = []
    for seed in range(40):
        gen = Generator(Random(seed), Model(1, lambda at: None), setup)
        for name, *arguments in gen.beginning():
            if name == "outside":
                gen.model.memory.words[int(arguments[0])] = int(arguments[1])
        control = gen.model.cpus[0].control
        control.mode, control.cr3, control.pse = mode, 0x1000, True
        found.append(large(gen))
        assert [problem_with(each, 1) for each in found[-1]] == [""] * len(found[-1])
    return found


def names(sequence: list[Operation]) -> list[str]:
    return [str(each[0]) for each in sequence]


@pytest.mark.parametrize("mode", [at.PT32, at.PT64])
def test_a_large_entry_of_the_guest_is_used_where_the_host_has_a_huge_page(mode: int) -> None:
    mapped = [each for each in made("shadow", mode) if names(each)[2:5] == ["map", "log", "collapse"]]
    assert len(mapped) > 5
    size = 1 << 22 if mode == at.PT32 else 1 << 21
    for edit, flush, _, _, collapse, look, *_ in mapped:
        assert int(edit[4]) & (at.PRESENT | at.LARGE) == at.PRESENT | at.LARGE
        assert int(edit[4]) >> 12 == (0 if mode == at.PT32 else at.HIGH_BASE * int(collapse[1]))
        if flush[0] == "invlpg":
            assert int(look[3]) & -size == int(flush[2]) & -size
        assert (int(look[3]) & size - 1) >> 12 & 511 in {each & 0xFFFF for each in at.POOL}


def test_for_two_dimensional_paging_the_guest_s_pages_may_be_small() -> None:
    looks = [
        each[each.index(["collapse", at.HIGH]) + 1] for each in made("tdp", at.PT64) if ["collapse", at.HIGH] in each
    ]
    windows = {at.window_address(at.PT64, at.HIGH_BASE + (page & 0xFFFF)) for page in at.POOL_HIGH}
    assert 0 < sum(int(look[3]) & -4096 in windows for look in looks) < len(looks)


def test_each_end_of_a_large_page_comes() -> None:
    ends = [set(names(each)) for each in made("shadow", at.PT64)]
    for name in ("dontneed", "pageout", "reprotect", "harvest", "recover"):
        assert any(name in each for each in ends), name


def test_under_the_sanitizer_no_contents_are_thrown_away() -> None:
    assert not any("dontneed" in names(each) for each in made("shadow", at.PT64, check=True))
