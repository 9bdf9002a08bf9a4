"""The machine of an episode, and how its knobs are drawn, so that a run covers many kinds of machines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random

from ...config import MIB
from ...params import DEFAULT_PARAMS, KvmParams

DIRTY_LOGS = ("bitmap", "manual", "initially-set", "ring")
"""How stores are logged: KVM_GET_DIRTY_LOG alone, with KVM_CLEAR_DIRTY_LOG, with a full bitmap at first, by rings."""
HUGE_HOST_MEMORY = 40 * MIB
"""What a host needs to have huge pages free."""
_SWITCHES = (
    ("mmio_caching", 0.15),
    ("eager_page_split", 0.3),
    ("flush_on_reuse", 0.1),
    ("slot_zap_all", 0.3),
    ("async_pf", 0.3),
    ("unsync", 0.25),
    ("prefetch", 0.25),
    ("fast_page_fault", 0.2),
    ("large_pages", 0.1),
    ("unprotect_retry", 0.2),
    ("eptad", 0.25),
)
"""Knobs that are 0 or 1, with the probability that one is not at its default."""


@dataclass(frozen=True)
class Setup:
    """The machine of an episode. check: under the sanitizer too. thp: the host uses huge pages. dirty_log: one of
    DIRTY_LOGS."""

    smp: int = 1
    mmu: str = "shadow"
    host_memory: int = 4 * MIB
    params: KvmParams = DEFAULT_PARAMS
    check: bool = False
    thp: bool = False
    dirty_log: str = DIRTY_LOGS[0]


def draw_setup(setup: Setup, random: Random, pinned: Collection[str]) -> Setup:
    """Another machine with so many CPUs and this kind of paging; the knobs of `pinned` stay as they are.

    `pinned` may name knobs of KVM, and `host_memory`, for which huge pages are out too.
    """
    thp = "host_memory" not in pinned and random.random() < 0.4
    dirty_log = random.choice((DIRTY_LOGS[0], *DIRTY_LOGS))
    changed = {name: 1 - getattr(DEFAULT_PARAMS, name) for name, share in _SWITCHES if random.random() < share}
    if random.random() < 0.3:
        changed["nr_mmu_pages"] = random.choice((64, 80))
    if thp and random.random() < 0.5:
        changed |= {"nx_huge_pages": 1, "nx_huge_pages_recovery_ratio": random.choice((1, 2))}
    if setup.mmu == "tdp":
        changed["tdp_mmu"] = random.choice((0, 1, 1))
        changed["pml"] = int(random.random() < 0.25 and dirty_log != "ring")
    params = replace(setup.params, **{name: value for name, value in changed.items() if name not in pinned})
    if params.pml and dirty_log == "ring":
        dirty_log = DIRTY_LOGS[0]
    memory = max(setup.host_memory, HUGE_HOST_MEMORY) if thp else setup.host_memory
    return replace(setup, params=params, host_memory=memory, thp=thp, dirty_log=dirty_log)
