"""The story of a fault: what is told of hand-made events, and what is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from shadowvm.debug.story import Happened, last_fault, open_fault, tell
from shadowvm.events import REGISTRY

MMU_LOCK = SimpleNamespace(name="mmu_lock")
RANGE = SimpleNamespace(start=0x1000, end=0x2000, event=SimpleNamespace(name="CLEAR"))


def history(*events: tuple[str, str, tuple[Any, ...]]) -> list[Happened]:
    """Each event: thread, name, arguments."""
    return [
        Happened(number, 100, task, 0 if task == "CPU 0/KVM" else None, REGISTRY[name], args)
        for number, (task, name, args) in enumerate(events, 1)
    ]


def cpu(name: str, *args: Any) -> tuple[str, str, tuple[Any, ...]]:
    return "CPU 0/KVM", name, args


def kswapd(name: str, *args: Any) -> tuple[str, str, tuple[Any, ...]]:
    return "kswapd0", name, args


BEFORE = [cpu("kvm_page_fault", 0, 0x100, 0x5000, 0), cpu("kvm_mmu_seq_sample", 0, 5, 7)]
AFTER = [cpu("kvm_faultin_pfn", 0, 5, 9, 0), cpu("lock_acquired", MMU_LOCK)]
RELEASE = cpu("lock_release", MMU_LOCK)
INVALIDATED = [
    kswapd("mmu_notifier_invalidate_range_start", RANGE),
    kswapd("mmu_notifier_invalidate_range_end", RANGE),
]


def test_a_fault_that_finds_the_sequence_moved_starts_over() -> None:
    told = tell(history(*BEFORE, *INVALIDATED, *AFTER, RELEASE))
    assert told[-2].endswith("mmu_invalidate_seq is 8 by now, not 7: the frame may be another's; the fault starts over")


def test_a_fault_inside_an_open_range_starts_over() -> None:
    told = tell(history(*BEFORE, INVALIDATED[0], *AFTER, RELEASE))
    assert told[-2].endswith("an invalidation is under way; the fault starts over")


def test_a_fault_that_asks_for_its_spte_goes_on() -> None:
    told = tell(history(*BEFORE, *AFTER, cpu("kvm_mmu_spte_requested", 5, 9, 1), RELEASE))
    assert not any("starts over" in line for line in told)


def test_a_lock_of_another_thread_says_nothing_of_the_fault() -> None:
    told = tell(history(*BEFORE, *AFTER, kswapd("lock_release", MMU_LOCK)))
    assert not any("starts over" in line for line in told)


def test_an_invalidation_of_before_the_sample_does_not_count() -> None:
    events = [BEFORE[0], *INVALIDATED, BEFORE[1], *INVALIDATED, *AFTER, RELEASE]
    assert "is 8 by now, not 7" in tell(history(*events))[-2]


def test_many_alike_in_the_middle_are_counted() -> None:
    many = [kswapd("kvm_flush_remote_tlbs", 1)] * 40
    told = tell(history(*BEFORE, *many, *AFTER, RELEASE))
    assert sum("flush their TLBs" in line for line in told) < 30
    assert any("more like these" in line for line in told)


def test_the_fault_that_is_open_is_the_last_one_or_the_one_asked_for() -> None:
    other = ("CPU 1/KVM", "kvm_page_fault", (1, 0x200, 0x6000, 0))
    both = [each._replace(vcpu=int(each.task[4])) for each in history(BEFORE[0], other)]
    assert (open_fault(both), open_fault(both, 0), open_fault(both, 7)) == (1, 0, 1)
    assert open_fault(history(*BEFORE, cpu("kvm_entry", 0, 0x100))) is None


def test_the_last_fault_ends_where_its_vcpu_enters_the_guest() -> None:
    events = history(*BEFORE, cpu("kvm_entry", 0, 0x100), *INVALIDATED)
    assert [each.number for each in last_fault(events)] == [1, 2, 3]
    assert tell(last_fault(events))[-1] == "2 events"
    assert tell(last_fault(history(*INVALIDATED))) == ["no fault is in the history"]
