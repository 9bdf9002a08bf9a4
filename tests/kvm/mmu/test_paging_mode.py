from __future__ import annotations

import pytest

from shadowvm.kvm.cpuid import parse_cpu_model
from shadowvm.kvm.mmu.paging_mode import PagingMode, rsvd_large_bits
from shadowvm.x86 import PT_PAGE_SIZE

MAX = parse_cpu_model("max")


@pytest.mark.parametrize("mode", [PagingMode.PAE, PagingMode.PT64, PagingMode.LA57])
def test_large_pages_of_64_bit_entries_reserve_address_bits_below_their_size(mode: PagingMode) -> None:
    reserved = rsvd_large_bits(mode, MAX)
    assert reserved[2] == (1 << 21) - (1 << 13)
    assert reserved[3] == (1 << 30) - (1 << 13)
    assert reserved[4] == reserved[5] == PT_PAGE_SIZE


def test_a_cpu_without_gigabyte_pages_has_no_ps_in_level_3() -> None:
    reserved = rsvd_large_bits(PagingMode.PT64, parse_cpu_model("max,-pdpe1gb"))
    assert reserved[3] == PT_PAGE_SIZE
    assert reserved[2] == rsvd_large_bits(PagingMode.PT64, MAX)[2]


def test_pse36_leaves_bit_21_reserved_and_its_absence_the_upper_half() -> None:
    assert rsvd_large_bits(PagingMode.PT32, MAX)[2] == 1 << 21
    assert rsvd_large_bits(PagingMode.PT32, parse_cpu_model("max,-pse36"))[2] == (1 << 22) - (1 << 13)
