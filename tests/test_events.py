from __future__ import annotations

from typing import Any

import pytest

from shadowvm import events
from shadowvm.events import REGISTRY, Tracepoint, attached, kvm_entry, kvm_exit, pferr_text


def test_a_tracepoint_is_off_until_somebody_listens() -> None:
    heard: list[tuple[str, tuple[Any, ...]]] = []
    assert not kvm_entry.on
    with attached(lambda tracepoint, args: heard.append((tracepoint.name, args)), [kvm_entry]):
        assert kvm_entry.on
        assert not kvm_exit.on
        kvm_entry(0, 0x1000)
    assert not kvm_entry.on
    assert heard == [("kvm_entry", (0, 0x1000))]


def test_listeners_hear_in_the_order_in_which_they_came_and_leave_alone() -> None:
    heard: list[int] = []

    def first(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        heard.append(1)

    def second(tracepoint: Tracepoint, args: tuple[Any, ...]) -> None:
        heard.append(2)

    with attached(first, [kvm_entry]):
        with attached(second, [kvm_entry]):
            kvm_entry(0, 0)
        kvm_entry(0, 0)
        assert kvm_entry.on
    assert heard == [1, 2, 1]


def test_listeners_leave_when_the_block_fails() -> None:
    with pytest.raises(KeyError), attached(lambda tracepoint, args: None, REGISTRY.values()):
        raise KeyError
    assert not any(tracepoint.on for tracepoint in REGISTRY.values())


def test_names_are_unique_and_registered_by_name() -> None:
    declared = [value for value in vars(events).values() if isinstance(value, Tracepoint)]
    assert len(declared) == len(REGISTRY)
    assert all(REGISTRY[each.name] is each for each in declared)


@pytest.mark.parametrize(
    ("code", "text"), [(0, ""), (1, "P"), (3, "P|W"), (0x15, "P|U|F"), (0xD, "P|U|RSVD"), (0x8061, "P|PK|SS|SGX")]
)
def test_page_fault_codes_are_printed_as_the_kernel_prints_them(code: int, text: str) -> None:
    assert pferr_text(code) == text


def test_texts_are_the_kernels() -> None:
    assert kvm_entry.format((0, 0x1000)) == "vcpu 0, rip 0x1000"
    assert events.kvm_unmap_hva_range.format((0x7F0000000000, 0x7F0000001000)) == (
        "mmu notifier unmap range: 0x00007f0000000000 -- 0x00007f0000001000"
    )
    assert events.kvm_mmu_get_page.format((0, 0x9, "l4 8-byte q0 wux nxe ad", 1, False, True)) == (
        "sp gen 0 gfn 9 l4 8-byte q0 wux nxe ad root 1 sync new"
    )
    assert events.kvm_mmu_set_spte.format((0x400, 1 << 63 | 0x5003, 0x18000, 1)) == (
        "gfn 400 spte 8000000000005003 (rw--) level 1 at 18000"
    )
