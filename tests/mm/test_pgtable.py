from __future__ import annotations

from itertools import pairwise

import pytest

from shadowvm.addr import Hva, Vpn
from shadowvm.events import attached, host_pte_change
from shadowvm.mm import pgtable
from shadowvm.mm.gup import host_pte
from shadowvm.mm.mmu_notifier import MmuNotifier, mmu_notifier_register
from shadowvm.mm.pgtable import SWP_ENTRY, free_pgtables, populated_tables, pte_alloc, pte_index
from shadowvm.x86 import PT_ACCESSED, PT_DIRTY, PT_PRESENT, PT_USER, PT_WRITABLE
from tests.mm.helpers import audit, ptes

VPN = Vpn(0x7F00_0000_0000 >> 12)
RW = PT_PRESENT | PT_USER | PT_WRITABLE | PT_ACCESSED | PT_DIRTY


def test_a_pte_is_found_through_the_real_four_level_tree(mm):
    index = pte_alloc(mm, VPN + 3)
    assert pte_index(mm, VPN + 3) == index
    assert pte_index(mm, VPN + 512) is None
    pgtable.set_pte(mm, VPN + 3, index, 7 << 12 | RW)
    assert list(ptes(mm)) == [(VPN + 3, 7 << 12 | RW)]
    assert host_pte(mm, VPN + 3) == 7 << 12 | RW
    pgtable.ptep_clear_flush(mm, VPN + 3, index)


def test_tables_are_counted_shared_and_freed_from_the_bottom(mm):
    vmstat = mm.host.vmstat
    assert vmstat.nr_page_table_pages == 1
    pte_alloc(mm, VPN)
    assert vmstat.nr_page_table_pages == 4
    pte_alloc(mm, VPN + 512)
    assert vmstat.nr_page_table_pages == 5
    far = VPN + (1 << 18)
    pte_alloc(mm, far)
    assert vmstat.nr_page_table_pages == 7
    audit(mm.host)
    free_pgtables(mm, Hva(VPN << 12), Hva(VPN + 1 << 12))
    assert vmstat.nr_page_table_pages == 6
    assert pte_index(mm, VPN) is None
    assert pte_index(mm, VPN + 512) is not None
    free_pgtables(mm, Hva(VPN << 12), Hva(far + 512 << 12))
    assert vmstat.nr_page_table_pages == 1
    audit(mm.host)


def test_out_of_memory_while_tables_are_made(mm):
    while mm.host.alloc_page_nowait() is not None:
        pass
    assert pte_alloc(mm, VPN) is None
    assert pte_index(mm, VPN) is None


@pytest.mark.parametrize(
    ("start", "end", "blocks"),
    [(0, 1 << 47, [0, 2]), (1, 2, [0]), (2 << 20, 4 << 20, []), (2 << 20, (4 << 20) + 1, [2])],
)
def test_only_tables_that_exist_are_visited(mm, start, end, blocks):
    for block in (2, 0):
        pte_alloc(mm, VPN + 512 * block)
    base = VPN << 12
    found = populated_tables(mm, Hva(base + start), Hva(base + end))
    assert found == [(base >> 21) + block for block in blocks]


def test_every_store_is_told_and_drops_the_host_tlb(mm):
    index = pte_alloc(mm, VPN)
    seen = []

    def tlb():
        mm.tlb[VPN] = mm.tlb_w[VPN] = 7 << 9

    with attached(lambda _tp, args: seen.append(args[1:]), (host_pte_change,)):
        pgtable.set_pte(mm, VPN, index, 7 << 12 | RW)
        tlb()
        pgtable.ptep_set_wrprotect(mm, VPN, index)
        assert (mm.tlb, mm.tlb_w) == ({}, {})
        tlb()
        assert pgtable.ptep_clear_flush_young(mm, VPN, index)
        assert (mm.tlb, mm.tlb_w) == ({}, {})
        assert not pgtable.ptep_clear_flush_young(mm, VPN, index)
        pgtable.ptep_set_access_flags(mm, VPN, index, PT_WRITABLE | PT_ACCESSED)
        tlb()
        assert pgtable.ptep_swap_out(mm, VPN, index, 5) == 7 << 12 | RW
        assert (mm.tlb, mm.tlb_w) == ({}, {})
        assert pgtable.ptep_clear_flush(mm, VPN, index) == 5 << 12 | SWP_ENTRY
    values = [0, RW, RW & ~PT_WRITABLE, RW & ~PT_WRITABLE & ~PT_ACCESSED, RW, 0]
    ptes_ = [value and 7 << 12 | value for value in values] + [5 << 12 | SWP_ENTRY, 0]
    assert seen == [(VPN, old, new) for old, new in pairwise(ptes_)]


def test_slot_0_is_not_none():
    assert 0 << 12 | SWP_ENTRY
    assert not SWP_ENTRY & PT_PRESENT


def test_flushes_reach_a_tlb_that_walks_the_same_table(mm):
    flushed = []

    class Device(MmuNotifier):
        def arch_invalidate_secondary_tlbs(self, mm, start, end):
            flushed.append((start, end))

    mmu_notifier_register(Device(), mm)
    index = pte_alloc(mm, VPN)
    pgtable.set_pte(mm, VPN, index, 7 << 12 | RW)
    assert flushed == []
    pgtable.ptep_swap_out(mm, VPN, index, 5)
    assert flushed == [(VPN << 12, VPN + 1 << 12)]
    pgtable.ptep_clear_flush(mm, VPN, index)
