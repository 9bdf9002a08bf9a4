"""Machines that are drawn: of every kind, each possible, and what the user has said stays."""

from __future__ import annotations

from dataclasses import fields
from random import Random

import pytest

from shadowvm.lab.oracle.setup import DIRTY_LOGS, HUGE_HOST_MEMORY, Setup, draw_setup
from shadowvm.params import DEFAULT_PARAMS, KvmParams


@pytest.mark.parametrize("mmu", ["shadow", "tdp"])
def test_every_knob_is_turned_now_and_then(mmu: str) -> None:
    drawn = [draw_setup(Setup(3, mmu), Random(seed), ()) for seed in range(200)]
    assert {each.dirty_log for each in drawn} == set(DIRTY_LOGS)
    assert {(each.smp, each.mmu) for each in drawn} == {(3, mmu)}
    assert all((each.host_memory >= HUGE_HOST_MEMORY) == each.thp for each in drawn)
    turned = {
        knob.name
        for knob in fields(KvmParams)
        if any(getattr(each.params, knob.name) != getattr(DEFAULT_PARAMS, knob.name) for each in drawn)
    }
    rest = {"nx_huge_pages_recovery_period_ms"} | ({"tdp_mmu", "pml"} if mmu == "shadow" else set())
    assert turned == {knob.name for knob in fields(KvmParams)} - rest


def test_the_ring_and_the_log_by_d_bits_exclude_each_other() -> None:
    setup = Setup(mmu="tdp", params=KvmParams(pml=1))
    for pinned in ((), ("pml",)):
        drawn = [draw_setup(setup, Random(seed), pinned) for seed in range(200)]
        assert not any(each.params.pml and each.dirty_log == "ring" for each in drawn)


def test_what_was_said_stays() -> None:
    setup = Setup(host_memory=4 << 20, params=KvmParams(unsync=0, prefetch=1))
    drawn = [draw_setup(setup, Random(seed), ("unsync", "prefetch", "host_memory")) for seed in range(100)]
    assert {(each.params.unsync, each.params.prefetch, each.host_memory) for each in drawn} == {(0, 1, 4 << 20)}
